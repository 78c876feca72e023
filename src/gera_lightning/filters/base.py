"""What a filter of frozen features is, and how several are fitted one after the other.

Legend: `n` rows, `N` pool rows, `D` frozen width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from gera_lightning.models.maps import Normalize, Sequential


@runtime_checkable
class Filter(Protocol):
    """A filter of features; its fields are its hyper-parameters."""

    def fit(self, pool: Tensor) -> nn.Module:
        """The filter's map of rows `[n, D]`, fitted on a pool `[N, D]`."""
        ...


def fit_filters(filters: Sequence[Filter], pool: Tensor) -> tuple[Sequential, Tensor]:
    """Filters fitted one after the other on a pool `[N, D]`, each followed by normalisation; their
    map, and the filtered pool.
    """
    maps: list[nn.Module] = []
    with torch.no_grad():
        for part in filters:
            maps += [part.fit(pool), Normalize()]
            pool = Sequential(*maps[-2:])(pool)
    return Sequential(*maps), pool
