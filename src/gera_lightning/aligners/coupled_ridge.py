"""Coupled ridge: both modalities regress onto the pairs themselves.

Legend: `n` pairs, `m` rows to map, `N` pool rows, `D_in`, `D_out` widths of the own and of the
other modality.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from gera_lightning.aligners.base import FitData, Maps, Setting
from gera_lightning.aligners.estimator import Estimator
from gera_lightning.aligners.kernel_ridge import check_room, rbf
from gera_lightning.models.maps import normalized, register_map
from gera_lightning.utils.errors import UserError
from gera_lightning.utils.instantiate import register


def anchor_regression(x: Tensor, eps: float, penalty: float) -> Tensor:
    """`(K + penalty I)^-1` `[n, n]` of rows `[n, D_in]`, K their RBF kernel.

    `k(u, X)` times it regresses u onto the rows' one-hot numbers.
    """
    identity = torch.eye(len(x), dtype=x.dtype, device=x.device)
    return torch.cholesky_inverse(torch.linalg.cholesky(rbf(x, x, eps) + penalty * identity))


def mean_kernel(pool: Tensor, x: Tensor, eps: float, chunk: int = 4096) -> Tensor:
    """Mean of `k(u, X)` over the pool's rows u, `[N, D_in], [n, D_in] -> [n]`; 0 without a pool."""
    total = torch.zeros(len(x), dtype=x.dtype, device=x.device)
    for rows in pool.split(chunk) if len(pool) else ():
        total += rbf(rows, x, eps).sum(0)
    return total / max(len(pool), 1)


@register_map("coupled")
class CoupledMap(nn.Module):
    """`z = [sqrt(1/4) n(f(x)); sqrt(2/4) n(r(x)); sqrt(1/4) n(x)]`, or `r(x)` alone.

        r(x) = k(x, X) S - mean,   S = (K + lam I)^-1
        f(x) = r(x) Y

    `r` regresses a row onto the pairs, `f` predicts its partner; `n` normalises. The other
    modality's map has its blocks in the opposite order, so that predictions meet rows: the dot
    product of `z_a` and `z_b` is the mean, weighted 1, 2, 1, of `cos(f(x_a), x_b)`,
    `cos(r(x_a), r(x_b))` and `cos(x_a, f(x_b))`.

    Args:
        anchors: the pairs' rows X `[n, D_in]`.
        solve: S `[n, n]`.
        mean: what is subtracted from a regression, its mean over the pool `[n]`.
        targets: the pairs' rows of the other modality Y `[n, D_out]`; None: `r(x)` alone.
        eps: bandwidth of the kernel `exp(-d2 / eps)`, a squared distance.
        reverse: blocks in the opposite order.
        shape: `(n, D_in, D_out)`, D_out 0 without targets, for an empty map that weights are loaded
            into.
    """

    anchors: Tensor
    solve: Tensor
    mean: Tensor
    targets: Tensor | None

    def __init__(
        self,
        anchors: Tensor | None = None,
        solve: Tensor | None = None,
        mean: Tensor | None = None,
        targets: Tensor | None = None,
        *,
        eps: float,
        reverse: bool = False,
        shape: tuple[int, int, int] | None = None,
    ) -> None:
        super().__init__()
        if shape is not None:
            n, dim_in, dim_out = shape
            anchors, solve, mean = torch.zeros(n, dim_in), torch.zeros(n, n), torch.zeros(n)
            targets = torch.zeros(n, dim_out) if dim_out else None
        self.register_buffer("anchors", anchors)
        self.register_buffer("solve", solve)
        self.register_buffer("mean", mean)
        self.register_buffer("targets", targets)
        self.eps, self.reverse = eps, reverse

    @property
    def settings(self) -> dict[str, Any]:
        """What, with the weights, rebuilds this map."""
        dim_out = 0 if self.targets is None else self.targets.shape[1]
        return {"eps": self.eps, "reverse": self.reverse, "shape": (*self.anchors.shape, dim_out)}

    def forward(self, x: Tensor) -> Tensor:
        """`[m, D_in] -> [m, D_out + n + D_in]`, or `[m, n]` without targets."""
        r = rbf(x, self.anchors, self.eps) @ self.solve - self.mean
        if self.targets is None:
            return r
        f = r @ self.targets
        blocks = [normalized(f) / 2, normalized(r) / 2**0.5, normalized(x) / 2]
        return torch.cat(blocks[::-1] if self.reverse else blocks, dim=-1)


