"""A filter's image beside the features themselves.

Legend: `n` rows, `N` pool rows, `D` frozen width.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gera_lightning.filters.base import Filter, Graph
from gera_lightning.models.maps import Concat, Identity
from gera_lightning.utils.instantiate import expect, register


@register("beside")
@dataclass(frozen=True)
class Beside:
    """A filter's image beside the features themselves: `[n(x); n(filter(x))] / sqrt 2`.

    So what the filter blurs is not lost.

    Attributes:
        filter: the other filter.

    >>> import torch
    >>> from gera_lightning.filters import LocalCentering
    >>> Beside(LocalCentering(clusters=2)).fit(torch.eye(4))(torch.eye(4)).shape
    torch.Size([4, 8])
    """

    filter: Filter

    def __post_init__(self) -> None:
        expect(self.filter, Filter, "filter", "graph_diffusion")

    def fit(self, pool: Tensor) -> Concat:
        """The filter's map, `[n, D] -> [n, 2 D]`."""
        return Concat(Identity(pool.shape[1]), self.filter.fit(pool))

    def fit_on_graph(self, pool: Tensor, graph: Graph) -> Concat:
        """The same, on a neighbour graph of the pool that is known, see `fit_filters`."""
        on_graph = getattr(self.filter, "fit_on_graph", None)
        inner = self.filter.fit(pool) if on_graph is None else on_graph(pool, graph)
        return Concat(Identity(pool.shape[1]), inner)
