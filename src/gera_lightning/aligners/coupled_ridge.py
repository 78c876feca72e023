"""Coupled ridge: both modalities regress onto the pairs themselves.

Legend: `n` pairs, `m` rows to map.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gera_lightning.aligners.base import FitData, Maps, Setting
from gera_lightning.aligners.kernel_ridge import RbfMap, check_room, rbf
from gera_lightning.models.maps import Center, Concat, Identity, Sequential, WeightedBlocks
from gera_lightning.utils.errors import UserError
from gera_lightning.utils.instantiate import register


def anchor_regression(x: Tensor, eps: float, penalty: float) -> Tensor:
    """`(K + penalty I)^-1` of rows `[n, D]` with K their RBF kernel: `k(u, X)` times it regresses u
    onto the rows' one-hot numbers.
    """
    identity = torch.eye(len(x), dtype=x.dtype, device=x.device)
    return torch.cholesky_inverse(torch.linalg.cholesky(rbf(x, x, eps) + penalty * identity))


def mean_kernel(pool: Tensor, x: Tensor, eps: float, chunk: int = 4096) -> Tensor:
    """Mean of `k(u, X)` over the pool's rows u, `[N, D], [n, D] -> [n]`; zero without a pool."""
    total = torch.zeros(len(x), dtype=x.dtype, device=x.device)
    for rows in pool.split(chunk) if len(pool) else ():
        total += rbf(rows, x, eps).sum(0)
    return total / max(len(pool), 1)


@register("coupled_ridge")
@dataclass(frozen=True)
class CoupledRidge:
    """Each modality regresses onto the pairs themselves, one coordinate a pair: `z = n(r(x) - mean
    over the pool of r)`.

    `r_a(x) = k(x, X_a) (K_a + lam I)^-1` is kernel ridge regression onto the pairs' one-hot
    numbers. Its linear form scores `x_a' (C_aa + lam)^-1 C_ab (C_bb + lam)^-1 x_b`, both sides
    whitened; against ASIF, which compares rows by their similarities to the pairs, similarities
    that several pairs share are counted once. Kernel `exp(-d2 / eps)`; eps and lam are tuned
    together.

    With `predict` the same solve also predicts embeddings, `f(x) = r_a(x) X_b` and `g(x) = r_b(x)
    X_a`, which is kernel ridge regression both ways, less their means over the pools: `z_a =
    [n(f(x)); sqrt 2 z; n(x)] / 2`, `z_b = [n(x); sqrt 2 z; n(g(x))] / 2`, so the score is the mean
    of the coupled cosine and of the regressions' cosines. The composition is ours.

    Attributes:
        settings_tried: pairs of eps (a squared distance between unit rows) and lam (K having
            diagonal 1), the one to start from first.
        predict: average with the regressions between the two spaces.
        centered: subtract the pools' means; False takes each modality's rows as they are.
    """

    settings_tried: tuple[tuple[float, float], ...] = (
        *(
            (0.67, 0.3),
            (2.0, 0.3),
            (4.0, 3.0),
        ),  # narrow, wide, and strongly penalised where the rows are noisy
        *((0.67, 0.1), (1.0, 0.1), (1.0, 1.0), (2.0, 1.0)),
    )
    predict: bool = True
    centered: bool = True

    def __post_init__(self) -> None:
        if not self.settings_tried or not all(
            len(pair) == 2 and min(pair) > 0 for pair in self.settings_tried
        ):
            raise UserError(
                f"settings_tried={self.settings_tried} must hold pairs [eps, lam], both above 0"
            )

    def settings(self, count: int, pairs: int) -> Sequence[Setting]:
        """At most `count` settings."""
        check_room(pairs)
        return [{"eps": eps, "penalty": penalty} for eps, penalty in self.settings_tried[:count]]

    def candidates(self, samples: FitData, settings: Sequence[Setting]) -> Iterator[Maps]:
        """The maps of each setting, one linear solve a modality."""
        n, dim_a, dim_b = len(samples.x_a), samples.x_a.shape[1], samples.x_b.shape[1]
        means: dict[float, tuple[Tensor, Tensor]] = {}
        for setting in settings:
            eps = setting["eps"]
            if eps not in means:
                means[eps] = (
                    self._mean(samples.pool_a, samples.x_a, eps),
                    self._mean(samples.pool_b, samples.x_b, eps),
                )
            mean_a, mean_b = means[eps]
            solve_a, solve_b = (
                anchor_regression(x, eps, setting["penalty"]) for x in (samples.x_a, samples.x_b)
            )

            def regressed(
                x: Tensor, mean: Tensor, *targets: Tensor, eps: float = eps
            ) -> list[nn.Module]:
                # one kernel serves all targets; the regression is linear in it, so its mean over
                # the pool is that of k times the weights
                weight = torch.cat(targets, dim=1)
                return [RbfMap(x, weight, eps), Center(mean @ weight)]

            if not self.predict:
                yield (
                    Sequential(*regressed(samples.x_a, mean_a, solve_a)),
                    Sequential(*regressed(samples.x_b, mean_b, solve_b)),
                )
                continue
            # blocks [f(x); z; x] of a against [x; z; g(x)] of b, so that what a kernel gives stands
            # together on either side
            f_z = regressed(samples.x_a, mean_a, solve_a @ samples.x_b, solve_a)
            z_g = regressed(samples.x_b, mean_b, solve_b, solve_b @ samples.x_a)
            yield (
                Concat(
                    Sequential(*f_z, WeightedBlocks([dim_b, n], [1, 2])),
                    Identity(dim_a),
                    shares=[3, 1],
                ),
                Concat(
                    Identity(dim_b),
                    Sequential(*z_g, WeightedBlocks([n, dim_a], [2, 1])),
                    shares=[1, 3],
                ),
            )

    def _mean(self, pool: Tensor, x: Tensor, eps: float) -> Tensor:
        """The pool's mean kernel to the pairs' rows; zero where nothing is subtracted."""
        return mean_kernel(pool if self.centered else pool[:0], x, eps)
