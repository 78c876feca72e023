"""The geometric regulariser: local diffusion operators before and after the map.

Legend: `A` anchors, `M = K + 1` points of a patch, `N` rows, `D` width. GeRA (arXiv 2310.00672)
compares a heat-kernel diffusion operator over nearest neighbours before and after the map; the
relative form and every default here are our definition.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gera_lightning.geometry.diffusion import DiffusionOperator
from gera_lightning.geometry.kernels import bandwidth_floor, squared_distances
from gera_lightning.geometry.neighbors import NeighborGraph, knn_graph
from gera_lightning.losses.base import PATCHES, Loss, LossSetup, ProjectedPatches, StepBatch
from gera_lightning.utils.distributed import gather_rows, global_mean, world
from gera_lightning.utils.errors import UserError, check_one_of
from gera_lightning.utils.instantiate import register

TINY = 1e-12
CALIBRATION_PATCHES = 512
"""Frozen patches on which the bandwidth's factor is chosen."""


def relative_loss(p: Tensor, q: Tensor, flat: Tensor | None = None, floor: float = 1e-6) -> Tensor:
    """`|P - Q|_F^2 / max(|P - U|_F^2, floor)` of each patch: 0 when Q keeps P, 1 when Q has
    collapsed to U (`flat`, 1/M by default).
    """
    uniform = 1 / p.shape[-1] if flat is None else flat
    scale = (p - uniform).square().sum((-2, -1)).clamp(min=floor)
    return (p - q).square().sum((-2, -1)) / scale


def frobenius_loss(p: Tensor, q: Tensor) -> Tensor:
    """`|P - Q|_F^2` of each patch."""
    return (p - q).square().sum((-2, -1))


def kl_loss(p: Tensor, q: Tensor) -> Tensor:
    """Mean over rows of `KL(P_j | Q_j)`, in nats, of each patch."""
    return (torch.special.xlogy(p, p) - p * q.clamp(min=TINY).log()).sum(-1).mean(-1)


def js_loss(p: Tensor, q: Tensor) -> Tensor:
    """Mean over rows of the Jensen-Shannon divergence of P and Q, in nats (at most log 2), of each
    patch.
    """
    middle = (p + q) / 2
    return (kl_loss(p, middle) + kl_loss(q.clamp(min=TINY), middle)) / 2


FORMS = {"relative": relative_loss, "frobenius": frobenius_loss, "kl": kl_loss, "js": js_loss}


