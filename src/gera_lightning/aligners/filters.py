"""Filters of frozen features, fitted on a modality's pool: what its unpaired rows say about which directions and neighbours count.

Legend: `n` rows, `N` pool rows, `D` frozen width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from gera_lightning.errors import UserError
from gera_lightning.geometry.diffusion import DiffusedFeatures
from gera_lightning.heads import Chain, Linear, Unit, saved_as

saved_as("diffused")(DiffusedFeatures)


class Filter(Protocol):
    """A filter of features; its fields are its hyper-parameters."""

    def fit(self, pool: Tensor) -> nn.Module:
        """The filter's map `[n, D] -> [n, D]`, fitted on a pool `[N, D]`."""
        ...


@dataclass(frozen=True)
class Whitening:
    """`x (C + floor * mean eigenvalue * I)^(-power/2)`, C the pool's covariance: evens out the directions that a pool varies in.

    Frozen encoders spend most of their variance on few directions (length, voice, topic); what tells rows apart lies in the others.

    Attributes:
        power: 0 changes nothing, 1 whitens.
        floor: how far small eigenvalues are lifted.
    """

    power: float = 0.5
    floor: float = 1.0

    def __post_init__(self) -> None:
        if self.floor <= 0:
            raise UserError(f"floor={self.floor} must be above 0")

    def fit(self, pool: Tensor) -> Linear:
        """The filter's map."""
        values, vectors = torch.linalg.eigh(pool.T.double() @ pool.double() / max(len(pool), 1))
        lifted = values.clamp(min=0) + self.floor * values.mean().clamp(min=1e-12)
        weight = (vectors * (lifted / lifted.max()) ** (-self.power / 2)) @ vectors.T
        return Linear(pool.shape[1], pool.shape[1], weight=weight.to(pool.dtype))


def fit_filters(filters: Sequence[Filter], pool: Tensor) -> tuple[Chain, Tensor]:
    """Filters fitted one after the other on a pool `[N, D]`, each followed by normalisation; their map, and the filtered pool."""
    maps: list[nn.Module] = []
    with torch.no_grad():
        for part in filters:
            maps += [part.fit(pool), Unit()]
            pool = Chain(*maps[-2:])(pool)
    return Chain(*maps), pool
