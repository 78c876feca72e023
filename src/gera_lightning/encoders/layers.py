"""Which layers of a network make rows: one, several at once, or all.

Layer 0 is the input of the first transformer layer, layer k the output of the k-th. -1 is the last
layer, after the network's final norm where it has one. Several layers cost one pass over the data;
each becomes a store of its own.

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
    """The layers of a network that make rows.

    Attributes:
        chosen: their numbers, ascending.
        last: number of the network's last layer.
        several: whether rows are `[n, L, D]`, for one store per layer, or `[n, D]`, for one store.

    >>> Layers.of([6, -1], last=12).store_names
    ['layer_06', 'layer_12']
    >>> Layers.of(-1, last=12).chosen
    (12,)
    """

    chosen: tuple[int, ...]
    last: int
    several: bool

    @classmethod
    def of(cls, layer: Layer, last: int, first: int = 0) -> Layers:
        """Read the setting `layer`, for a network whose layers are `first` to `last`.

        Raises:
            UserError: a layer that the network does not have, or no layer.
        """
        if layer == "all":
            return cls(tuple(range(first, last + 1)), last, several=True)
        asked: list[Any] = [layer] if isinstance(layer, int | str) else list(layer)
        if not asked or not all(isinstance(each, int) for each in asked):
            raise UserError("is not a number, a list of numbers, or all", key="layer", value=layer)
        chosen = [each + last + 1 if each < 0 else each for each in asked]
        for each, number in zip(asked, chosen, strict=True):
            if not first <= number <= last:
                raise UserError(
                    f"is not one of {first} to {last} (or -1, the last)", key="layer", value=each
                )
        return cls(tuple(sorted(set(chosen))), last, several=not isinstance(layer, int))

    @property
    def needs_hidden_states(self) -> bool:
        """Whether the network has to return its hidden states: for layers before the last."""
        return min(self.chosen) < self.last

    @property
    def numbers(self) -> int | list[int]:
        """The chosen layer, or layers, as a manifest states them."""
        return list(self.chosen) if self.several else self.chosen[0]

    @property
    def store_names(self) -> list[str]:
        """Folders of the stores inside the one that a user names; "" is that folder itself."""
        return [f"layer_{number:02d}" for number in self.chosen] if self.several else [""]

    def states(self, out: Any) -> list[Tensor]:
        """States `[n, T, D]` of each chosen layer, from what a `transformers` network returns."""
        return [
            out.hidden_states[number] if number < self.last else out.last_hidden_state
            for number in self.chosen
        ]

    def stack(self, rows: Sequence[Tensor]) -> Tensor:
        """Rows `[n, D]` of each chosen layer as `[n, L, D]`; of a single layer as they are."""
        return torch.stack(list(rows), dim=1) if self.several else rows[0]