def geometric_loss(
    x_AMD: Tensor,
    z_AMD: Tensor,
    operator: DiffusionOperator,
    *,
    scale: float,
    form: str = "relative",
    tied: bool = False,
    edges: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Distance between the diffusion operators of frozen and mapped patches, `[A]`.

    `d(P_i(x), P_i(z))` of each patch i, gradient through z alone. With the relative form it is 0
    for the identity and every map that keeps distances up to the bandwidth's scale, 1 for a
    collapsed map, whatever K, kernel and bandwidth.

    Args:
        x_AMD: frozen points of each patch, the anchor first, `[A, M, D_frozen]`.
        z_AMD: their images under the map, `[A, M, D]`.
        operator: of both sides; without a factor it is calibrated on the frozen side.
        scale: median squared edge length of the frozen graph.
        form: `relative`, `frobenius`, `kl` or `js`.
        tied: use the frozen side's eps after the map too, instead of estimating it there again.
        edges: squared anchor-to-neighbour distances of the **whole** batch, frozen and mapped, for
            `bandwidth="global"` when these patches are one process's share of it; by default these
            patches' own. After the map the global scale is `scale x median(mapped) /
            median(frozen)`.
    """
    with torch.no_grad(), torch.autocast(x_AMD.device.type, enabled=False):
        d2_x = squared_distances(x_AMD)
        operator = operator.calibrated(d2_x, scale=scale)  # a factor that is set stays
        p = operator(d2_x, scale=scale)
        eps = operator.eps(d2_x, scale) if tied else None
    with torch.autocast(z_AMD.device.type, enabled=False):
        d2_z = squared_distances(z_AMD)
        if eps is None:
            mapped_scale: Tensor | float = scale
            if operator.bandwidth == "global":
                frozen, mapped = edges or (d2_x[..., 0, 1:], d2_z[..., 0, 1:])
                mapped_scale = scale * (mapped.detach().median() / frozen.median().clamp(min=TINY))
            eps = operator.eps(d2_z, mapped_scale, floor=bandwidth_floor(scale))
        q = operator(d2_z, eps=eps)
        if form == "relative":
            return relative_loss(p.to(q.dtype), q, operator.flat(q.shape[-1]).to(q))
        return FORMS[form](p.to(q.dtype), q)


@register("geometric")
class GeometricLoss(Loss):
    """Keeps each modality's local geometry: `mean_i d(P_i(x), P_i(f(x)))`, P_i the diffusion
    operator of row i and its nearest neighbours, see `geometric_loss`.

    In training it is the sum over both modalities, on unpaired rows. On plain tensors it is that of
    one modality; `fit` chooses the bandwidth's factor on frozen rows.

    Args:
        form: `relative` (default), `frobenius`, `kl` or `js`.
        kernel, bandwidth, factor, neighbor, alpha, power, self_loops: see `DiffusionOperator`;
            `factor=None` is chosen on frozen patches.
        tied: use the frozen side's bandwidth after the map too.

    >>> x = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
    >>> loss = GeometricLoss().fit(x)
    >>> round(float(loss(x, 3 * x)), 4)  # a map that keeps the geometry
    0.0
    >>> round(float(loss(x, torch.ones(200, 2))), 4)  # a map that collapses it
    1.0
    """

    requires = (PATCHES,)

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
        self.form, self.tied = form, tied
        self.operator = DiffusionOperator(
            kernel, bandwidth, factor, neighbor, alpha, power, self_loops
        )
        self.fitted: dict[str, tuple[DiffusionOperator, float]] = {}
        """Each modality's operator with its factor set, and the scale of its graph's edges."""
        self._graph: tuple[Tensor, NeighborGraph] | None = None

    def fit(self, x: Tensor, k: int = 16) -> GeometricLoss:
        """Choose the bandwidth's factor on frozen rows `[N, D]` and their k nearest neighbours."""
        graph = knn_graph(x, k)
        self._graph = x, graph
        anchors = torch.arange(min(CALIBRATION_PATCHES, len(graph)), device=x.device)
        self._calibrate("plain", x[graph.patches(anchors)], graph.edge_scale)
        return self

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """Loss of rows and their images, a scalar.

        A row's patch is itself and its nearest neighbours among the rows given. Give all fitted
        rows to use the graph that `fit` found; of a batch of them the neighbours are looked for
        anew.

        Args:
            x: frozen rows `[n, D_frozen]`.
            z: their images `[n, D]`.
        """
        if self._graph is None:
            raise UserError("the geometric loss has not seen frozen rows yet: call fit(x) first")
        points, graph = self._graph
        if x is not points:
            graph = knn_graph(x, graph.indices.shape[1])
        members = graph.patches(torch.arange(len(x), device=x.device))
        operator, scale = self.fitted["plain"]
        return self._of(operator, x[members], z[members], scale).mean()

    def prepare(self, setup: LossSetup) -> None:
        """Choose each modality's bandwidth factor on frozen patches."""
        for side, (x_AMD, scale) in setup.patches.items():
            self._calibrate(side, x_AMD, scale)

    def on_step(self, batch: StepBatch) -> Tensor:
        """Sum of both modalities' losses on the step's patches."""
        a, b = (self._of_side(side, patches) for side, patches in batch.patches.items())
        return a + b

    def extra_repr(self) -> str:
        """What `repr` shows."""
        return f"form={self.form!r}, tied={self.tied}, {self.operator}"

    def _calibrate(self, side: str, x_AMD: Tensor, scale: float) -> None:
        operator = self.operator.calibrated(squared_distances(x_AMD), scale=scale)
        self.fitted[side] = operator, scale

    def _of_side(self, side: str, patches: ProjectedPatches) -> Tensor:
        operator, scale = self.fitted[side]
        x_AMD = patches.points.x[patches.members]
        z_AMD = patches.points.z[patches.members]
        edges = None
        if world()[1] > 1 and operator.bandwidth == "global" and not self.tied:
            # the median is that of all processes' edges
            with torch.no_grad():
                own = [squared_distances(rows)[:, 0, 1:] for rows in (x_AMD, z_AMD.detach())]
                edges = gather_rows(own[0], patches.count), gather_rows(own[1], patches.count)
        return global_mean(self._of(operator, x_AMD, z_AMD, scale, edges), patches.count)

    def _of(
        self,
        operator: DiffusionOperator,
        x_AMD: Tensor,
        z_AMD: Tensor,
        scale: float,
        edges: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        return geometric_loss(
            x_AMD, z_AMD, operator, scale=scale, form=self.form, tied=self.tied, edges=edges
        )
