"""Affinities to Markov operators: diffusion on patches and over a whole neighbour graph.

Legend: `A` anchors, `M = K + 1` points of a patch (the anchor first), `N` points of a modality, `K` neighbours, `D` width.
The density normalisation is that of Coifman & Lafon, Diffusion maps, 2006. The operators are our definition; GeRA
(arXiv 2310.00672) names a heat-kernel diffusion operator over nearest neighbours without more detail in what is public.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from gera_lightning.errors import UserError, did_you_mean
from gera_lightning.geometry.kernels import BANDWIDTHS, KERNELS, bandwidth, bandwidth_floor, squared_distances
from gera_lightning.geometry.neighbors import NeighborGraph, search


def normalize_density(w: Tensor, alpha: float, density: Tensor | None = None) -> Tensor:
    """`W_jl / (q_j q_l)^alpha`, `q_j = sum_l W_jl`: alpha = 1 makes diffusion independent of sampling density.

    Args:
        w: affinities `[..., M, M]`.
        alpha: 0 leaves them as they are.
        density: `q` `[..., M]` from elsewhere (say, the whole graph); by default the patch's own, which is **local** to it.
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
    """`exp(entropy)` of each row of P, `[..., M, M] -> [..., M]`: M for a flat row, 1 for a row on one point."""
    return torch.exp(torch.special.entr(p).sum(-1))


@dataclass(frozen=True)
class DiffusionOperator:
    """Squared distances of a patch to its row-stochastic diffusion operator; fields are the hyper-parameters.

    Attributes:
        kernel: `heat`, `student` or `laplacian`.
        bandwidth: rule for eps: `patch`, `self_tuning`, `global` or `fixed`.
        factor: multiple of the rule's scale; None: `calibrated` chooses it from frozen patches.
        neighbor: the neighbour that sets the self-tuning scale.
        alpha: density normalisation, 0 to 1.
        power: `P^power`, steps of diffusion.
    """

    kernel: str = "heat"
    bandwidth: str = "patch"
    factor: float | None = None
    neighbor: int = 7
    alpha: float = 1.0
    power: int = 1

    def __post_init__(self) -> None:
        if self.kernel not in KERNELS:
            raise UserError(f"kernel={self.kernel!r} is not a kernel{did_you_mean(self.kernel, KERNELS)}")
        if self.bandwidth not in BANDWIDTHS:
            raise UserError(f"bandwidth={self.bandwidth!r} is not a bandwidth rule{did_you_mean(self.bandwidth, BANDWIDTHS)}")
        for key, value, low in (("factor", self.factor, 0), ("neighbor", self.neighbor, 0), ("power", self.power, 0)):
            if value is not None and value <= low:
                raise UserError(f"{key}={value} must be above {low}")
        if not 0 <= self.alpha <= 1:
            raise UserError(f"alpha={self.alpha} must lie between 0 and 1")

    def eps(self, d2: Tensor, scale: Tensor | float, floor: float | None = None) -> Tensor:
        """Bandwidth for `d2`, see `kernels.bandwidth`; the floor is that of `scale` unless given."""
        if self.factor is None:
            raise UserError("factor is not set: give a number, or let `calibrated` choose it from frozen patches")
        floor = bandwidth_floor(float(scale)) if floor is None else floor
        return bandwidth(d2, self.bandwidth, self.factor, scale, self.neighbor, floor)

    def __call__(self, d2: Tensor, *, scale: Tensor | float = 1.0, eps: Tensor | None = None, density: Tensor | None = None) -> Tensor:
        """The operator `P^power` of each patch, `[..., M, M]`, rows sum to 1.

        Args:
            d2: squared distances `[..., M, M]`.
            scale: median squared edge length of the modality's graph (bandwidth `global`, and the floor of eps).
            eps: bandwidth from elsewhere, tying this operator to another's.
            density: see `normalize_density`.
        """
        w = KERNELS[self.kernel](d2, self.eps(d2, scale) if eps is None else eps)
        p = markov_operator(normalize_density(w, self.alpha, density))
        return torch.linalg.matrix_power(p, self.power) if self.power > 1 else p

    def calibrated(self, d2: Tensor, *, scale: Tensor | float = 1.0) -> DiffusionOperator:
        """This operator with the largest factor (to 1 %) at which rows see at most M/2 effective neighbours on average.

        A kernel flatter than that sees little geometry: with eps = mean d2 and alpha = 1 a map to independent random points
        is hardly told from the identity. The rule is ours. A given `factor` is kept.

        Args:
            d2: frozen patches `[A, M, M]` to choose on.
            scale: as in `__call__`.
        """
        if self.factor is not None:
            return self
        target = d2.shape[-1] / 2
        low, high = -14.0, 4.0  # log factor
        if self.bandwidth == "fixed":  # there the factor is a squared distance, not a multiple
            shift = float(torch.log(torch.as_tensor(scale, dtype=torch.float64).clamp(min=1e-12)))
            low, high = low + shift, high + shift
        while high - low > 0.01:
            middle = (low + high) / 2
            operator = dataclasses.replace(self, factor=float(torch.tensor(middle).exp()))
            if float(effective_neighbors(operator(d2, scale=scale)).mean()) > target:
                high = middle
            else:
                low = middle
        return dataclasses.replace(self, factor=float(torch.tensor(low).exp()))


