"""What a method is fitted on: the rows of a budget, their folds, and the features that filters pass
on.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from gera_lightning.aligners.base import FitData, Maps
from gera_lightning.config import Config
from gera_lightning.data import splits
from gera_lightning.data.training_rows import Modality, TrainingRows
from gera_lightning.filters.base import fit_filters
from gera_lightning.geometry.neighbors import NeighborGraph, knn_graph
from gera_lightning.models.maps import Sequential
from gera_lightning.models.shared_space import SharedSpace
from gera_lightning.training.batch import HeldOutPairs
from gera_lightning.training.method import Method
from gera_lightning.utils import distributed
from gera_lightning.utils.progress import ProgressCallback

MOST_POOL_ROWS = 20_000
"""Rows of a pool that filters and closed forms look at and a score correction keeps, at most: the
first, a random part of a shuffled pool.
"""
MOST_FILTERED_BYTES = 2**29
"""Filtered rows that are kept at most in case they are asked for again."""


@dataclass(frozen=True)
class TrainingSet:
    """What a method is fitted on, and where it keeps its state.

    Attributes:
        method: what is fitted, and its settings.
        rows: training rows of the budget.
        families: family of every unit (see `split_units`): folds keep them whole.
        seed: fixes folds, start and batches.
        folder: for checkpoints and TensorBoard events; an interrupted training in it goes on.
        progress: told of what is under way.
        memory: filtered modalities that may be asked for again, the oldest first.
        graphs: neighbour graphs of the whole pools.
    """

    method: Method
    rows: TrainingRows
    families: pd.Series
    seed: int
    folder: Path
    progress: ProgressCallback
    memory: dict[str, FilteredModality] = field(default_factory=dict, repr=False, compare=False)
    graphs: dict[str, NeighborGraph] = field(default_factory=dict, repr=False, compare=False)

    @property
    def config(self) -> Config:
        """The method's settings."""
        return self.method.config

    def folds(self, positions: np.ndarray) -> list[np.ndarray]:
        """Parts of `positions` for cross-validation: all, or as many (two at least) as hold out
        `tuning.max_heldout_pairs` pairs together.

        Inside a fold fewer families may be left than `tuning.folds` asks for: it has a part for
            each.
        """
        count = self.config.tuning.folds
        if len(positions) < len(self.rows.items):
            count = min(count, max(2, self.families[self.rows.units[positions]].nunique()))
        parts = splits.folds(self.rows.units[positions], self.families, count, self.seed)
        held = np.cumsum([len(part) for part in parts])
        return [
            positions[part]
            for part in parts[
                : max(2, int(np.searchsorted(held, self.config.tuning.max_heldout_pairs)) + 1)
            ]
        ]

    def excluding(self, held: np.ndarray) -> TrainingSet:
        """The training set of a fold: pools without rows of the families of the pairs at `held`."""
        number, sides = self.family_numbers, {}
        families = np.unique(number["pairs"][held])
        for side in "ab":
            modality, kept = getattr(self.rows, side), ~np.isin(number[side], families)
            sides[side] = modality if kept.all() else modality.pool_subset(kept)
        return dataclasses.replace(self, rows=dataclasses.replace(self.rows, **sides))

    @cached_property
    def family_numbers(self) -> dict[str, np.ndarray]:
        """A number for the family of each pair and of each pool row: numbers are looked for much
        faster than names.
        """
        numbers = pd.Series(pd.factorize(self.families)[0], index=self.families.index)
        units = {"pairs": self.rows.units, "a": self.rows.a.pool_units, "b": self.rows.b.pool_units}
        return {name: numbers[found].to_numpy() for name, found in units.items()}

    def with_truncated_pools(self) -> TrainingSet:
        """The task with what filters and closed forms look at of each pool, in memory, so that its
        folds copy no more than that.
        """
        a, b = self.rows.a, self.rows.b
        if max(len(a.pool), len(b.pool)) > MOST_POOL_ROWS:
            a, b = _first_rows(a), _first_rows(b)
        elif isinstance(a.pool, Tensor):
            return self
        a, b = a.in_memory(), b.in_memory()
        return dataclasses.replace(self, rows=dataclasses.replace(self.rows, a=a, b=b))

    def to(self, device: torch.device) -> TrainingSet:
        """The task with its rows on a device: itself, where they lie there."""
        if self.rows.a.pairs.device == device:
            return self
        return dataclasses.replace(self, rows=self.rows.to(device), memory={}, graphs={})

    def samples(self, positions: np.ndarray) -> FitData:
        """Rows for a closed form, these pairs and the pools."""
        a, b = self.rows.a, self.rows.b
        return FitData(
            a.pairs[positions], b.pairs[positions], a.pool[:MOST_POOL_ROWS], b.pool[:MOST_POOL_ROWS]
        )

    def held_out(self, positions: np.ndarray) -> HeldOutPairs:
        """Held-out pairs and what joins their galleries, `tuning.distractors` rows of each pool."""
        return HeldOutPairs.of(self.rows, positions, self.config.tuning.distractors)

    def filtered_modality(self, side: str, number: int) -> FilteredModality:
        """Modality `side` behind choice `number` of its filters, fitted on its pool."""
        filters, modality = self.method.filters[side][number], getattr(self.rows, side)
        if not filters:
            return FilteredModality(modality, None)
        specs = json.dumps(self.config.filters[side][number], sort_keys=True)
        key = {**modality.key, "filters": specs}
        name = f"{side} {sorted(key.items())}"
        if name not in self.memory:
            looked_at = modality.pool[:MOST_POOL_ROWS]
            graph = partial(self.pool_graph, side) if len(looked_at) == len(modality.pool) else None
            mapping, pool = fit_filters(filters, looked_at, graph)
            with torch.no_grad():
                pairs = mapping(modality.pairs)
            units = modality.pool_units[: len(pool)]
            images = dataclasses.replace(
                modality, pairs=pairs, pool=pool, pool_units=units, key=key, whole=None
            )
            self.memory[name] = FilteredModality(images, mapping)
            self._forget_oldest()
        return self.memory[name]

    def pool_graph(self, side: str, k: int) -> NeighborGraph:
        """The neighbour graph of a pool; that of a fold is taken from the whole pool's."""

        def known(whole: Modality, wanted: int) -> NeighborGraph:
            name = f"{side} {sorted(whole.key.items())}"
            if name not in self.graphs or self.graphs[name].indices.shape[1] < wanted:
                self.graphs[name] = knn_graph(whole.pool, wanted)
            return self.graphs[name]

        modality: Modality = getattr(self.rows, side)
        return modality.pool_graph(k, known)

    def _forget_oldest(self) -> None:
        """Keep no more filtered rows than `MOST_FILTERED_BYTES`, the last in any case."""
        while len(self.memory) > 1:
            if sum(known.bytes for known in self.memory.values()) <= MOST_FILTERED_BYTES:
                return
            del self.memory[next(iter(self.memory))]

    def filtered(self, numbers: Mapping[str, int]) -> Filtered:
        """The training set behind choice `numbers[side]` of each modality's filters."""
        a, b = (self.filtered_modality(side, numbers[side]) for side in "ab")
        rows = dataclasses.replace(self.rows, a=a.modality, b=b.modality)
        return Filtered(dataclasses.replace(self, rows=rows), (a.mapping, b.mapping))


