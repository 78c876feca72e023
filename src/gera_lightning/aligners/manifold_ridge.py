"""Laplacian-regularised ridge and kernel ridge: maps that vary little along a neighbour graph.

Legend: `n` pairs, `N` rows of a graph (the pairs and some unpaired rows), `m` its edges, `D` width
    of the inputs, `D_out` of the targets.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gera_lightning.aligners.base import (
    FitData,
    Maps,
    Setting,
    check_direction,
    check_range,
    fit_by,
    grid,
    log_spaced,
    middle,
    regression_candidates,
)
from gera_lightning.aligners.estimator import Estimator
from gera_lightning.aligners.kernel_ridge import RbfMap, check_room, median_d2, rbf
from gera_lightning.aligners.ridge import ridge_path
from gera_lightning.geometry.diffusion import edge_weights, sparse_matrix
from gera_lightning.geometry.neighbors import NeighborGraph, knn_graph
from gera_lightning.models.maps import Linear
from gera_lightning.utils.errors import UserError
from gera_lightning.utils.instantiate import register


def graph_laplacian(graph: NeighborGraph) -> Tensor:
    """`L = diag(W 1) - W` of an undirected graph, sparse `[N, N]`.

    So `tr(F' L F) = sum over edges of w_ij |f_i - f_j|^2`.

    Two points are joined where either is among the other's neighbours, by `w_ij = exp(-d2_ij /
    median d2 of the edges)`.
    """
    n, k = graph.indices.shape
    i = torch.arange(n, device=graph.indices.device).repeat_interleave(k)
    j = graph.indices.reshape(-1)
    # an edge is one number, whichever end it was found from; its length is the same both ways
    edge, place = torch.unique(torch.minimum(i, j) * n + torch.maximum(i, j), return_inverse=True)
    d2 = graph.distances2.new_zeros(len(edge)).index_copy(0, place, graph.distances2.reshape(-1))
    w = edge_weights(d2, "heat", max(graph.edge_scale, 1e-12))
    i, j = edge // n, edge % n
    # W twice, it is symmetric; an edge counts for the diagonal at both of its ends
    rows, columns = torch.cat([i, j, i, j]), torch.cat([j, i, i, j])
    return sparse_matrix(rows, columns, torch.cat([-w, -w, w, w]), n)


def manifold_ridge_path(
    x: Tensor,
    y: Tensor,
    rows: Tensor,
    laplacian: Tensor,
    smoothness: float,
    penalties: Sequence[float],
) -> Iterator[Tensor]:
    """Linear maps that fit the pairs, are small, and vary little along the graph's edges.

    `W = argmin |x W - y|_F^2 + lam (|W|_F^2 + smoothness * c tr(W' R' L R W))`, R the graph's rows,
    `c = D / tr(R' L R)`: at smoothness 1 both penalties of an average direction weigh alike. With
    `P = I + smoothness * c R' L R` it is ridge regression in the coordinates `x P^(-1/2)`, and `lam
    = penalty *` their mean squared singular value, as in `ridge_path`.

    Args:
        x, y: pairs `[n, D]`, `[n, D_out]`.
        rows: `[N, D]`.
        laplacian: sparse `[N, N]`.
        smoothness: weight of the graph's penalty in that of the norm, at least 0.
        penalties: relative penalties, above 0.

    Yields:
        `W` `[D, D_out]`, one per penalty.

    Source:
        Belkin, Niyogi, Sindhwani, Manifold regularization, JMLR 7, 2006. Their gamma_A is lam / n,
        gamma_I / (l + u)^2 is lam smoothness c / n.
    """
    rough = rows.T @ (laplacian @ rows)
    identity = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    p = identity + smoothness * _scale(x.shape[1], rough.trace()) * rough
    # P = C C': with x~ = x C'^-1 and W = C'^-1 W~ the penalty W' P W is that of plain ridge, |W~|^2
    root = torch.linalg.cholesky(p)
    turned = torch.linalg.solve_triangular(root, x.T, upper=False).T
    for weight in ridge_path(turned, y, penalties):
        yield torch.linalg.solve_triangular(root.T, weight, upper=True)


def manifold_kernel_path(
    y: Tensor, kernel: Tensor, laplacian: Tensor, smoothness: float, penalties: Sequence[float]
) -> Iterator[Tensor]:
    """The same with an RBF kernel: its coefficients at every row of the graph, the pairs first.

    `f = argmin sum_i |f(x_i) - y_i|^2 + lam (|f|_K^2 + smoothness * c tr(F' L F))`, F the values at
    the graph's rows, `c = N / tr(K L K)`. By the representer theorem `f = k(., R) A`; it is kernel
    ridge regression with the kernel that the graph deforms, `k~(u, v) = k(u, v) - k(u, R) (I + M
    K)^-1 M k(R, v)`, `M = smoothness * c L`, and `lam = penalty *` the mean of `k~(x_i, x_i)`.

    Args:
        y: targets `[n, D_out]`.
        kernel: K `[N, N]`.
        laplacian: sparse `[N, N]`.
        smoothness: as in `manifold_ridge_path`.
        penalties: relative penalties, above 0.

    Yields:
        A `[N, D_out]`, one per penalty.

    Source:
        Sindhwani, Niyogi, Belkin, Beyond the point cloud, ICML 2005, for the deformed kernel.
    """
    n, size = len(y), len(kernel)
    identity = torch.eye(size, dtype=kernel.dtype, device=kernel.device)
    rough = laplacian @ kernel
    m_kernel = smoothness * _scale(size, (kernel * rough).sum()) * rough  # M K
    # k~(., x_i) = k(., R) (I - (I + M K)^-1 M K) e_i, needed for the pairs alone
    expansion = identity[:, :n] - torch.linalg.solve(identity + m_kernel, m_kernel[:, :n])
    deformed = kernel[:n] @ expansion  # k~(x_i, x_j)
    deformed = (deformed + deformed.T) / 2  # symmetric but for rounding, which Cholesky refuses
    level = deformed.diagonal().mean()
    for penalty in penalties:
        lam = penalty * level
        root = torch.linalg.cholesky(deformed + lam * identity[:n, :n])
        yield expansion @ torch.cholesky_solve(y, root)


def _scale(size: int, trace: Tensor) -> float:
    """Factor that gives a matrix the identity's trace; 0 if the graph's edges join copies alone,
    such as the names of classes, and it holds nothing but rounding.
    """
    return size / float(trace) if float(trace) > 1e-6 * size else 0.0


@register("manifold_ridge")
@dataclass(frozen=True, repr=False)
class ManifoldRidge(Estimator):
    """Manifold-regularised (kernel) ridge a->b, b->a, or both with their cosines averaged.

    Both penalties are tuned.

    The graph joins the pairs' inputs and unpaired rows of the same modality, as in the paper
    (labelled and unlabelled points).

    Attributes:
        direction: `both`, `a_to_b` or `b_to_a`, see `base.regression_maps`.
        kernel: an RBF kernel, `eps = factor * median d2 of the pairs`; False fits linear maps.
        factor: bandwidth of the kernel.
        smoothness: weights of the graph's penalty tried, see `manifold_ridge_path`.
        smallest, largest: range of relative penalties, evenly spaced in logarithm.
        k: neighbours in the graph.
        unpaired: unpaired rows at most, the first of the shuffled pool: kernel maps keep all of
            them.

    >>> x_a = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
    >>> x_b = x_a[:, :6] + x_a[:, 2:]
    >>> form = ManifoldRidge(k=5).fit(x_a[:40], x_b[:40], x_a[40:180], x_b[40:180], smoothness=1)
    >>> scores, rows = form.search(x_a[180:], x_b[180:], k=1)
    >>> rows[:, 0].tolist() == list(range(20))
    True
    """

    direction: str = "both"
    kernel: bool = False
    factor: float = 0.5
    smoothness: tuple[float, ...] = (0.1, 1.0)
    smallest: float = 0.1
    largest: float = 10.0
    k: int = 10
    unpaired: int = 2000

    def __post_init__(self) -> None:
        check_direction(self.direction)
        check_range(self.smallest, self.largest)
        if not self.smoothness or min(self.smoothness) < 0:
            raise UserError(
                "must hold values of at least 0", key="smoothness", value=self.smoothness
            )
        for key, value, low in (
            ("factor", self.factor, 1e-6),
            ("k", self.k, 1),
            ("unpaired", self.unpaired, 0),
        ):
            if value < low:
                raise UserError(f"must be at least {low}", key=key, value=value)

    def settings(self, count: int, pairs: int) -> Sequence[Setting]:
        """At most `count` settings, the strongest penalty first."""
        if self.kernel:
            check_room(pairs + self.unpaired)
        steps = max(1, count // len(self.smoothness))
        return grid(
            count,
            penalty=log_spaced(self.largest, self.smallest, steps),
            smoothness=self.smoothness,
        )

    def default_setting(self, pairs: int) -> Setting:
        """The middle penalty of the range and the first smoothness."""
        if self.kernel:
            check_room(pairs + self.unpaired)
        return {
            "penalty": middle(self.smallest, self.largest),
            "smoothness": self.smoothness[0],
        }

    def candidates(self, samples: FitData, settings: Sequence[Setting]) -> Iterator[Maps]:
        """The maps of each setting, one decomposition per smoothness and direction."""

        def fit(x: Tensor, y: Tensor, pool: Tensor) -> list[nn.Module]:
            return self._fit(x, y, pool, settings)

        return regression_candidates(samples, self.direction, fit)

    def _fit(
        self, x: Tensor, y: Tensor, pool: Tensor, settings: Sequence[Setting]
    ) -> list[nn.Module]:
        """Maps x -> y, one per setting."""
        rows = torch.cat([x, pool[: self.unpaired]])
        laplacian = graph_laplacian(knn_graph(rows, min(self.k, len(rows) - 1)))
        eps = self.factor * median_d2(x)
        kernel = rbf(rows, rows, eps) if self.kernel else None

        def fit(smoothness: float, mine: list[Setting]) -> Iterator[nn.Module]:
            penalties = [setting["penalty"] for setting in mine]
            if kernel is not None:
                weights = manifold_kernel_path(y, kernel, laplacian, smoothness, penalties)
                return (RbfMap(rows, weight, eps) for weight in weights)
            weights = manifold_ridge_path(x, y, rows, laplacian, smoothness, penalties)
            return (Linear(*weight.shape, weight=weight) for weight in weights)

        return fit_by("smoothness", settings, fit)
