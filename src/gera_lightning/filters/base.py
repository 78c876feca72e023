"""What a filter of frozen features is, and how several are fitted one after the other.

Legend: `n` rows, `N` pool rows, `D` frozen width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from gera_lightning.geometry.neighbors import NeighborGraph
from gera_lightning.models.maps import Normalize, Sequential, normalized

Graph = Callable[[int], NeighborGraph]
"""The neighbour graph of a pool, with so many neighbours."""


@runtime_checkable
class Filter(Protocol):
    """A filter of features: its fields are its hyper-parameters, `fit` gives its map.

    `GraphDiffusion().fit(pool)(x)` filters rows x by what the pool's rows say.
    """

    def fit(self, pool: Tensor) -> nn.Module:
        """The filter's map of rows `[n, D]`, fitted on a pool `[N, D]` of any size, even empty.

        It is a registered map, so that an aligner can hold it.
        """
        ...


def fit_filters(
    filters: Sequence[Filter], pool: Tensor, graph: Graph | None = None
) -> tuple[Sequential, Tensor]:
    """Filters fitted one after the other, each on what the one before makes of the pool.

    Args:
        filters: in order; each is followed by normalisation.
        pool: `[N, D]`.
        graph: the neighbour graph of the pool with so many neighbours, where it is known already;
            for the first filter, if that has a `fit_on_graph(pool, graph)`.

    Returns:
        their map, and the filtered pool.

    >>> from gera_lightning.filters import GraphDiffusion, LocalCentering
    >>> mapping, pool = fit_filters([LocalCentering(2), GraphDiffusion(k=2)], torch.eye(5))
    >>> bool(torch.allclose(mapping(torch.eye(5)), pool))
    True
    """
    maps: list[nn.Module] = []
    with torch.no_grad():
        for each in filters:
            on_graph = getattr(each, "fit_on_graph", None)
            if graph is None or on_graph is None or maps:
                fitted = each.fit(pool)
            else:
                fitted = on_graph(pool, graph)
            pool = normalized(fitted(pool))
            maps += [fitted, Normalize()]
    return Sequential(*maps), pool
