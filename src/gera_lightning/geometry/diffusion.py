"""Affinities to Markov operators: diffusion on patches and over a whole neighbour graph.

Legend: `A` anchors, `M = K + 1` points of a patch (the anchor first), `N` points of a modality, `K`
neighbours, `D` width. The density normalisation is that of Coifman & Lafon, Diffusion maps, 2006.
The operators are our definition; GeRA (arXiv 2310.00672) names a heat-kernel diffusion operator
over nearest neighbours without more detail in what is public.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gera_lightning.geometry.kernels import (
    BANDWIDTHS,
    KERNELS,
    bandwidth,
    bandwidth_floor,
)
from gera_lightning.utils.errors import UserError, check_one_of

SMALLEST = 1e-10
"""Added to affinities, so that no row sums to 0."""
COARSE_STEP = 0.5
"""Step of log factors in which `calibrated` looks for the factor's neighbourhood."""


def normalize_density(w: Tensor, alpha: float) -> Tensor:
    """`W_jl / (q_j q_l)^alpha`, `q_j = sum_l W_jl`.

    alpha = 1 makes diffusion independent of sampling density.

    Args:
        w: affinities `[..., M, M]`; the density q is that of the patch alone.
        alpha: 0 leaves them as they are.
    """
    if alpha == 0:
        return w
    q = w.sum(-1) ** alpha
    return w / (q.unsqueeze(-1) * q.unsqueeze(-2))


def markov_operator(w: Tensor) -> Tensor:
    """`P = D^-1 W`: rows sum to 1."""
    return w / w.sum(-1, keepdim=True)


def effective_neighbors(p: Tensor) -> Tensor:
    """`exp(entropy)` of each row of P, `[..., M, M] -> [..., M]`.

    M for a flat row, 1 for a row on one point.

    >>> effective_neighbors(torch.tensor([[0.5, 0.5], [1.0, 0.0]]))
    tensor([2., 1.])
    """
    return torch.exp(torch.special.entr(p).sum(-1))


