"""The LightningDataModule: a stream of steps, each with paired rows and both modalities' unpaired
patches.

Legend: `B` pairs per step, `A` anchors, `M = K + 1` points of a patch, `U` distinct points of all
patches, `n` unpaired rows without a patch, `D` width, `w` processes.

The global batch is a pure function of (seed, step), whatever the number of processes: process r of
w takes rows r::w of pairs, and the r-th part of the anchors. There is no sampler state to save, and
going on in mid-epoch is exact. The stream holds row numbers only; rows are gathered where the batch
is wanted, from a copy that stays on that device. Of pools that stay on disk it holds the rows,
which a thread reads a few steps ahead.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from gera_lightning.config import Config
from gera_lightning.config.merging import merge, parse_overrides, typed
from gera_lightning.data import splits
from gera_lightning.data.store import EmbeddingStore
from gera_lightning.data.training_rows import Modality, TrainingRows, digest, load_rows
from gera_lightning.geometry.neighbors import NeighborGraph, cached_knn_graph
from gera_lightning.geometry.regions import regions
from gera_lightning.losses.base import PATCHES, UNPAIRED
from gera_lightning.training.batch import (
    Batch,
    HeldOutPairs,
    Patches,
    RowStream,
    StepRows,
    Unpaired,
)
from gera_lightning.training.method import Method, search_settings
from gera_lightning.training.training_set import TrainingSet
from gera_lightning.utils.arrays import Rows
from gera_lightning.utils.distributed import world
from gera_lightning.utils.errors import UserError
from gera_lightning.utils.progress import no_progress

STEPS_AHEAD = 4
"""Steps whose rows are read from disk before they are asked for."""


class AlignmentDataModule(LightningDataModule):
    """Streams paired batches and both modalities' unpaired rows with their neighbours.

    Of two stores it draws a budget of pairs and the pools of unpaired rows, as `gera train` does
    for the same seed. What a step holds beside the pairs is what the losses of the module require::

        data = AlignmentDataModule("data/pictures/image", "data/pictures/text", budget=100, seed=0)
        Trainer(max_steps=200).fit(AlignmentModule("gera"), datamodule=data)

    Args:
        store_a, store_b: embedding stores, or their folders.
        budget: number of paired items.
        seed: fixes pairs, pools and every batch.
        settings: dotted keys of an experiment, such as `{"batch.anchors": 32}`; read are those
            below `data`, `batch`, `graph`, `tuning.folds` and `cache_dir`.
        val_fold: number of a fold of the pairs that is held out and validated on; by default all
            pairs are trained on.
    """

    def __init__(
        self,
        store_a: EmbeddingStore | str | os.PathLike[str],
        store_b: EmbeddingStore | str | os.PathLike[str],
        budget: int,
        seed: int = 0,
        *,
        settings: Mapping[str, Any] | None = None,
        val_fold: int | None = None,
    ) -> None:
        super().__init__()
        stores = [
            s if isinstance(s, EmbeddingStore) else EmbeddingStore(s) for s in (store_a, store_b)
        ]
        paths = {"data.a": str(stores[0].path), "data.b": str(stores[1].path)}
        words = {**(settings or {}), **paths, "budgets": [budget]}
        config = typed(merge(parse_overrides(words)), "settings")
        rows, families = _draw_rows(stores[0], stores[1], config, budget, seed)
        self._take(rows, families, config, seed)
        if val_fold is not None:
            self._hold_out(val_fold)
        self.save_hyperparameters(
            {"budget": budget, "seed": seed, "val_fold": val_fold}, logger=False
        )

    @classmethod
    def of_training_set(
        cls, training_set: TrainingSet, positions: np.ndarray, max_steps: int
    ) -> AlignmentDataModule:
        """The stream of some pairs of a training set, up to step `max_steps`."""
        data = cls.__new__(cls)
        LightningDataModule.__init__(data)
        data._take(training_set.rows, training_set.families, training_set.config, training_set.seed)
        data.positions, data.max_steps = positions, max_steps
        data.requires = training_set.method.requires
        data._check_pools()
        return data

    def _take(self, rows: TrainingRows, families: pd.Series, config: Config, seed: int) -> None:
        self.rows, self.families, self.config, self.seed = rows, families, config, seed
        self.positions = np.arange(len(rows.items))
        self.held: np.ndarray | None = None
        self.max_steps: int | None = None
        self.requires: frozenset[str] | None = None
        self.graphs: dict[str, NeighborGraph] = {}
        self._anchors: dict[str, RowStream] = {}
        self._unpaired: dict[str, RowStream] = {}
        self._resident: tuple[torch.device, dict[str, Rows]] | None = None

    def _hold_out(self, fold: int) -> None:
        """Train on the pairs outside a fold, without pool rows of the families in it."""
        everything = np.arange(len(self.rows.items))
        count = self.config.tuning.folds
        if not 0 <= fold < count:
            raise UserError(f"must be one of the {count} folds", key="val_fold", value=fold)
        self.held = splits.folds(self.rows.units, self.families, count, self.seed)[fold]
        self.positions = np.setdiff1d(everything, self.held)
        whole = self.training_set(Method.from_config(self.config))
        self.rows = whole.excluding(self.held).rows

    def training_set(self, method: Method) -> TrainingSet:
        """The rows as what a method is fitted on."""
        return TrainingSet(method, self.rows, self.families, self.seed, Path(), no_progress)

    def _check_pools(self) -> None:
        """There are unpaired rows for what the losses require.

        Raises:
            UserError: there are fewer than two.
        """
        required = self.requires or frozenset()
        patches = PATCHES in required and not self.config.batch.paired_anchors
        for side, modality in (("a", self.rows.a), ("b", self.rows.b)):
            if len(modality.pool) < 2 and (patches or UNPAIRED in required):
                raise UserError(
                    f"modality {side} has {len(modality.pool)} unpaired rows, and a loss needs at"
                    " least 2: lower data.reserved_pairs, add unpaired rows, or take the loss out"
                )

    def points(self, side: str) -> Rows:
        """The rows that anchors and neighbours are drawn from, `[N, D]`."""
        modality: Modality = getattr(self.rows, side)
        if not self.config.batch.paired_anchors:
            return modality.pool
        return modality.points(self.positions)

    def _graph(self, side: str) -> NeighborGraph:
        graph, paired = self.config.graph, self.config.batch.paired_anchors
        how, folder = search_settings(graph), Path(self.config.cache_dir) / "knn"
        modality: Modality = getattr(self.rows, side)
        if paired:
            key = {**modality.key, "paired": digest(self.positions)}
            return cached_knn_graph(self.points(side), graph.k, key=key, cache_dir=folder, how=how)
        return modality.pool_graph(
            graph.k,
            lambda whole, k: cached_knn_graph(
                whole.pool, k, key=whole.key, cache_dir=folder, how=how
            ),
        )

    def prepare_data(self) -> None:
        """Have the neighbour graphs, built into the cache by one process per node."""
        if self.requires is None:
            self.requires = _requirements(self)
            self._check_pools()
        if PATCHES in self.requires and not self.graphs:
            self.graphs = {side: self._graph(side) for side in "ab"}

    def setup(self, stage: str | None = None) -> None:  # noqa: ARG002
        """Load the graphs and lay out the streams."""
        self.prepare_data()
        batch = self.config.batch
        self._pairs = RowStream(len(self.positions), batch.pairs, self.seed, 10)
        for number, side in enumerate("ab"):
            if side in self.graphs:
                self._anchors[side] = self._anchor_stream(self.graphs[side], 11 + number)
            if UNPAIRED in (self.requires or ()):
                count = len(getattr(self.rows, side).pool)
                self._unpaired[side] = RowStream(count, batch.unpaired, self.seed, 13 + number)

    def _anchor_stream(self, graph: NeighborGraph, salt: int) -> RowStream:
        batch = self.config.batch
        blocks = regions(graph, batch.region, self.seed) if batch.region > 1 else None
        return RowStream(len(graph), batch.anchors, self.seed, salt, blocks)

    def teardown(self, stage: str | None = None) -> None:  # noqa: ARG002
        """Let go of the rows' copy on the device: trainer, module and stream hold on to each other
        until they are collected.
        """
        self._resident = None

    def step_rows(self, step: int, rank: int = 0, size: int = 1) -> StepRows:
        """Row numbers of process `rank` of `size` in a step."""
        patches: dict[str, tuple[np.ndarray, np.ndarray] | None] = {"a": None, "b": None}
        for side, graph in self.graphs.items():
            # a part of a region each, so that a process maps few points
            anchors = np.array_split(self._anchors[side][step], size)[rank]
            members = graph.patches(torch.from_numpy(anchors)).numpy()
            distinct, inverse = np.unique(members, return_inverse=True)
            patches[side] = distinct, inverse.reshape(members.shape)
        unpaired = {
            f"unpaired_{side}": stream[step][rank::size] for side, stream in self._unpaired.items()
        }
        return StepRows(
            step,
            self.positions[self._pairs[step][rank::size]],
            patches["a"],
            patches["b"],
            **unpaired,
        )

    @property
    def reads_disk(self) -> bool:
        """Whether steps hold rows that stay on disk."""
        return any(
            not isinstance(getattr(self.rows, side).pool, Tensor)
            for side in {**self.graphs, **self._unpaired}
        )

    def train_dataloader(self) -> DataLoader[StepRows | Batch]:
        """The steps that are ahead."""
        return DataLoader(_Steps(self), batch_size=None)

    def steps_ahead(self) -> range:
        """Numbers of the steps from the trainer's present one on: all, or those of an epoch where
        the trainer counts epochs.
        """
        start = self.trainer.global_step if self.trainer is not None else 0
        if self.max_steps is not None:
            return range(start, self.max_steps)
        assert self.trainer is not None
        last = int(self.trainer.max_steps)
        epoch = -(-self._pairs.count // self._pairs.size)
        return range(start, last if last >= 0 else start + epoch)

    def val_dataloader(self) -> DataLoader[int] | list[Any]:
        """One batch of the held-out pairs; nothing where none are held out."""
        return [] if self.held is None else DataLoader(_HeldOut(), batch_size=None)

    def held_out_batch(self, device: torch.device | str = "cpu") -> HeldOutPairs:
        """The held-out pairs and distractors, on a device."""
        assert self.held is not None
        return HeldOutPairs.of(self.rows, self.held, self.config.tuning.distractors).to(device)

    def transfer_batch_to_device(
        self,
        batch: Any,
        device: torch.device,
        dataloader_idx: int,  # noqa: ARG002
    ) -> Batch | HeldOutPairs:
        """Gather the rows of a step, or the held-out rows, on `device`."""
        if isinstance(batch, StepRows):
            return self.gather(batch, device)
        return batch.to(device) if isinstance(batch, Batch) else self.held_out_batch(device)

    def gather(self, step: StepRows, device: torch.device | str = "cpu") -> Batch:
        """The rows of a step, from a copy of all rows that stays on `device`; where pools stay on
        disk, from one on the CPU.
        """
        device = torch.device(device)
        if self.reads_disk and device.type != "cpu":
            return self.gather(step).to(device)
        if self._resident is None or self._resident[0] != device:
            tables: dict[str, Rows] = {
                "pairs_a": self.rows.a.pairs,
                "pairs_b": self.rows.b.pairs,
                "item": self.rows.item_numbers,
            }
            tables |= {
                f"points_{side}": self.points(side) for side in {**self.graphs, **self._unpaired}
            }  # the pool's rows come first
            self._resident = (
                device,
                {n: t.to(device) if isinstance(t, Tensor) else t for n, t in tables.items()},
            )
        table = self._resident[1]
        pairs = torch.from_numpy(step.pairs).to(device)

        def patches(side: str, rows: tuple[np.ndarray, np.ndarray] | None) -> Patches | None:
            if rows is None:
                return None
            distinct, members = (torch.from_numpy(r).to(device) for r in rows)
            return Patches(table[f"points_{side}"][distinct], members, self._anchors[side].size)

        def unpaired(side: str, rows: np.ndarray | None) -> Unpaired | None:
            if rows is None:
                return None
            return Unpaired(
                table[f"points_{side}"][torch.from_numpy(rows).to(device)],
                self._unpaired[side].size,
            )

        return Batch(
            x_a=table["pairs_a"][pairs],
            x_b=table["pairs_b"][pairs],
            item=table["item"][pairs],
            patches_a=patches("a", step.patches_a),
            patches_b=patches("b", step.patches_b),
            count=self._pairs.size,
            step=step.step,
            unpaired_a=unpaired("a", step.unpaired_a),
            unpaired_b=unpaired("b", step.unpaired_b),
        )


class _HeldOut(IterableDataset[int]):
    """The one batch of held-out pairs; `transfer_batch_to_device` gathers it."""

    def __iter__(self) -> Iterator[int]:
        yield 0


class _Steps(IterableDataset[StepRows | Batch]):
    """This process's share of the steps that are ahead: row numbers, or where rows are read from
    disk the rows.
    """

    def __init__(self, data: AlignmentDataModule) -> None:
        self.data = data

    def __iter__(self) -> Iterator[StepRows | Batch]:
        rank, size = world()
        steps = (self.data.step_rows(step, rank, size) for step in self.data.steps_ahead())
        yield from _ahead(self.data.gather, steps) if self.data.reads_disk else steps


def _ahead(read: Callable[[StepRows], Batch], steps: Iterable[StepRows]) -> Iterator[Batch]:
    """What is read of each step, by a thread that is `STEPS_AHEAD` steps ahead."""
    with ThreadPoolExecutor(1) as thread:
        waiting: deque[Future[Batch]] = deque()
        for step in steps:
            waiting.append(thread.submit(read, step))
            if len(waiting) > STEPS_AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _draw_rows(
    a: EmbeddingStore, b: EmbeddingStore, config: Config, budget: int, seed: int
) -> tuple[TrainingRows, pd.Series]:
    """A budget's training rows, and the family of every item."""
    data = config.data
    split = splits.split_for(a.rows, b.rows, data, seed)
    sample = splits.sample_pairs(
        a.rows,
        b.rows,
        split,
        budget=budget,
        reserved_pairs=data.reserved_pairs or budget,
        seed=seed,
        shared_pools=data.shared_pools,
        pool_size=data.pool_size,
        extra_views=data.extra_views,
    )
    return load_rows(a, b, sample, center=data.center, residency=data.residency), split.families


def _requirements(data: AlignmentDataModule) -> frozenset[str]:
    """What the module that is being trained requires of a step."""
    module = None if data.trainer is None else data.trainer.lightning_module
    method = getattr(module, "method", None)
    return method.requires if isinstance(method, Method) else frozenset()
