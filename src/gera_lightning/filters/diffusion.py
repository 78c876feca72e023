"""Diffusion of a modality's features over its neighbour graph.

Legend: `N` pool rows, `n` rows, `K` neighbours, `D` width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gera_lightning.filters.base import Graph
from gera_lightning.geometry.diffusion import edge_weights, sparse_matrix
from gera_lightning.geometry.kernels import KERNELS, bandwidth_floor
from gera_lightning.geometry.neighbors import NeighborGraph, knn_graph, search
from gera_lightning.models.maps import register_map
from gera_lightning.utils.errors import UserError, check_one_of
from gera_lightning.utils.instantiate import register

COPY = 1e-6
"""Squared distance below which unit rows count as copies: some rounding steps of float32."""


@register("graph_diffusion")
@dataclass(frozen=True)
class GraphDiffusion:
    """Diffusion of features over the whole neighbour graph, with its out-of-sample form.

    On the graph `X^(t) = P^t X`. P has kernel weights W on the kNN edges, symmetrised by `max(W,
    W')`, and weight 1 from each row to itself, and is normalised by density and by row.

    Out of sample `x^ = (1 - strength) x + strength * sum_j p_j X^(steps-1)_j`, p the kernel weights
    (they sum to 1) of the k nearest pool rows, without a copy of x. So are all rows mapped, the
    pool's own too.

    Attributes:
        k: neighbours.
        kernel: `heat`, `student` or `laplacian`, with eps = factor x median squared edge length.
        factor: multiple of the median squared edge length.
        alpha: density normalisation over the whole graph.
        steps: t, at least 1.
        strength: share of the diffused part in the out-of-sample form.

    >>> pool = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    >>> smooth = GraphDiffusion(k=5).fit(pool)
    >>> smooth(pool[:3] + 0.1).shape
    torch.Size([3, 4])
    """

    k: int = 20
    kernel: str = "heat"
    factor: float = 1.0
    alpha: float = 0.0
    steps: int = 1
    strength: float = 0.5

    def __post_init__(self) -> None:
        check_one_of("kernel", self.kernel, list(KERNELS))
        for key in ("k", "steps"):
            if getattr(self, key) < 1:
                raise UserError("must be at least 1", key=key, value=getattr(self, key))
        if self.factor <= 0:
            raise UserError("must be above 0", key="factor", value=self.factor)
        if not 0 <= self.strength <= 1:
            raise UserError("must lie between 0 and 1", key="strength", value=self.strength)

    def operator(self, graph: NeighborGraph) -> Tensor:
        """Row-stochastic sparse operator P `[N, N]` of a graph."""
        n, k = graph.indices.shape
        w = edge_weights(graph.distances2, self.kernel, self.eps(graph)).reshape(-1)
        i = torch.arange(n, device=w.device).repeat_interleave(k)
        j = graph.indices.reshape(-1)
        # max(W, W'): every edge both ways, as one number; of its copies the larger weight counts
        # (those of one distance are equal)
        edge, place = torch.unique(torch.cat([i * n + j, j * n + i]), return_inverse=True)
        weight = w.new_zeros(len(edge)).scatter_reduce(0, place, torch.cat([w, w]), "amax")
        own = torch.arange(n, device=w.device)
        i, j = torch.cat([edge // n, own]), torch.cat([edge % n, own])
        weight = torch.cat([weight, w.new_ones(n)])
        if self.alpha:
            q = w.new_zeros(n).index_add(0, i, weight) ** self.alpha
            weight = weight / (q[i] * q[j])
        degree = w.new_zeros(n).index_add(0, i, weight)
        return sparse_matrix(i, j, weight / degree[i], n)

    def eps(self, graph: NeighborGraph) -> float:
        """Bandwidth of a graph's edges, a squared distance."""
        return max(self.factor * graph.edge_scale, bandwidth_floor(graph.edge_scale))

    def diffuse(self, x: Tensor, graph: NeighborGraph, steps: int | None = None) -> Tensor:
        """`P^steps x` of the pool's own rows `[N, D]`."""
        steps = self.steps if steps is None else steps
        p = self.operator(graph)
        for _ in range(steps):
            x = p @ x
        return x

    def fit(self, pool: Tensor) -> GraphDiffusionMap:
        """The out-of-sample form of a pool `[N, D]`; fewer than two rows change nothing."""
        return self.fit_on_graph(pool, lambda k: knn_graph(pool, k))

    def fit_on_graph(self, pool: Tensor, known: Graph) -> GraphDiffusionMap:
        """The same, on a neighbour graph of the pool that is known, see `filters.fit_filters`."""
        if len(pool) < 2:
            return GraphDiffusionMap(pool, pool, k=1, eps=1.0, kernel=self.kernel, strength=0.0)
        graph = known(min(self.k, len(pool) - 1))
        source = self.diffuse(pool, graph, self.steps - 1) if self.steps > 1 else pool
        fitted = GraphDiffusionMap(
            pool,
            source,
            k=graph.indices.shape[1],
            eps=self.eps(graph),
            kernel=self.kernel,
            strength=self.strength,
        )
        # mostly the pool itself is mapped next: no second search
        fitted.found = graph.distances2, graph.indices
        return fitted


