"""The LightningDataModule: a stream of steps, each with paired rows and both modalities' unpaired
patches.

Legend: `B` pairs a step, `A` anchors, `M = K + 1` points of a patch, `U` distinct points of all
patches, `n` unpaired rows without a patch, `D` width, `w` processes.

The global batch is a pure function of (seed, step), whatever the number of processes: process r of
w takes rows r::w of pairs and of anchors. There is no sampler state to save, and going on in
mid-epoch is exact. The stream holds row numbers only; rows are gathered where the batch is wanted,
from a copy that stays on that device.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from gera_lightning.data.training_rows import Modality, TrainingRows, digest
from gera_lightning.geometry.neighbors import EXACT, NeighborGraph, SearchSettings, cached_knn_graph
from gera_lightning.utils.distributed import world
from gera_lightning.utils.errors import UserError


@dataclass(frozen=True)
class Patches:
    """Anchors of one modality with their neighbours.

    Attributes:
        points: each distinct point of all patches once, `[U, D]`.
        members: positions in `points` of each anchor's patch, the anchor first, `[A, M]`.
        count: anchors of the global batch.
    """

    points: Tensor
    members: Tensor
    count: int


@dataclass(frozen=True)
class Unpaired:
    """Unpaired rows of one modality, without neighbours.

    Attributes:
        rows: `[n, D]`.
        count: rows of the global batch.
    """

    rows: Tensor
    count: int


@dataclass(frozen=True)
class Batch:
    """One process's share of a step.

    Attributes:
        x_a, x_b: paired rows `[b, D_a]`, `[b, D_b]`.
        item: item number of each pair `[b]`.
        patches_a, patches_b: unpaired patches; None without a geometric loss.
        count: pairs of the global batch.
        step: number of the step.
        unpaired_a, unpaired_b: unpaired rows; None without a loss that reads them.
    """

    x_a: Tensor
    x_b: Tensor
    item: Tensor
    patches_a: Patches | None
    patches_b: Patches | None
    count: int
    step: int
    unpaired_a: Unpaired | None = None
    unpaired_b: Unpaired | None = None


class RowStream:
    """Positions 0..n-1 in shuffled epochs without end; step s holds places s*size .. of that
    sequence.

    Args:
        count: n.
        size: positions a step; all of them, in order, where it is n or more.
        seed, salt: fix the shuffles.
    """

    def __init__(self, count: int, size: int, seed: int, salt: int) -> None:
        self.count, self.size, self.seed, self.salt = count, min(size, count), seed, salt
        self._epoch: tuple[int, np.ndarray] | None = None

    def _shuffle(self, epoch: int) -> np.ndarray:
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = (
                epoch,
                np.random.default_rng([self.seed, self.salt, epoch]).permutation(self.count),
            )
        return self._epoch[1]

    def __getitem__(self, step: int) -> np.ndarray:
        if self.size == self.count:
            return np.arange(self.count)
        place, end, parts = step * self.size, (step + 1) * self.size, []
        while place < end:
            epoch, offset = divmod(place, self.count)
            parts.append(self._shuffle(epoch)[offset : offset + end - place])
            place += len(parts[-1])
        return np.concatenate(parts)


@dataclass(frozen=True)
class StepRows:
    """Row numbers of one process's share of a step; patches as (distinct points, members)."""

    step: int
    pairs: np.ndarray
    patches_a: tuple[np.ndarray, np.ndarray] | None
    patches_b: tuple[np.ndarray, np.ndarray] | None
    unpaired_a: np.ndarray | None = None
    unpaired_b: np.ndarray | None = None


