"""What a training step holds: row numbers in the stream, rows on the device.

Legend: `A` anchors, `M = K + 1` points of a patch, `U` distinct points of all patches, `n` rows,
`D` width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor


@dataclass(frozen=True)
class Patches:
    """Anchors of one modality with their neighbours.

    Attributes:
        points: each distinct point of all patches once, `[U, D]`.
        members: positions in `points` of each anchor's patch, the anchor first, `[A, M]`.
        count: anchors of the global batch.
    """

    points: Tensor
    members: Tensor
    count: int


@dataclass(frozen=True)
class Unpaired:
    """Unpaired rows of one modality, without neighbours.

    Attributes:
        rows: `[n, D]`.
        count: rows of the global batch.
    """

    rows: Tensor
    count: int


@dataclass(frozen=True)
class Batch:
    """One process's share of a step.

    Attributes:
        x_a, x_b: paired rows `[b, D_a]`, `[b, D_b]`.
        item: item number of each pair `[b]`.
        patches_a, patches_b: unpaired patches; None without a geometric loss.
        count: pairs of the global batch.
        step: number of the step.
        unpaired_a, unpaired_b: unpaired rows; None without a loss that reads them.
    """

    x_a: Tensor
    x_b: Tensor
    item: Tensor
    patches_a: Patches | None
    patches_b: Patches | None
    count: int
    step: int
    unpaired_a: Unpaired | None = None
    unpaired_b: Unpaired | None = None


class RowStream:
    """Positions 0..n-1 in shuffled epochs without end; step s holds places s*size .. of that
    sequence.

    Args:
        count: n.
        size: positions a step; all of them, in order, where it is n or more.
        seed, salt: fix the shuffles.
    """

    def __init__(self, count: int, size: int, seed: int, salt: int) -> None:
        self.count, self.size, self.seed, self.salt = count, min(size, count), seed, salt
        self._epoch: tuple[int, np.ndarray] | None = None

    def _shuffle(self, epoch: int) -> np.ndarray:
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = (
                epoch,
                np.random.default_rng([self.seed, self.salt, epoch]).permutation(self.count),
            )
        return self._epoch[1]

    def __getitem__(self, step: int) -> np.ndarray:
        if self.size == self.count:
            return np.arange(self.count)
        place, end, parts = step * self.size, (step + 1) * self.size, []
        while place < end:
            epoch, offset = divmod(place, self.count)
            parts.append(self._shuffle(epoch)[offset : offset + end - place])
            place += len(parts[-1])
        return np.concatenate(parts)


@dataclass(frozen=True)
class StepRows:
    """Row numbers of one process's share of a step; patches as (distinct points, members)."""

    step: int
    pairs: np.ndarray
    patches_a: tuple[np.ndarray, np.ndarray] | None
    patches_b: tuple[np.ndarray, np.ndarray] | None
    unpaired_a: np.ndarray | None = None
    unpaired_b: np.ndarray | None = None


@dataclass(frozen=True)
class ValidationBatch:
    """Held-out pairs, and unpaired rows that join the galleries.

    Attributes:
        x_a, x_b: rows of the held-out pairs `[n, D_a]`, `[n, D_b]`.
        item: item number of each pair `[n]`.
        pool_a, pool_b: unpaired rows.
    """

    x_a: Tensor
    x_b: Tensor
    item: Tensor
    pool_a: Tensor
    pool_b: Tensor
