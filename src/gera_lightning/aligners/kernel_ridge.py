"""Kernel ridge regression between two frozen spaces.

Legend: `n` pairs, `D_in`, `D_out` widths, `m` rows to map.
"""

from __future__ import annotations

import os
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
    check_direction,
    check_range,
    check_values,
    grid,
    log_spaced,
    middle,
    regression_candidates,
)
from gera_lightning.aligners.estimator import Estimator
from gera_lightning.models.maps import register_map
from gera_lightning.utils.errors import UserError
from gera_lightning.utils.instantiate import register


def rbf(x: Tensor, y: Tensor, eps: Tensor | float) -> Tensor:
    """`exp(-|x_i - y_j|^2 / eps)`, `[m, D], [n, D] -> [m, n]`."""
    d2 = x.square().sum(1, keepdim=True) + y.square().sum(1) - 2 * x @ y.T
    return torch.exp(-d2.clamp(min=0) / eps)


def median_d2(x: Tensor) -> float:
    """Median squared distance between rows `[n, D]`, the scale of a bandwidth; 1 for one row."""
    return float(torch.pdist(x).square().median().clamp(min=1e-6)) if len(x) > 1 else 1.0


@register_map("rbf")
class RbfMap(nn.Module):
    """`k(x, anchors) W` with the RBF kernel.

    Args:
        anchors: `[n, D_in]`.
        weight: `W` `[n, D_out]`.
        eps: bandwidth, a squared distance.
        shape: `(n, D_in, D_out)`, for an empty map that weights are loaded into.
    """

    anchors: Tensor
    weight: Tensor

    def __init__(
        self,
        anchors: Tensor | None = None,
        weight: Tensor | None = None,
        eps: float = 1.0,
        *,
        shape: tuple[int, int, int] | None = None,
    ) -> None:
        super().__init__()
        if shape is not None:
            anchors, weight = torch.zeros(shape[0], shape[1]), torch.zeros(shape[0], shape[2])
        assert anchors is not None
        assert weight is not None
        self.register_buffer("anchors", anchors)
        self.register_buffer("weight", weight)
        self.eps = eps

    @property
    def settings(self) -> dict[str, Any]:
        """What, with the weights, rebuilds this map."""
        return {"eps": self.eps, "shape": (*self.anchors.shape, self.weight.shape[1])}

    def forward(self, x: Tensor) -> Tensor:
        """`[m, D_in] -> [m, D_out]`."""
        return rbf(x, self.anchors, self.eps) @ self.weight


MATRICES = 6
"""Matrices of all pairs against each other that a kernel method holds at once, about: both
modalities' kernels and what solves them.
"""


def check_room(pairs: int) -> None:
    """Refuse more pairs than this machine's memory has room for in a kernel method's matrices.

    Raises:
        UserError: with the memory that they need.
    """
    room = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    taken = MATRICES * 4 * pairs**2  # bytes of float32
    if taken > room:
        raise UserError(
            f"are too many: their kernel matrices take about {taken / 2**30:.0f} GiB, this machine"
            f" has {room / 2**30:.0f}",
            key="pairs",
            value=pairs,
            remedy="take a method without them, such as ridge or contrastive, or fewer pairs",
        )


def kernel_ridge_path(x: Tensor, y: Tensor, settings: Sequence[Setting]) -> Iterator[RbfMap]:
    """Kernel ridge maps `f(x) = k(x, X) (K + penalty I)^-1 Y`, `eps = factor * median d2 of X`.

    With `K = V diag(s) V'` the inverse is `V diag(1 / (s + penalty)) V'`: one eigendecomposition
    serves all penalties of a bandwidth.

    Args:
        x: inputs X `[n, D_in]`.
        y: targets Y `[n, D_out]`.
        settings: `factor` and `penalty` of each map.
    """
    scale = median_d2(x)

    @cache
    def spectrum(eps: float) -> tuple[Tensor, Tensor, Tensor]:
        values, vectors = torch.linalg.eigh(rbf(x, x, eps))
        return values.clamp(min=0), vectors, vectors.T @ y  # rounding makes some values negative

    for setting in settings:
        eps = setting["factor"] * scale
        values, vectors, target = spectrum(eps)
        weight = vectors @ (target / (values + setting["penalty"]).unsqueeze(1))
        yield RbfMap(x, weight, eps)


@register("kernel_ridge")
@dataclass(frozen=True, repr=False)
class KernelRidge(Estimator):
    """RBF kernel ridge regression a->b, b->a, or both with their cosines averaged.

    Bandwidth and penalty are tuned.

    `f(x) = k(x, X) (K + lam I)^-1 Y`, `lam = penalty * mean eigenvalue of K` (which is 1), `eps =
    factor * median d2 of the pairs`.

    Attributes:
        direction: `both`, `a_to_b` or `b_to_a`, see `base.regression_maps`.
        factors: bandwidths tried.
        smallest, largest: range of relative penalties, evenly spaced in logarithm.

    >>> x_a = torch.randn(100, 8, generator=torch.Generator().manual_seed(0))
    >>> x_b = x_a.square()  # no linear map finds that
    >>> form = KernelRidge("a_to_b").fit(x_a[:80], x_b[:80], penalty=0.1)
    >>> form.score(x_a[80:], x_b[80:]).shape
    torch.Size([20, 20])
    """

    direction: str = "both"
    factors: tuple[float, ...] = (2.0, 0.5)
    smallest: float = 3e-2
    largest: float = 1.0

    def __post_init__(self) -> None:
        check_direction(self.direction)
        check_range(self.smallest, self.largest)
        check_values("factors", self.factors, above=0)

    def settings(self, count: int, pairs: int) -> Sequence[Setting]:
        """At most `count` settings, the strongest penalty first."""
        check_room(pairs)
        steps = max(1, count // len(self.factors))
        return grid(
            count, penalty=log_spaced(self.largest, self.smallest, steps), factor=self.factors
        )

    def default_setting(self, pairs: int) -> Setting:
        """The middle penalty of the range and the first bandwidth."""
        check_room(pairs)
        return {"penalty": middle(self.smallest, self.largest), "factor": self.factors[0]}

    def candidates(self, samples: FitData, settings: Sequence[Setting]) -> Iterator[Maps]:
        """The maps of each setting, from one eigendecomposition per bandwidth and direction."""

        def fit(x: Tensor, y: Tensor, _pool: Tensor) -> Iterator[RbfMap]:
            return kernel_ridge_path(x, y, settings)

        return regression_candidates(samples, self.direction, fit)
