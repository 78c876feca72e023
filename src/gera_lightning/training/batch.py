"""What a training step holds: row numbers in the stream, rows on the device.

Legend: `A` anchors, `M = K + 1` points of a patch, `U` distinct points of all patches, `n` rows,
`D` width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor

from gera_lightning.data.training_rows import TrainingRows


@dataclass(frozen=True)
class OnDevice:
    """A dataclass of tensors, of numbers, and of the like."""

    def to(self, device: torch.device | str) -> Self:
        """The same on a device."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        moved = {name: v.to(device) for name, v in values.items() if hasattr(v, "to")}
        return replace(self, **moved)


@dataclass(frozen=True)
class Patches(OnDevice):
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
class Unpaired(OnDevice):
    """Unpaired rows of one modality, without neighbours.

    Attributes:
        rows: `[n, D]`.
        count: rows of the global batch.
    """

    rows: Tensor
    count: int


@dataclass(frozen=True)
class Batch(OnDevice):
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
        size: positions per step; all of them, in order, where it is n or more.
        seed, salt: fix the shuffles.
        blocks: positions that stay beside each other, each in one block; by default each is its
            own.
    """

    def __init__(
        self,
        count: int,
        size: int,
        seed: int,
        salt: int,
        blocks: Sequence[np.ndarray] | None = None,
    ) -> None:
        self.count, self.size, self.seed, self.salt = count, min(size, count), seed, salt
        self.blocks = blocks
        self._epoch: tuple[int, np.ndarray] | None = None

    def _shuffle(self, epoch: int) -> np.ndarray:
        if self._epoch is None or self._epoch[0] != epoch:
            rng = np.random.default_rng([self.seed, self.salt, epoch])
            if self.blocks is None:
                order = rng.permutation(self.count)
            else:
                order = np.concatenate([self.blocks[n] for n in rng.permutation(len(self.blocks))])
            self._epoch = epoch, order
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
class HeldOutPairs(OnDevice):
    """Held-out pairs, and what joins them in the galleries.

    Attributes:
        x_a, x_b: rows of the held-out pairs `[n, D_a]`, `[n, D_b]`.
        item: item number of each pair `[n]`.
        more_a, more_b: rows that join the galleries: unpaired ones, and the names of classes.
        name_of: of each row of `more_b`, the number of the item that it names, -1 for none.
    """

    x_a: Tensor
    x_b: Tensor
    item: Tensor
    more_a: Tensor
    more_b: Tensor
    name_of: Tensor

    @classmethod
    def of(cls, rows: TrainingRows, positions: np.ndarray, count: int) -> HeldOutPairs:
        """The pairs at `positions`, and the first `count` rows of each pool, which are shuffled.

        No pool row has its partner in the other gallery. So where there are classes, whose
        unlabelled rows any pool row of a may be, none of them joins; a row of a is looked for among
        the names of all classes, each there once.
        """
        item, named = rows.item_numbers, rows.units != rows.items
        more_a, more_b = rows.a.pool[:count], rows.b.pool[:count]
        names = np.flatnonzero(named)[np.unique(rows.items[named], return_index=True)[1]]
        if len(names):
            other = ~np.isin(rows.b.pool_units[: len(more_b)], rows.items[names])
            more_a = more_a[:0]
            more_b = torch.cat([rows.b.pairs[names], more_b[torch.from_numpy(other)]])
        name_of = torch.full((len(more_b),), -1)
        name_of[: len(names)] = item[names]
        return cls(
            rows.a.pairs[positions],
            rows.b.pairs[positions],
            item[positions].to(more_b.device),
            more_a,
            more_b,
            name_of.to(more_b.device),
        )

    @property
    def unnamed(self) -> Tensor:
        """Which held-out rows of b join the gallery: those that do not stand in `more_b`, `[n]`."""
        return ~torch.isin(self.item, self.name_of)

    @property
    def galleries(self) -> dict[str, Tensor]:
        """Item number of each row of either gallery, -1 for rows of no pair: the held-out rows,
        then those that join them.
        """
        of_none = self.item.new_full((len(self.more_a),), -1)
        return {
            "a": torch.cat([self.item, of_none]),
            "b": torch.cat([self.item[self.unnamed], self.name_of]),
        }