@register("coupled_ridge")
@dataclass(frozen=True, repr=False)
class CoupledRidge(Estimator):
    """Both modalities regress onto the pairs and predict each other; the cosines are averaged.

    `r_a(x) = k(x, X_a) (K_a + lam I)^-1` is kernel ridge regression onto the pairs' one-hot
    numbers, less its mean over the pool. Its linear form scores `x_a' (C_aa + lam)^-1 C_ab (C_bb +
    lam)^-1 x_b`, both sides whitened; against ASIF, which compares rows by their similarities to
    the pairs, similarities that several pairs share are counted once. The same solve predicts
    embeddings, `r_a(x) X_b` and `r_b(x) X_a`, which is kernel ridge regression both ways. See
    `CoupledMap` for the score. The composition is ours.

    Attributes:
        settings_tried: pairs of eps (a squared distance between unit rows) and lam (K having
            diagonal 1), the one to start from first.
        predict: average with the regressions between the two spaces; False scores by the coupled
            cosine alone.
        centered: subtract the pools' means; False takes each modality's rows as they are.

    >>> x_a = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
    >>> x_b = x_a[:, :6] + x_a[:, 2:]
    >>> form = CoupledRidge().fit(x_a[:80], x_b[:80], x_a[80:180], x_b[80:180], eps=2.0)
    >>> scores, rows = form.search(x_a[180:], x_b[180:], k=1)
    >>> rows[:, 0].tolist() == list(range(20))
    True
    """

    settings_tried: tuple[tuple[float, float], ...] = (
        # narrow, wide, and strongly penalised where the rows are noisy; then what lies between:
        # after a choice of filters, trials are left for three
        *((0.67, 0.3), (4.0, 0.1), (4.0, 3.0)),
        *((2.0, 0.1), (1.0, 0.1), (1.0, 1.0), (2.0, 1.0)),
    )
    predict: bool = True
    centered: bool = True

    def __post_init__(self) -> None:
        if not self.settings_tried or not all(
            len(pair) == 2 and min(pair) > 0 for pair in self.settings_tried
        ):
            raise UserError(
                "must hold pairs [eps, lam], both above 0",
                key="settings_tried",
                value=self.settings_tried,
            )

    def settings(self, count: int, pairs: int) -> Sequence[Setting]:
        """At most `count` settings."""
        check_room(pairs)
        return [{"eps": eps, "penalty": penalty} for eps, penalty in self.settings_tried[:count]]

    def candidates(self, samples: FitData, settings: Sequence[Setting]) -> Iterator[Maps]:
        """The maps of each setting, one linear solve per modality."""
        x_a, x_b = samples.x_a, samples.x_b
        # settings with one bandwidth share the pass over the pools
        mean_a = cache(lambda eps: self._mean(samples.pool_a, x_a, eps))
        mean_b = cache(lambda eps: self._mean(samples.pool_b, x_b, eps))
        for setting in settings:
            eps, penalty = setting["eps"], setting["penalty"]
            solve_a = anchor_regression(x_a, eps, penalty)
            solve_b = anchor_regression(x_b, eps, penalty)
            of_a = (x_a, solve_a, mean_a(eps) @ solve_a, x_b if self.predict else None)
            of_b = (x_b, solve_b, mean_b(eps) @ solve_b, x_a if self.predict else None)
            yield CoupledMap(*of_a, eps=eps), CoupledMap(*of_b, eps=eps, reverse=True)

    def _mean(self, pool: Tensor, x: Tensor, eps: float) -> Tensor:
        """The pool's mean kernel to the pairs' rows; zero where nothing is subtracted."""
        return mean_kernel(pool if self.centered else pool[:0], x, eps)
