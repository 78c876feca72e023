"""Which layers of a network make rows: one, several at once, or all.

Layer 0 is the input of the first transformer layer, k the output of layer k, -1 the last one's,
after the network's final norm where it has one. Several layers cost one pass over the data: each
becomes a store of its own, named by `names`.

Legend: `n` items, `T` steps, `L` layers chosen, `D` width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gera_lightning.utils.errors import UserError

Layer = int | str | Sequence[int]
"""What a user writes: `9`, `-1`, `[6, 9, 12]` or `all`."""


@dataclass(frozen=True)
class Layers:
    """Layers chosen of a network.

    Attributes:
        chosen: their numbers from the front, ascending.
        last: the network's number of layers.
        several: whether rows are `[n, L, D]`, a store a layer, or `[n, D]`, one store.
    """

    chosen: tuple[int, ...]
    last: int
    several: bool

    @classmethod
    def of(cls, layer: Layer, last: int, first: int = 0) -> Layers:
        """Read what a user wrote, for a network whose layers are `first` to `last`.

        Raises:
            UserError: a layer that the network does not have, or none at all.
        """
        if layer == "all":
            return cls(tuple(range(first, last + 1)), last, several=True)
        asked = [layer] if isinstance(layer, int) else [] if isinstance(layer, str) else list(layer)
        if not asked or not all(isinstance(each, int) for each in asked):
            raise UserError(f"layer={layer!r} is not a number, a list of numbers, or all")
        found = [each + last + 1 if each < 0 else each for each in asked]
        for each, number in zip(asked, found, strict=True):
            if not first <= number <= last:
                raise UserError(f"layer={each} is not one of {first} to {last} (or -1, the last)")
        return cls(tuple(sorted(set(found))), last, several=not isinstance(layer, int))

    @property
    def inner(self) -> bool:
        """Whether a layer before the last is chosen: only then a network has to keep its hidden
        states.
        """
        return min(self.chosen) < self.last

    @property
    def record(self) -> int | list[int]:
        """As a manifest states it."""
        return list(self.chosen) if self.several else self.chosen[0]

    @property
    def names(self) -> list[str]:
        """Folders of the stores below the one that is asked for; one store lies in that folder
        itself.
        """
        return [f"layer_{number:02d}" for number in self.chosen] if self.several else [""]

    def states(self, out: Any) -> list[Tensor]:
        """States `[n, T, D]` of each layer, of what a `transformers` network returns."""
        return [
            out.hidden_states[number] if number < self.last else out.last_hidden_state
            for number in self.chosen
        ]

    def joined(self, rows: Sequence[Tensor]) -> Tensor:
        """Rows `[n, D]` of each layer as `[n, L, D]`, or `[n, D]` of the one."""
        return torch.stack(list(rows), dim=1) if self.several else rows[0]