class AlignmentDataModule(LightningDataModule):
    """Streams paired batches and both modalities' unpaired anchors with their neighbour patches.

    Args:
        rows: training rows of the run.
        positions: which pairs to train on; all by default.
        pairs_per_step, anchors_per_step: of the global batch.
        k: neighbours of a patch; None streams no patches.
        unpaired_per_step: unpaired rows without patches, of the global batch and each modality;
            None streams none.
        paired_anchors: the rows of these pairs are points of the graph too.
        max_steps: length of the stream.
        seed: fixes every batch.
        cache_dir: where neighbour graphs are kept.
        search: backend and index of the neighbour search.
    """

    def __init__(
        self,
        rows: TrainingRows,
        *,
        positions: np.ndarray | None = None,
        pairs_per_step: int = 256,
        anchors_per_step: int = 256,
        k: int | None = 16,
        unpaired_per_step: int | None = None,
        paired_anchors: bool = False,
        max_steps: int = 1000,
        seed: int = 0,
        cache_dir: str | Path = ".cache",
        search: SearchSettings = EXACT,
    ) -> None:
        super().__init__()
        self.rows = rows
        self.positions = np.arange(len(rows.items)) if positions is None else positions
        self.k, self.paired_anchors, self.max_steps, self.seed = k, paired_anchors, max_steps, seed
        self.cache_dir = Path(cache_dir)
        self.search = search
        self.graphs: dict[str, NeighborGraph] = {}
        self.pairs_per_step, self.anchors_per_step, self.unpaired_per_step = (
            pairs_per_step,
            anchors_per_step,
            unpaired_per_step,
        )
        self._unpaired: dict[str, RowStream] = {}
        self._resident: tuple[torch.device, dict[str, Tensor]] | None = None
        if k is not None:
            for side, modality in (("a", rows.a), ("b", rows.b)):
                if len(modality.pool) < 2 and not paired_anchors:
                    raise UserError(
                        f"modality {side} has {len(modality.pool)} unpaired rows, the geometric"
                        " loss needs at least 2: lower data.reserved_pairs, add unpaired rows, or"
                        " set geometric_loss=null"
                    )
        if unpaired_per_step is not None and min(len(rows.a.pool), len(rows.b.pool)) < 2:
            raise UserError(
                f"the pools hold {len(rows.a.pool)} and {len(rows.b.pool)} unpaired rows,"
                " unpaired_loss needs at least 2 of each: lower data.reserved_pairs, add unpaired"
                " rows, or set unpaired_loss=null"
            )

    def points(self, side: str) -> Tensor:
        """The rows that anchors and neighbours are drawn from, `[N, D]`."""
        modality: Modality = getattr(self.rows, side)
        return (
            torch.cat([modality.pool, modality.pairs[torch.from_numpy(self.positions)]])
            if self.paired_anchors
            else modality.pool
        )

    def _graph(self, side: str) -> NeighborGraph:
        assert self.k is not None
        key = {
            **getattr(self.rows, side).key,
            "paired": digest(self.positions) if self.paired_anchors else "none",
        }
        return cached_knn_graph(
            self.points(side), self.k, key=key, cache_dir=self.cache_dir, how=self.search
        )

    def prepare_data(self) -> None:
        """Have the neighbour graphs, built into the cache by one process a node."""
        if self.k is not None and not self.graphs:
            self.graphs = {side: self._graph(side) for side in "ab"}

    def setup(self, stage: str | None = None) -> None:  # noqa: ARG002
        """Load the graphs and lay out the streams."""
        self.prepare_data()
        self._pairs = RowStream(len(self.positions), self.pairs_per_step, self.seed, 10)
        self._anchors = {
            side: RowStream(len(graph), self.anchors_per_step, self.seed, 11 + i)
            for i, (side, graph) in enumerate(self.graphs.items())
        }
        if self.unpaired_per_step is not None:
            pools = {"a": self.rows.a.pool, "b": self.rows.b.pool}
            self._unpaired = {
                s: RowStream(len(x), self.unpaired_per_step, self.seed, 13 + i)
                for i, (s, x) in enumerate(pools.items())
            }

    def teardown(self, stage: str | None = None) -> None:  # noqa: ARG002
        """Let go of the rows' copy on the device: trainer, module and stream hold on to each other
        until they are collected.
        """
        self._resident = None

    def step_rows(self, step: int, rank: int = 0, size: int = 1) -> StepRows:
        """Row numbers of process `rank` of `size` in a step."""
        patches: dict[str, tuple[np.ndarray, np.ndarray] | None] = {"a": None, "b": None}
        for side, graph in self.graphs.items():
            members = graph.patches(torch.from_numpy(self._anchors[side][step][rank::size])).numpy()
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

    def train_dataloader(self) -> DataLoader[StepRows]:
        """Steps from the trainer's present one on."""
        start = self.trainer.global_step if self.trainer is not None else 0
        return DataLoader(_Steps(self, start), batch_size=None)

    def transfer_batch_to_device(
        self, batch: StepRows, device: torch.device, dataloader_idx: int
    ) -> Batch:  # noqa: ARG002
        """Gather the rows of a step on `device`."""
        return self.gather(batch, device)

    def gather(self, step: StepRows, device: torch.device | str = "cpu") -> Batch:
        """The rows of a step, from a copy of all rows that stays on `device`."""
        device = torch.device(device)
        if self._resident is None or self._resident[0] != device:
            tables = {
                "pairs_a": self.rows.a.pairs,
                "pairs_b": self.rows.b.pairs,
                "item": self.rows.item_numbers,
            }
            tables |= {
                f"points_{side}": self.points(side) for side in {**self.graphs, **self._unpaired}
            }  # the pool's rows come first
            self._resident = device, {name: table.to(device) for name, table in tables.items()}
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


class _Steps(IterableDataset[StepRows]):
    """This process's share of steps `start` .. `max_steps`."""

    def __init__(self, data: AlignmentDataModule, start: int) -> None:
        self.data, self.start = data, start

    def __iter__(self) -> Iterator[StepRows]:
        rank, size = world()
        for step in range(self.start, self.data.max_steps):
            yield self.data.step_rows(step, rank, size)
