"""Affinities to Markov operators: diffusion on patches and over a whole neighbour graph.

Legend: `A` anchors, `M = K + 1` points of a patch (the anchor first), `N` points of a modality, `K`
neighbours, `D` width. The density normalisation is that of Coifman & Lafon, Diffusion maps, 2006.
The operators are our definition; GeRA (arXiv 2310.00672) names a heat-kernel diffusion operator
over nearest neighbours without more detail in what is public.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gera_lightning.geometry.kernels import (
    BANDWIDTHS,
    KERNELS,
    bandwidth,
    bandwidth_floor,
    squared_distances,
)
from gera_lightning.utils.errors import UserError, check_one_of

SMALLEST = 1e-10
"""What keeps a row of affinities above 0."""


def normalize_density(w: Tensor, alpha: float, density: Tensor | None = None) -> Tensor:
    """`W_jl / (q_j q_l)^alpha`, `q_j = sum_l W_jl`: alpha = 1 makes diffusion independent of
    sampling density.

    Args:
        w: affinities `[..., M, M]`.
        alpha: 0 leaves them as they are.
        density: `q` `[..., M]` from elsewhere (say, the whole graph); by default the patch's own,
            which is **local** to it.
    """
    if alpha == 0:
        return w
    q = w.sum(-1) if density is None else density
    q = q**alpha
    return w / (q.unsqueeze(-1) * q.unsqueeze(-2))


def markov_operator(w: Tensor) -> Tensor:
    """`P = D^-1 W`: rows sum to 1."""
    return w / w.sum(-1, keepdim=True)


def effective_neighbors(p: Tensor) -> Tensor:
    """`exp(entropy)` of each row of P, `[..., M, M] -> [..., M]`: M for a flat row, 1 for a row on
    one point.
    """
    return torch.exp(torch.special.entr(p).sum(-1))


@dataclass(frozen=True)
class DiffusionOperator:
    """Squared distances of a patch to its row-stochastic diffusion operator; fields are the
    hyper-parameters.

    Attributes:
        kernel: `heat`, `student` or `laplacian`.
        bandwidth: rule for eps: `patch`, `self_tuning`, `global` or `fixed`.
        factor: multiple of the rule's scale; None: `calibrated` chooses it from frozen patches.
        neighbor: the neighbour that sets the self-tuning scale.
        alpha: density normalisation, 0 to 1.
        power: `P^power`, steps of diffusion.
        self_loops: keep each point's affinity to itself. In high dimension neighbours are nearly as
            far as strangers, self-affinity then takes most of every row, and P hardly tells one
            geometry from another; without it rows compare neighbours alone.
    """

    kernel: str = "heat"
    bandwidth: str = "patch"
    factor: float | None = None
    neighbor: int = 7
    alpha: float = 1.0
    power: int = 1
    self_loops: bool = True

    def __post_init__(self) -> None:
        check_one_of("kernel", self.kernel, list(KERNELS))
        check_one_of("bandwidth", self.bandwidth, list(BANDWIDTHS))
        for key, value, low in (
            ("factor", self.factor, 0),
            ("neighbor", self.neighbor, 0),
            ("power", self.power, 0),
        ):
            if value is not None and value <= low:
                raise UserError(f"{key}={value} must be above {low}")
        if not 0 <= self.alpha <= 1:
            raise UserError(f"alpha={self.alpha} must lie between 0 and 1")

    def eps(self, d2: Tensor, scale: Tensor | float, floor: float | None = None) -> Tensor:
        """Bandwidth for `d2`, see `kernels.bandwidth`; the floor is that of `scale` unless given."""
        if self.factor is None:
            raise UserError(
                "factor is not set: give a number, or let `calibrated` choose it from frozen"
                " patches"
            )
        floor = bandwidth_floor(float(scale)) if floor is None else floor
        return bandwidth(d2, self.bandwidth, self.factor, scale, self.neighbor, floor)

    def __call__(
        self,
        d2: Tensor,
        *,
        scale: Tensor | float = 1.0,
        eps: Tensor | None = None,
        density: Tensor | None = None,
    ) -> Tensor:
        """The operator `P^power` of each patch, `[..., M, M]`, rows sum to 1.

        Args:
            d2: squared distances `[..., M, M]`.
            scale: median squared edge length of the modality's graph (bandwidth `global`, and the
                floor of eps).
            eps: bandwidth from elsewhere, tying this operator to another's.
            density: see `normalize_density`.
        """
        w = KERNELS[self.kernel](d2, self.eps(d2, scale) if eps is None else eps)
        if not self.self_loops:  # a row without a neighbour in sight becomes flat, not 0 / 0
            w = (w + SMALLEST) * (1 - torch.eye(w.shape[-1], dtype=w.dtype, device=w.device))
        p = markov_operator(normalize_density(w, self.alpha, density))
        return torch.linalg.matrix_power(p, self.power) if self.power > 1 else p

    def flat(self, points: int) -> Tensor:
        """The operator of a collapsed patch, `[M, M]`: every point as near as every other."""
        loops = 0.0 if self.self_loops else 1.0
        return (1 - loops * torch.eye(points, dtype=torch.float64)) / (points - loops)

    def calibrated(self, d2: Tensor, *, scale: Tensor | float = 1.0) -> DiffusionOperator:
        """This operator with the largest factor (to 1 %) at which rows see at most M/2 effective
        neighbours on average.

        A kernel flatter than that sees little geometry: with eps = mean d2 and alpha = 1 a map to
        independent random points is hardly told from the identity. The rule is ours. A given
        `factor` is kept.

        Args:
            d2: frozen patches `[A, M, M]` to choose on.
            scale: as in `__call__`.
        """
        if self.factor is not None:
            return self
        target = d2.shape[-1] / 2
        shift = 0.0
        if self.bandwidth == "fixed":  # there the factor is a squared distance, not a multiple
            shift = float(torch.log(torch.as_tensor(scale, dtype=torch.float64).clamp(min=1e-12)))

        def seen(log_factor: float) -> float:
            operator = dataclasses.replace(self, factor=math.exp(log_factor))
            return float(effective_neighbors(operator(d2, scale=scale)).mean())

        # from the top: far below, where all affinities of a row vanish, rows without self-loops
        # turn flat again
        tried = [4 + shift - 0.5 * step for step in range(37)]
        low = next((value for value in tried if seen(value) <= target), None)
        if low is None:
            return dataclasses.replace(self, factor=math.exp(min(tried, key=seen)))
        high = low + 0.5
        while high - low > 0.01:
            middle = (low + high) / 2
            low, high = (low, middle) if seen(middle) > target else (middle, high)
        return dataclasses.replace(self, factor=math.exp(low))


def sparse_matrix(i: Tensor, j: Tensor, values: Tensor, n: int) -> Tensor:
    """The sparse matrix `[n, n]` with `values` at rows `i` and columns `j`; of several at one place
    their sum.
    """
    # said once, and not to the constructor alone: some releases of torch warn of what `coalesce`
    # makes unless checks are ruled out there too
    with torch.sparse.check_sparse_tensor_invariants(enable=False):
        return torch.sparse_coo_tensor(torch.stack([i, j]), values, (n, n)).coalesce()


def edge_weights(d2: Tensor, kernel: str, eps: float) -> Tensor:
    """Kernel weights of edges with squared lengths `d2`, elementwise."""
    if kernel == "laplacian":  # no edge is a diagonal entry
        return torch.exp(-torch.sqrt(d2 / eps))
    return KERNELS[kernel](d2, torch.as_tensor(eps, dtype=d2.dtype, device=d2.device))


def patch_operator(
    x_AMD: Tensor, operator: DiffusionOperator, *, scale: Tensor | float = 1.0
) -> Tensor:
    """The diffusion operator of each patch of points `[A, M, D] -> [A, M, M]`."""
    return operator(squared_distances(x_AMD), scale=scale)