@dataclass(frozen=True)
class DiffusionOperator:
    """Squared distances of a patch to its row-stochastic diffusion operator.

    Its fields are the hyper-parameters.

    Attributes:
        kernel: `heat`, `student` or `laplacian`.
        bandwidth: rule for eps: `patch`, `self_tuning`, `global` or `fixed`.
        factor: multiple of the rule's scale; None chooses it on the patches that the operator is
            called with, see `calibrated`, which keeps one choice for later calls.
        neighbor: the neighbour that sets the self-tuning scale.
        alpha: density normalisation, 0 to 1.
        power: `P^power`, steps of diffusion.
        self_loops: keep each point's affinity to itself. In high dimension neighbours are nearly as
            far as strangers, self-affinity then takes most of every row, and P hardly tells one
            geometry from another; without it rows compare neighbours alone.

    >>> from gera_lightning.geometry import knn_graph, squared_distances
    >>> x = torch.randn(100, 5, generator=torch.Generator().manual_seed(0))
    >>> patches = knn_graph(x, k=8).patches(torch.arange(100))
    >>> p = DiffusionOperator()(squared_distances(x[patches]))
    >>> p.shape, bool(torch.allclose(p.sum(-1), torch.ones(100, 9)))
    (torch.Size([100, 9, 9]), True)
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
        for key in ("factor", "neighbor", "power"):
            value = getattr(self, key)
            if value is not None and value <= 0:
                raise UserError("must be above 0", key=key, value=value)
        if not 0 <= self.alpha <= 1:
            raise UserError("must lie between 0 and 1", key="alpha", value=self.alpha)

    def eps(self, d2: Tensor, scale: Tensor | float, floor: float | None = None) -> Tensor:
        """Bandwidth for `d2`, see `kernels.bandwidth`; the floor is of `scale` unless given."""
        floor = bandwidth_floor(float(scale)) if floor is None else floor
        factor = self.calibrated(d2, scale=scale).factor
        assert factor is not None
        return bandwidth(d2, self.bandwidth, factor, scale, self.neighbor, floor)

    def __call__(
        self, d2: Tensor, *, scale: Tensor | float = 1.0, eps: Tensor | None = None
    ) -> Tensor:
        """The operator `P^power` of each patch, `[..., M, M]`, rows sum to 1.

        Args:
            d2: squared distances `[..., M, M]`.
            scale: median squared edge length of the modality's graph (bandwidth `global`, and the
                floor of eps).
            eps: bandwidth from elsewhere, tying this operator to another's.
        """
        w = KERNELS[self.kernel](d2, self.eps(d2, scale) if eps is None else eps)
        if not self.self_loops:
            # a row whose affinities all vanish becomes flat, not 0 / 0
            w = (w + SMALLEST) * (1 - torch.eye(w.shape[-1], dtype=w.dtype, device=w.device))
        p = markov_operator(normalize_density(w, self.alpha))
        return torch.linalg.matrix_power(p, self.power) if self.power > 1 else p

    def flat(self, points: int) -> Tensor:
        """The operator of a collapsed patch, `[M, M]`: every point as near as every other."""
        loops = 0.0 if self.self_loops else 1.0
        return (1 - loops * torch.eye(points, dtype=torch.float64)) / (points - loops)

    @torch.no_grad()
    def calibrated(self, d2: Tensor, *, scale: Tensor | float = 1.0) -> DiffusionOperator:
        """This operator, its factor chosen so that rows see M/2 effective neighbours on average.

        It is the largest factor, to 1 %, at which they see no more; a given `factor` is kept.

        A kernel flatter than that sees little geometry: with eps = mean d2 and alpha = 1 a map to
        independent random points is hardly told from the identity. The rule is ours.

        Args:
            d2: squared distances of frozen patches `[A, M, M]` to choose on.
            scale: as in `__call__`.
        """
        if self.factor is not None:
            return self

        def seen(log_factor: float) -> float:
            operator = dataclasses.replace(self, factor=math.exp(log_factor))
            return float(effective_neighbors(operator(d2, scale=scale)).mean())

        # under `fixed` the factor is a squared distance, not a multiple of one
        unit = max(float(scale), 1e-12) if self.bandwidth == "fixed" else 1.0
        log_factor = _largest_within(seen, d2.shape[-1] / 2, top=4 + math.log(unit))
        return dataclasses.replace(self, factor=math.exp(log_factor))


def _largest_within(measure: Callable[[float], float], limit: float, top: float) -> float:
    """The largest value, to .01, whose measure is at most `limit`.

    It is looked for from `top` down to `top - 18`; where there is none, it is the one of least
    measure.

    What is measured need not rise all the way: far below, where all affinities of a row vanish,
    rows without self-loops turn flat again. So the bracket is found from the top, then halved.
    """
    coarse = [top - COARSE_STEP * number for number in range(37)]
    low = next((value for value in coarse if measure(value) <= limit), None)
    if low is None:
        return min(coarse, key=measure)
    high = low + COARSE_STEP
    while high - low > 0.01:
        middle = (low + high) / 2
        low, high = (low, middle) if measure(middle) > limit else (middle, high)
    return low


def sparse_matrix(i: Tensor, j: Tensor, values: Tensor, n: int) -> Tensor:
    """Sparse matrix `[n, n]` with `values` at rows `i` and columns `j`, summed where they meet."""
    # around both calls: some releases of torch warn of what `coalesce` makes unless checks are
    # switched off there too
    with torch.sparse.check_sparse_tensor_invariants(enable=False):
        return torch.sparse_coo_tensor(torch.stack([i, j]), values, (n, n)).coalesce()


def edge_weights(d2: Tensor, kernel: str, eps: float) -> Tensor:
    """Kernel weights of edges with squared lengths `d2`, elementwise."""
    if kernel == "laplacian":  # the patch form sets a diagonal, which edges do not have
        return torch.exp(-torch.sqrt(d2 / eps))
    return KERNELS[kernel](d2, torch.as_tensor(eps, dtype=d2.dtype, device=d2.device))