@dataclass(frozen=True)
class GraphDiffusion:
    """Diffusion of features over the whole neighbour graph, with its out-of-sample form.

    On the graph: `W` on the kNN edges, symmetrised by `max(W, W')`, self-weight 1, density-normalised, row-normalised;
    `X^(t) = P^t X`. Out of sample (any row that is not of the pool): with kernel weights p (rows sum to 1) to its K nearest
    pool rows, `x^ = (1 - strength) x + strength * sum_j p_j X^(steps-1)_j`.

    Attributes:
        kernel: `heat`, `student` or `laplacian`, with eps = factor x median squared edge length.
        factor: multiple of the median squared edge length.
        alpha: density normalisation over the whole graph.
        steps: t, at least 1.
        strength: share b of the diffused part in the out-of-sample form.
    """

    kernel: str = "heat"
    factor: float = 1.0
    alpha: float = 0.0
    steps: int = 1
    strength: float = 0.5

    def __post_init__(self) -> None:
        if self.kernel not in KERNELS:
            raise UserError(f"kernel={self.kernel!r} is not a kernel{did_you_mean(self.kernel, KERNELS)}")
        if self.steps < 1:
            raise UserError(f"steps={self.steps} must be at least 1")
        if not 0 <= self.strength <= 1:
            raise UserError(f"strength={self.strength} must lie between 0 and 1")

    def weights(self, d2: Tensor, scale: float) -> Tensor:
        """Edge weights of squared distances `[..., K]`, elementwise."""
        eps = torch.as_tensor(max(self.factor * scale, bandwidth_floor(scale)), dtype=d2.dtype, device=d2.device)
        if self.kernel == "laplacian":  # here no entry is a diagonal one
            return torch.exp(-torch.sqrt(d2 / eps))
        return KERNELS[self.kernel](d2, eps)

    def operator(self, graph: NeighborGraph) -> Tensor:
        """Row-stochastic sparse operator P `[N, N]` of a graph."""
        n, k = graph.indices.shape
        w = self.weights(graph.distances2, graph.edge_scale)
        rows = torch.arange(n, device=w.device).repeat_interleave(k)
        cols = graph.indices.reshape(-1)
        # max(W, W'): both directions of every edge, and of the copies the larger (equal distances give equal weights)
        ij = torch.cat([torch.stack([rows, cols]), torch.stack([cols, rows])], 1)
        key, inverse = torch.unique(ij[0] * n + ij[1], return_inverse=True)
        weight = torch.zeros(len(key), dtype=w.dtype, device=w.device)
        weight = weight.scatter_reduce(0, inverse, torch.cat([w.reshape(-1), w.reshape(-1)]), "amax")
        loops = torch.arange(n, device=w.device)
        i, j = torch.cat([key // n, loops]), torch.cat([key % n, loops])
        weight = torch.cat([weight, torch.ones(n, dtype=w.dtype, device=w.device)])
        if self.alpha:
            q = torch.zeros(n, dtype=w.dtype, device=w.device).index_add(0, i, weight) ** self.alpha
            weight = weight / (q[i] * q[j])
        degree = torch.zeros(n, dtype=w.dtype, device=w.device).index_add(0, i, weight)
        return torch.sparse_coo_tensor(torch.stack([i, j]), weight / degree[i], (n, n), check_invariants=False).coalesce()

    def diffuse(self, x: Tensor, graph: NeighborGraph, steps: int | None = None) -> Tensor:
        """`P^steps x` of the pool's own rows `[N, D]`."""
        p = self.operator(graph)
        for _ in range(self.steps if steps is None else steps):
            x = p @ x
        return x

    def out_of_sample(self, x: Tensor, pool: Tensor, graph: NeighborGraph, *, is_pool: bool = False) -> Tensor:
        """The diffused form of rows `x` `[n, D]` against a pool `[N, D]` and its graph.

        Args:
            x: rows to diffuse.
            pool: the pool's rows.
            graph: the pool's graph; its K is used for the rows too.
            is_pool: `x` are the pool's own rows in their order: each excludes itself.
        """
        if is_pool:
            d2, index = graph.distances2, graph.indices
        else:
            d2, index = search(x, pool, graph.indices.shape[1])
        p = self.weights(d2, graph.edge_scale).to(x.dtype)
        p = p / p.sum(-1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)
        source = self.diffuse(pool, graph, self.steps - 1)
        mean = (
            torch.einsum("nk,nkd->nd", p, source[index])
            if len(x) * index.shape[1] * x.shape[1] < 2**27
            else _mean_by_rows(p, index, source)
        )
        return (1 - self.strength) * x + self.strength * mean


def _mean_by_rows(p: Tensor, index: Tensor, source: Tensor) -> Tensor:
    """`sum_j p_nj source[index_nj]` neighbour by neighbour: memory stays at one `[n, D]`."""
    out = torch.zeros(len(p), source.shape[1], dtype=source.dtype, device=source.device)
    for j in range(p.shape[1]):
        out.addcmul_(p[:, j : j + 1], source[index[:, j]])
    return out


def patch_operator(x_AMD: Tensor, operator: DiffusionOperator, *, scale: Tensor | float = 1.0) -> Tensor:
    """The diffusion operator of each patch of points `[A, M, D] -> [A, M, M]`."""
    return operator(squared_distances(x_AMD), scale=scale)
