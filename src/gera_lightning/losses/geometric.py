"""The geometric regulariser: local diffusion operators before and after the map.

Legend: `A` anchors, `M = K + 1` points of a patch, `D` width. GeRA (arXiv 2310.00672) compares a
heat-kernel diffusion operator over nearest neighbours before and after the map; the relative form
and every default here are our definition.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gera_lightning.geometry.diffusion import DiffusionOperator
from gera_lightning.geometry.kernels import bandwidth_floor, squared_distances
from gera_lightning.utils.errors import check_one_of
from gera_lightning.utils.instantiate import register

TINY = 1e-12


def relative_loss(p: Tensor, q: Tensor, flat: Tensor | None = None, floor: float = 1e-6) -> Tensor:
    """`|P - Q|_F^2 / max(|P - U|_F^2, floor)` a patch: 0 when Q keeps P, 1 when Q has collapsed to
    U (`flat`, 1/M by default).
    """
    scale = (
        (p - (1 / p.shape[-1] if flat is None else flat)).square().sum((-2, -1)).clamp(min=floor)
    )
    return (p - q).square().sum((-2, -1)) / scale


def frobenius_loss(p: Tensor, q: Tensor) -> Tensor:
    """`|P - Q|_F^2` a patch."""
    return (p - q).square().sum((-2, -1))


def kl_loss(p: Tensor, q: Tensor) -> Tensor:
    """Mean over rows of `KL(P_j | Q_j)`, in nats, a patch."""
    return (torch.special.xlogy(p, p) - p * q.clamp(min=TINY).log()).sum(-1).mean(-1)


def js_loss(p: Tensor, q: Tensor) -> Tensor:
    """Mean over rows of the Jensen-Shannon divergence of P and Q, in nats (at most log 2), a patch."""
    middle = (p + q) / 2
    return (kl_loss(p, middle) + kl_loss(q.clamp(min=TINY), middle)) / 2


FORMS = {"relative": relative_loss, "frobenius": frobenius_loss, "kl": kl_loss, "js": js_loss}


@register("geometric")
class GeometricLoss(nn.Module):
    """Distance between the diffusion operators of frozen and mapped patches.

    `mean_i d(P_i(x), P_i(z))`, gradient only through z. With `form="relative"` the value is 0 for
    the identity and every map that keeps distances up to the bandwidth's scale, 1 for a collapsed
    map, whatever K, kernel and bandwidth.

    Args:
        form: `relative` (default), `frobenius`, `kl` or `js`.
        kernel, bandwidth, factor, neighbor, alpha, power, self_loops: see `DiffusionOperator`;
            `factor=None` is chosen on frozen patches.
        tied: use the frozen side's eps after the map too, instead of estimating it there again.
    """

    def __init__(
        self,
        form: str = "relative",
        kernel: str = "heat",
        bandwidth: str = "patch",
        factor: float | None = None,
        neighbor: int = 7,
        alpha: float = 1.0,
        power: int = 1,
        self_loops: bool = False,
        tied: bool = False,
    ) -> None:
        super().__init__()
        check_one_of("form", form, list(FORMS))
        self.form = form
        self.tied = tied
        self.operator = DiffusionOperator(
            kernel, bandwidth, factor, neighbor, alpha, power, self_loops
        )

    def calibrated(self, x_AMD: Tensor, scale: float) -> GeometricLoss:
        """This loss with its bandwidth factor chosen on frozen patches `[A, M, D]`, see
        `DiffusionOperator.calibrated`.
        """
        operator = self.operator.calibrated(squared_distances(x_AMD), scale=scale)
        out = GeometricLoss(form=self.form, tied=self.tied)
        out.operator = operator
        return out

    def forward(
        self,
        x_AMD: Tensor,
        z_AMD: Tensor,
        *,
        scale: float,
        edges: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Loss of each patch, `[A]`.

        Args:
            x_AMD: frozen points of each patch, the anchor first, `[A, M, D_frozen]`.
            z_AMD: their images under the map, `[A, M, D]`.
            scale: median squared edge length of the frozen graph.
            edges: squared anchor-to-neighbour distances of the **whole** batch, frozen and mapped,
                for `bandwidth="global"` when these patches are one process's share of it; by
                default these patches' own. After the map the global scale is `scale x
                median(mapped) / median(frozen)`.
        """
        with torch.no_grad(), torch.autocast(x_AMD.device.type, enabled=False):
            d2_x = squared_distances(x_AMD)
            p = self.operator(d2_x, scale=scale)
            eps = self.operator.eps(d2_x, scale) if self.tied else None
        with torch.autocast(z_AMD.device.type, enabled=False):
            d2_z = squared_distances(z_AMD)
            if eps is None:
                mapped_scale: Tensor | float = scale
                if self.operator.bandwidth == "global":
                    frozen, mapped = (
                        (d2_x[..., 0, 1:], d2_z[..., 0, 1:]) if edges is None else edges
                    )
                    mapped_scale = scale * (
                        mapped.detach().median() / frozen.median().clamp(min=TINY)
                    )
                eps = self.operator.eps(d2_z, mapped_scale, floor=bandwidth_floor(scale))
            q = self.operator(d2_z, eps=eps)
            if self.form == "relative":
                return relative_loss(p.to(q.dtype), q, self.operator.flat(q.shape[-1]).to(q))
            return FORMS[self.form](p.to(q.dtype), q)
