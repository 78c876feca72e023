"""Canonical correlation analysis with ridge, scored by a cosine, by correlations (CSA) or by a
Gaussian model.

Legend: `n` pairs, `D_a`, `D_b` frozen widths, `s` dimensions kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gera_lightning.aligners.base import FitData, Maps, Setting, check_range, grid, log_spaced
from gera_lightning.models.maps import Linear, normalized, register_map
from gera_lightning.utils.errors import UserError, check_one_of
from gera_lightning.utils.instantiate import register


class CanonicalFits:
    """Regularised canonical directions of two views for any penalty, from one singular value
    decomposition a view.

    With `x = U diag(s) V'`, `(C + lam)^-1/2` acts on the span of V only, so the problem is one of
    rank at most n: `svd(diag(g_a) U_a' U_b diag(g_b))`, `g = s / sqrt(s^2 + lam)`, `lam = penalty *
    mean s^2`. A view of zeros has no directions.

    Args:
        x_a, x_b: paired rows `[n, D_a]`, `[n, D_b]`.
    """

    def __init__(self, x_a: Tensor, x_b: Tensor) -> None:
        self.a, self.b = (torch.linalg.svd(x, full_matrices=False) for x in (x_a, x_b))
        self.cross = self.a[0].T @ self.b[0]

    def __call__(self, penalty: float) -> tuple[Tensor, Tensor, Tensor]:
        """Directions `[D_a, r]`, `[D_b, r]` and correlations `[r]`, largest first."""
        variances = [(s.square(), penalty * s.square().mean()) for _, s, _ in (self.a, self.b)]
        root_a, root_b = (
            torch.where(own > 0, (own + lam).sqrt(), torch.inf) for own, lam in variances
        )
        u, rho, vh = torch.linalg.svd(
            (self.a[1] / root_a).unsqueeze(1) * self.cross * (self.b[1] / root_b),
            full_matrices=False,
        )
        return (
            self.a[2].T @ (u / root_a.unsqueeze(1)),
            self.b[2].T @ (vh.T / root_b.unsqueeze(1)),
            rho.clamp(max=1),
        )


@register_map("weighted_cosine")
class WeightedCosine(nn.Module):
    """Unit rows whose dot product is `sum_j w_j u_j v_j`, `u = n(x W)`: a weighted cosine in
    one inner product.

    `z = [sqrt(w) u; slack]`, the slack coordinate of each modality its own, so that it makes the
    row a unit one and adds nothing.

    Args:
        weight: `W` `[D_in, s]`.
        scale: `w` `[s]`, between 0 and 1.
        slot: 0 for modality a, 1 for b: where the slack stands.
        shape: `(D_in, s)`, for an empty map that weights are loaded into.
    """

    weight: Tensor
    scale: Tensor

    def __init__(
        self,
        weight: Tensor | None = None,
        scale: Tensor | None = None,
        slot: int = 0,
        *,
        shape: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        if shape is not None:
            weight, scale = torch.zeros(*shape), torch.zeros(shape[1])
        assert weight is not None
        assert scale is not None
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.slot = slot

    @property
    def settings(self) -> dict[str, Any]:
        """What, with the weights, rebuilds this map."""
        return {"slot": self.slot, "shape": tuple(self.weight.shape)}

    def forward(self, x: Tensor) -> Tensor:
        """`[n, D_in] -> [n, s + 2]`."""
        z = normalized(x @ self.weight) * self.scale.sqrt()
        slack = (1 - z.square().sum(1, keepdim=True)).clamp(min=0).sqrt()
        none = torch.zeros_like(slack)
        return torch.cat([z, *((slack, none) if self.slot == 0 else (none, slack))], dim=1)


SCORES = ("cosine", "csa", "gaussian")
"""How canonical variates are compared, see `CCA`."""
UNSHARED = 0.1
"""Share of a canonical variate's variance that the Gaussian score never takes for shared: without
it one correlation near 1 would decide.
"""


@register("cca")
@dataclass(frozen=True)
class CCA:
    """Regularised CCA; penalty and number of dimensions are tuned.

    `A, rho, B = svd((C_aa + lam_a)^-1/2 C_ab (C_bb + lam_b)^-1/2)`, `lam = penalty * mean
    eigenvalue`. With u, v the s leading canonical variates of two rows the score is

    - `cosine`: their cosine.
    - `csa`: `sum_j rho_j u_j v_j` of their unit rows.
    - `gaussian`: the cosine of `sqrt(w) u` and `sqrt(w) v`, `w = rho / (1 + UNSHARED - rho^2)`. In
      the Gaussian model of CCA, where u_j and v_j have unit variance and correlation rho_j, `log
      p(u, v) / p(u) p(v)` holds the products `u_j v_j` with the weights `rho_j / (1 - rho_j^2)`:
      directions in which little noise stands between the views decide.

    Attributes:
        score: one of `SCORES`.
        dims: largest shares of the canonical dimensions kept, tried in turn.
        smallest, largest: range of relative penalties, evenly spaced in logarithm; one penalty
            where they are equal.

    Source:
        Hotelling 1936; ridge: Vinod 1976; CSA: Li et al., arXiv 2410.07610 (which has no ridge: it
        is our addition); Gaussian model: Bach and Jordan, A probabilistic interpretation of
        canonical correlation analysis, 2005; to score pairs by its likelihood ratio is what
        probabilistic LDA does with one view (Ioffe, ECCV 2006), the cosine in place of its squares
        is ours.
    """

    score: str = "cosine"
    dims: tuple[float, ...] = (0.5, 1.0)
    smallest: float = 1e-1
    largest: float = 1e1

    def __post_init__(self) -> None:
        check_range(self.smallest, self.largest)
        check_one_of("score", self.score, SCORES)
        if not self.dims or not 0 < min(self.dims) <= max(self.dims) <= 1:
            raise UserError(f"dims={self.dims} must be shares in (0, 1]")

    def settings(self, count: int, pairs: int) -> Sequence[Setting]:  # noqa: ARG002
        """At most `count` settings, the strongest penalty and fewest dimensions first."""
        steps = max(1, count // len(self.dims))
        return grid(count, penalty=log_spaced(self.largest, self.smallest, steps), share=self.dims)

    def candidates(self, samples: FitData, settings: Sequence[Setting]) -> Iterator[Maps]:
        """The maps of each setting, one small decomposition a penalty."""
        fits = CanonicalFits(samples.x_a, samples.x_b)
        fitted: dict[float, tuple[Tensor, Tensor, Tensor]] = {}
        for setting in settings:
            penalty = setting["penalty"]
            if penalty not in fitted:
                fitted = {penalty: fits(penalty)}
            kept = max(1, round(setting["share"] * len(fitted[penalty][2])))
            a, b, rho = (values[..., :kept].contiguous() for values in fitted[penalty])
            if self.score == "csa":
                yield WeightedCosine(a, rho, 0), WeightedCosine(b, rho, 1)
                continue
            if self.score == "gaussian":
                root = (rho / (1 + UNSHARED - rho.square())).sqrt()
                a, b = a * root, b * root
            yield Linear(a.shape[0], kept, weight=a), Linear(b.shape[0], kept, weight=b)
