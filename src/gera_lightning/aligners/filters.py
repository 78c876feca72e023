"""Filters of frozen features, fitted on a modality's pool, and a closed form on top of them.

Legend: `n` pairs, `N` pool rows, `D` frozen width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from gera_lightning.aligners.base import ClosedForm, Maps, Samples, Setting
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


class Filtered:
    """A closed form on features that a filter has passed over; which filter is tuned together with the form's own settings.

    Filters are chosen for each modality or for both at once: `filters` lists the choices, each a filter for modality a and one for b.
    Where a filter hurts on held-out pairs of the budget, tuning leaves it out.

    Args:
        base: the closed form.
        filters: choices in order of preference among equals, each `{"a": [filters], "b": [filters]}`, applied in turn; a missing
            side is left as it is.
    """

    def __init__(self, base: ClosedForm, filters: Sequence[Mapping[str, Sequence[Filter]]]) -> None:
        self.base, self.filters = base, []
        for number, choice in enumerate(filters):
            odd = set(choice) - {"a", "b"}
            if odd:
                raise UserError(f"filters[{number}].{sorted(odd)[0]} is not a modality: a or b")
            self.filters.append({side: list(choice.get(side) or ()) for side in "ab"})
        if not self.filters:
            raise UserError("filters is empty: list at least one choice, {} for none")
        self._fitted: dict[Any, tuple[Tensor, nn.Module, Tensor]] = {}

    def settings(self, count: int, pairs: int) -> Sequence[Setting]:
        """`count` settings at most: every choice of filters with as many settings of the closed form as there is room for."""
        own = self.base.settings(max(1, count // len(self.filters)), pairs)
        return [{"filter": float(number), **setting} for number in range(len(self.filters)) for setting in own][:count]

    def candidates(self, samples: Samples, settings: Sequence[Setting]) -> Iterator[Maps]:
        """The maps of each setting."""
        for number, group in _grouped(settings):
            a, pool_a = self._fit("a", number, samples.pool_a)
            b, pool_b = self._fit("b", number, samples.pool_b)
            filtered = Samples(a(samples.x_a), b(samples.x_b), pool_a, pool_b)
            for map_a, map_b in self.base.candidates(filtered, group):
                yield Chain(a, map_a), Chain(b, map_b)

    @torch.no_grad()
    def _fit(self, side: str, number: int, pool: Tensor) -> tuple[nn.Module, Tensor]:
        """The filter's map, ending in unit rows, and the filtered pool; kept, since all folds share the pool."""
        key = side, number
        if key not in self._fitted or self._fitted[key][0] is not pool:
            maps, x = [], pool
            for part in self.filters[number][side]:
                maps += [part.fit(x), Unit()]
                x = Chain(*maps[-2:])(x)
            self._fitted[key] = pool, Chain(*maps), x
        return self._fitted[key][1:]


def _grouped(settings: Sequence[Setting]) -> Iterator[tuple[int, list[Setting]]]:
    """Settings with the same filter, which follow each other, without that entry."""
    start = 0
    for end in range(1, len(settings) + 1):
        if end == len(settings) or settings[end]["filter"] != settings[start]["filter"]:
            number = int(settings[start]["filter"])
            yield number, [{name: value for name, value in s.items() if name != "filter"} for s in settings[start:end]]
            start = end
