"""Regularised canonical correlation analysis, scored in one of three ways.

Legend: `n` pairs, `D_a`, `D_b` frozen widths, `s` dimensions kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from gera_lightning.aligners.base import (
    FitData,
    Maps,
    Setting,
    check_range,
    check_values,
    grid,
    log_spaced,
    middle,
)
from gera_lightning.aligners.estimator import Estimator
from gera_lightning.models.maps import Linear, normalized, register_map
from gera_lightning.utils.errors import check_one_of
from gera_lightning.utils.instantiate import register


class CanonicalFits:
    """Regularised canonical directions of two views, for any penalty.

    One singular value decomposition per view serves all penalties.

    With `x = U diag(s) V'` the inverse root `(C + lam)^-1/2`, `lam = penalty * mean s^2`, acts on
    the span of V only, so what is decomposed for a penalty is a matrix of rank at most n:

        P diag(rho) Q' = diag(g_a) U_a' U_b diag(g_b),    g = s / sqrt(s^2 + lam)
        A = V_a diag(1 / sqrt(s_a^2 + lam_a)) P,          B likewise of Q

    Args:
        x_a, x_b: paired rows `[n, D_a]`, `[n, D_b]`.
    """

    def __init__(self, x_a: Tensor, x_b: Tensor) -> None:
        u_a, self.s_a, self.vh_a = torch.linalg.svd(x_a, full_matrices=False)
        u_b, self.s_b, self.vh_b = torch.linalg.svd(x_b, full_matrices=False)
        self.cross = u_a.T @ u_b

    def __call__(self, penalty: float) -> tuple[Tensor, Tensor, Tensor]:
        """Directions A `[D_a, r]`, B `[D_b, r]` and correlations rho `[r]`, largest first."""
        root_a, root_b = _root(self.s_a, penalty), _root(self.s_b, penalty)
        whitened = (self.s_a / root_a).unsqueeze(1) * self.cross * (self.s_b / root_b)
        p, rho, qh = torch.linalg.svd(whitened, full_matrices=False)
        a = self.vh_a.T @ (p / root_a.unsqueeze(1))
        b = self.vh_b.T @ (qh.T / root_b.unsqueeze(1))
        return a, b, rho.clamp(max=1)


def _root(s: Tensor, penalty: float) -> Tensor:
    """`sqrt(s^2 + lam)`, infinite where s is 0.

    So a view of zeros has no directions, even without a penalty.
    """
    variance = s.square()
    return torch.where(variance > 0, (variance + penalty * variance.mean()).sqrt(), torch.inf)


@register_map("weighted_cosine")
class WeightedCosine(nn.Module):
    """Unit rows whose dot product is a weighted cosine, `sum_j w_j u_j v_j` with `u = n(x W)`.

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


SIMILARITIES = ("cosine", "csa", "gaussian")
"""How canonical variates are compared, see `CCA`."""
UNSHARED = 0.1
"""Share of a canonical variate's variance that the Gaussian score never takes for shared: without
it one correlation near 1 would decide.
"""


@register("cca")
@dataclass(frozen=True, repr=False)
class CCA(Estimator):
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
        similarity: one of `SIMILARITIES`.
        dims: largest shares of the canonical dimensions kept, tried in turn.
        smallest, largest: range of relative penalties, evenly spaced in logarithm; one penalty
            where they are equal.

    Source:
        Hotelling 1936; ridge: Vinod 1976; CSA: Li et al., arXiv 2410.07610 (which has no ridge: it
        is our addition); Gaussian model: Bach and Jordan, A probabilistic interpretation of
        canonical correlation analysis, 2005; to score pairs by its likelihood ratio is what
        probabilistic LDA does with one view (Ioffe, ECCV 2006), the cosine in place of its squares
        is ours.

    >>> x_a = torch.randn(100, 8, generator=torch.Generator().manual_seed(0))
    >>> form = CCA("gaussian").fit(x_a[:80], x_a[:80, :6])
    >>> form.encode_a(x_a).shape  # half of the 6 canonical dimensions
    torch.Size([100, 3])
    """

    similarity: str = "cosine"
    dims: tuple[float, ...] = (0.5, 1.0)
    smallest: float = 1e-1
    largest: float = 1e1

    def __post_init__(self) -> None:
        check_range(self.smallest, self.largest)
        check_one_of("similarity", self.similarity, SIMILARITIES)
        check_values("dims", self.dims, above=0, most=1)

    def settings(self, count: int, pairs: int) -> Sequence[Setting]:  # noqa: ARG002
        """At most `count` settings, the strongest penalty and fewest dimensions first."""
        steps = max(1, count // len(self.dims))
        return grid(count, penalty=log_spaced(self.largest, self.smallest, steps), share=self.dims)

    def default_setting(self, pairs: int) -> Setting:  # noqa: ARG002
        """The middle penalty of the range and the first share of the dimensions."""
        return {"penalty": middle(self.smallest, self.largest), "share": self.dims[0]}

    def candidates(self, samples: FitData, settings: Sequence[Setting]) -> Iterator[Maps]:
        """The maps of each setting, one small decomposition per penalty."""
        directions = cache(CanonicalFits(samples.x_a, samples.x_b).__call__)
        for setting in settings:
            a, b, rho = directions(setting["penalty"])
            kept = max(1, round(setting["share"] * len(rho)))
            yield self._maps(*(values[..., :kept].contiguous() for values in (a, b, rho)))

    def _maps(self, a: Tensor, b: Tensor, rho: Tensor) -> Maps:
        """Maps of the directions that are kept, whose cosine is the score."""
        if self.similarity == "csa":
            return WeightedCosine(a, rho, 0), WeightedCosine(b, rho, 1)
        if self.similarity == "gaussian":
            root = (rho / (1 + UNSHARED - rho.square())).sqrt()
            a, b = a * root, b * root
        return Linear(*a.shape, weight=a), Linear(*b.shape, weight=b)
