"""Coupled ridge: both modalities regress onto the pairs themselves.

Legend: `n` pairs, `m` rows to map.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gera_lightning.aligners.base import Maps, Samples, Setting, grid
from gera_lightning.aligners.kernel_ridge import RbfMap, rbf
from gera_lightning.errors import UserError
from gera_lightning.heads import Chain, Shift


def anchor_regression(x: Tensor, eps: float, penalty: float) -> RbfMap:
    """Kernel ridge regression of rows onto their own one-hot numbers: `r(u) = k(u, X) (K + penalty I)^-1`, `[m, D] -> [m, n]`."""
    identity = torch.eye(len(x), dtype=x.dtype, device=x.device)
    return RbfMap(x, torch.linalg.solve(rbf(x, x, eps) + penalty * identity, identity), eps)


def centered_on(mapping: nn.Module, pool: Tensor) -> nn.Module:
    """The map less its mean over the pool: what is common to all rows tells none apart. Without a pool, the map itself."""
    return Chain(mapping, Shift(mapping(pool).mean(0))) if len(pool) else mapping


@dataclass(frozen=True)
class CoupledRidge:
    """The shared space has one coordinate a pair, and each modality regresses onto it: `z = n(r(x) - mean over the pool of r)`.

    `r_a(x) = k(x, X_a) (K_a + lam I)^-1` is kernel ridge regression onto the pairs' one-hot numbers. Its linear form scores
    `x_a' (C_aa + lam)^-1 C_ab (C_bb + lam)^-1 x_b`, both sides whitened; against ASIF, which compares rows by their similarities to the
    pairs, similarities that several pairs share are counted once. Kernel `exp(-d2 / eps)`; eps and lam are tuned together.

    The composition is ours.

    Attributes:
        bandwidths: eps, squared distances between unit rows.
        penalties: lam for each of them, K having diagonal 1.
        centered: subtract the pool's mean.
    """

    bandwidths: tuple[float, ...] = (2.0, 1.0)
    penalties: tuple[float, ...] = (1.0, 0.3)
    centered: bool = True

    def __post_init__(self) -> None:
        if len(self.bandwidths) != len(self.penalties) or not self.bandwidths or min(*self.bandwidths, *self.penalties) <= 0:
            raise UserError(f"bandwidths={self.bandwidths} and penalties={self.penalties} must be as many, all above 0")

    def settings(self, count: int, pairs: int) -> list[Setting]:  # noqa: ARG002
        """`count` settings at most, the smoothest first."""
        return [{"eps": eps, "penalty": penalty} for eps, penalty in zip(self.bandwidths, self.penalties, strict=True)][:count]

    def candidates(self, samples: Samples, settings: Sequence[Setting]) -> Iterator[Maps]:
        """The maps of each setting, one linear solve a modality."""
        sides = ((samples.x_a, samples.pool_a), (samples.x_b, samples.pool_b))
        for setting in settings:
            maps = [anchor_regression(x, setting["eps"], setting["penalty"]) for x, _ in sides]
            if self.centered:
                yield centered_on(maps[0], sides[0][1]), centered_on(maps[1], sides[1][1])
            else:
                yield maps[0], maps[1]
