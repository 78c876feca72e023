"""Local centring: a row less the mean of its coarse neighbourhood.

Legend: `n` rows, `N` pool rows, `C` clusters, `D` frozen width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from sklearn.cluster import KMeans
from torch import Tensor, nn

from gera_lightning.models.maps import normalized, register_map
from gera_lightning.utils.errors import UserError
from gera_lightning.utils.instantiate import register


@register("local_centering")
@dataclass(frozen=True)
class LocalCentering:
    """`x - sum_c p_c(x) m_c`: a row less the mean of its coarse neighbourhood.

    p is a softmax of cosines to the cluster means m.

    Where a modality's coarse geometry is a nuisance (a speaker, a room, a renderer), the content
    remains. The overall mean, which preprocessing subtracts, is the case of one cluster.
    Clusters are k-means on the pool. Our own.

    Attributes:
        clusters: C, at least 2.
        temperature: of the softmax over cosines; small takes the nearest mean alone.

    >>> pool = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    >>> centered = LocalCentering(clusters=3).fit(pool)
    >>> centered(pool[:3]).shape
    torch.Size([3, 4])
    """

    clusters: int = 16
    temperature: float = 0.1

    def __post_init__(self) -> None:
        if self.clusters < 2:
            raise UserError("must be at least 2", key="clusters", value=self.clusters)
        if self.temperature <= 0:
            raise UserError("must be above 0", key="temperature", value=self.temperature)

    def fit(self, pool: Tensor) -> LocalCenteringMap:
        """The filter's map; of a pool of fewer rows than clusters every row is one."""
        if not len(pool):
            return LocalCenteringMap(pool.new_zeros(1, pool.shape[1]), self.temperature)
        kmeans = KMeans(min(self.clusters, len(pool)), n_init=1, random_state=0)
        # float64, so that the number of threads does not show in the means
        means = kmeans.fit(pool.double().cpu().numpy()).cluster_centers_
        return LocalCenteringMap(torch.from_numpy(means).to(pool), self.temperature)


@register_map("locally_centered")
class LocalCenteringMap(nn.Module):
    """`x - softmax(n(x) n(m)' / temperature) m`, see `LocalCentering`.

    Args:
        means: cluster means m `[C, D]`.
        temperature: of the softmax.
        shape: `(C, D)`, for an empty map that weights are loaded into.
    """

    means: Tensor

    def __init__(
        self,
        means: Tensor | None = None,
        temperature: float = 0.1,
        *,
        shape: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        if shape is not None:
            means = torch.zeros(*shape)
        assert means is not None
        self.register_buffer("means", means)
        self.temperature = temperature

    @property
    def settings(self) -> dict[str, Any]:
        """What, with the weights, rebuilds this map."""
        return {"temperature": self.temperature, "shape": tuple(self.means.shape)}

    def forward(self, x: Tensor) -> Tensor:
        """`[n, D] -> [n, D]`."""
        cosines = normalized(x) @ normalized(self.means).T
        return x - torch.softmax(cosines / self.temperature, dim=1) @ self.means