@register_map("diffused")
class GraphDiffusionMap(nn.Module):
    """`x^ = (1 - strength) x + strength * sum_j p_j source_j` over the k nearest pool rows.

    See `GraphDiffusion`.

    A pool row at distance 0 is taken for x itself and left out, so that rows of the pool and new
    rows are treated alike. A row so far from the pool that its heat weights underflow has those of
    the distances less the nearest one's, which are the same but for rounding.

    Args:
        pool: rows that neighbours are looked up in `[N, D]`.
        source: what is averaged for each of them `[N, D]`.
        k, eps, kernel, strength: neighbours, bandwidth (a squared distance), kernel, share of the
            mean.
        shape: `(N, D)`, for an empty map that weights are loaded into.
    """

    pool: Tensor
    source: Tensor

    def __init__(
        self,
        pool: Tensor | None = None,
        source: Tensor | None = None,
        *,
        k: int,
        eps: float,
        kernel: str,
        strength: float,
        shape: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        if shape is not None:
            pool, source = torch.zeros(*shape), torch.zeros(*shape)
        assert pool is not None
        assert source is not None
        self.register_buffer("pool", pool)
        self.register_buffer("source", source)
        self.k, self.eps, self.kernel, self.strength = k, eps, kernel, strength
        self.found: tuple[Tensor, Tensor] | None = None
        """Distances and numbers of the pool's own neighbours, until the pool is mapped."""

    @property
    def settings(self) -> dict[str, Any]:
        """What, with the weights, rebuilds this map."""
        return {
            "k": self.k,
            "eps": self.eps,
            "kernel": self.kernel,
            "strength": self.strength,
            "shape": tuple(self.pool.shape),
        }

    def forward(self, x: Tensor) -> Tensor:
        """`[n, D] -> [n, D]`."""
        if not self.strength:
            return x
        known, self.found = (self.found, None) if x is self.pool else (None, self.found)
        d2, index = self._neighbors(x, *(known or search(x, self.pool, self.k + 1)))
        nearest = d2[:, :1]
        # so far from the pool that all weights would vanish: distances count from the nearest
        # neighbour's on
        lost = edge_weights(nearest, self.kernel, self.eps) < torch.finfo(x.dtype).tiny
        p = edge_weights(d2 - nearest * lost, self.kernel, self.eps)
        p = p / p.sum(-1, keepdim=True)
        mean = torch.zeros_like(x)
        for j in range(index.shape[1]):  # neighbour by neighbour: memory stays at one [n, D]
            mean.addcmul_(p[:, j : j + 1], self.source[index[:, j]])
        return (1 - self.strength) * x + self.strength * mean

    def _neighbors(self, x: Tensor, d2: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """The k neighbours of each row among the k + 1 nearest pool rows: not its own copy."""
        if index.shape[1] <= self.k:
            return d2, index
        dropped = torch.zeros_like(index, dtype=torch.bool)
        dropped[:, 0] = d2[:, 0] < COPY
        dropped[~dropped[:, 0], -1] = True  # no copy in the pool: the farthest one goes instead
        return d2[~dropped].view(len(x), self.k), index[~dropped].view(len(x), self.k)