@dataclass(frozen=True)
class FilteredModality:
    """A modality's training rows behind its filters.

    Attributes:
        modality: the filters' images.
        mapping: the filters' map; None where they leave features as they are.
    """

    modality: Modality
    mapping: nn.Module | None

    @property
    def bytes(self) -> int:
        """Of its rows."""
        return self.modality.pairs.nbytes + self.modality.pool[:].nbytes


@dataclass(frozen=True)
class Filtered:
    """A task on filtered features.

    Attributes:
        task: its rows are the filters' images.
        maps: the filters of both modalities; None where features are left as they are.
    """

    task: TrainingSet
    maps: tuple[nn.Module | None, nn.Module | None]

    def compose(self, map_a: nn.Module, map_b: nn.Module) -> Maps:
        """Maps of frozen rows: the filters, then the given maps."""
        a, b = (
            inner if first is None else Sequential(first, inner)
            for first, inner in zip(self.maps, (map_a, map_b), strict=True)
        )
        return a, b


def _first_rows(modality: Modality) -> Modality:
    """The modality with the first rows of its pool, which are then the whole pool."""
    first = np.arange(len(modality.pool)) < MOST_POOL_ROWS
    return dataclasses.replace(modality.pool_subset(first), whole=None)


T = TypeVar("T")


@torch.no_grad()
def shared_space(
    task: TrainingSet, map_a: nn.Module, map_b: nn.Module, rows: int | None = None
) -> SharedSpace:
    """Maps as they stand with the score correction that the config asks for, against the first
    `rows` of each pool, or `MOST_POOL_ROWS`.
    """
    rows = MOST_POOL_ROWS if rows is None else rows
    space = SharedSpace(map_a, map_b)
    if task.method.correction is not None:
        # a closed form's maps lie where its rows do
        device = next(map_a.parameters(), task.rows.a.pairs).device
        pools = {
            f"pool_{s}": space.embed(s, getattr(task.rows, s).pool[:rows].to(device)) for s in "ab"
        }
        space.correction = task.method.correction(**pools)
    return space


def on_accelerator(task: TrainingSet, work: Callable[[TrainingSet], T]) -> T:
    """What `work` makes of a task whose pools are cut to what closed forms look at.

    Its rows are on the CUDA device, where there is one and `trainer.accelerator` allows it; on the
    CPU where there is none, or its memory is too small for the work.
    """
    task = task.with_truncated_pools()
    accelerator, pairs = (
        distributed.device(task.config.trainer.accelerator),
        f"{len(task.rows.items)} pairs",
    )
    return distributed.run_with_cpu_fallback(
        accelerator, lambda device: work(task.to(device)), pairs
    )
