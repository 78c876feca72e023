"""Which rows each step of embedding reads, and their raw items, read and prepared.

Rows are cut into shards in their own order. Inside a shard they are sorted by length and cut into
batches; process r of w takes batches r::w. So the members of a batch depend on the corpus and the
settings alone, not on where a run was interrupted, nor on the number of processes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
import pandas as pd
from torch.utils.data import Dataset

from gera_lightning.data.records import Skipped, one_line
from gera_lightning.embedding.corpus import Corpus
from gera_lightning.embedding.reading import Unreadable, read_image, read_sound
from gera_lightning.encoders.base import Encoder, Inputs, NetworkEncoder
from gera_lightning.encoders.text import TextEncoder
from gera_lightning.utils.errors import UserError

SAMPLE_RATE = 16_000
"""Sample rate for encoders that state none."""
REFUSALS = (Unreadable, UserError, ValueError)
"""What an encoder raises on an item that it cannot take."""
Record = Mapping[str, Any]
"""A row of the listing."""


@dataclass(frozen=True)
class BatchPlan:
    """The steps of one process.

    Attributes:
        count: rows of the corpus.
        shard_rows, batch_size: rows per shard and per batch.
        first: shard to begin with; those before it are written.
        rank, size: this process and the number of processes. All take the same number of steps per
            shard; some of them are empty.

    >>> plan = BatchPlan(count=5, shard_rows=3, batch_size=2)
    >>> [plan.step(number) for number in range(len(plan))]
    [(0, slice(0, 2, None), False), (0, slice(2, 4, None), True), (1, slice(0, 2, None), True)]
    """

    count: int
    shard_rows: int
    batch_size: int
    first: int = 0
    rank: int = 0
    size: int = 1

    @property
    def shards(self) -> int:
        """Number of shards of the whole corpus."""
        return ceil(self.count / self.shard_rows)

    def rows(self, shard: int) -> range:
        """Rows of a shard."""
        return range(shard * self.shard_rows, min((shard + 1) * self.shard_rows, self.count))

    def steps_of(self, shard: int) -> int:
        """Steps of each process for a shard."""
        batches = ceil(len(self.rows(shard)) / self.batch_size)
        return ceil(batches / self.size)

    def __len__(self) -> int:
        if self.first >= self.shards:
            return 0
        last = self.shards - 1  # the only shard that may be smaller
        return self.steps_of(0) * (last - self.first) + self.steps_of(last)

    def step(self, number: int) -> tuple[int, slice, bool]:
        """What a step reads.

        Returns:
            The shard, the positions among the shard's sorted rows, and whether this is the last
            step of this process in the shard.
        """
        shard, within = divmod(number, self.steps_of(0))
        shard += self.first
        start = (within * self.size + self.rank) * self.batch_size
        return shard, slice(start, start + self.batch_size), within == self.steps_of(shard) - 1


@dataclass(frozen=True)
class Batch:
    """The items of one step.

    Attributes:
        shard: number of their shard.
        last: whether this is the last step of this process in the shard.
        positions: row numbers of the items that were read.
        inputs: prepared tensors for a network, else the items themselves.
        skipped: items that could not be read.
        cut: items of which only the beginning was read.
    """

    shard: int
    last: bool
    positions: list[int]
    inputs: Inputs | list[Any]
    skipped: list[Skipped]
    cut: list[Skipped]


class ItemBatches(Dataset[Batch]):
    """The steps of one process as a map-style dataset.

    An item that cannot be read is listed as skipped; it raises nothing.

    Args:
        corpus: gives the raw items.
        rows: its listed rows.
        encoder: its `prepare` runs here, so in loader processes where there are some.
        plan: which rows a step reads.
    """

    def __init__(
        self, corpus: Corpus, rows: pd.DataFrame, encoder: Encoder, plan: BatchPlan
    ) -> None:
        self.corpus, self.rows, self.encoder, self.plan = corpus, rows, encoder, plan
        # of the shard that was read last
        self._shard = -1
        self._records = list[dict[str, Any]]()
        self._by_length = np.empty(0, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, number: int) -> Batch:
        if number >= len(self):
            raise IndexError(number)
        shard, members, last = self.plan.step(number)
        self._open(shard)
        first_row = self.plan.rows(shard).start
        positions, items, skipped, cut = list[int](), list[Any](), list[Skipped](), list[Skipped]()
        for within in self._by_length[members]:
            record = self._records[within]
            try:
                items.append(self._read(record, cut))
                positions.append(first_row + int(within))
            except Unreadable as error:
                skipped.append(skip(record, error))
            except OSError as error:  # such as a tar that was removed since it was listed
                skipped.append(skip(record, f"not readable ({one_line(error)})"))
        cut += self._cut_texts(positions, items)
        positions, inputs, refused = self._prepare(positions, items)
        return Batch(shard, last, positions, inputs, skipped + refused, cut)

    def _cut_texts(self, positions: list[int], items: list[Any]) -> list[Skipped]:
        """Entries of the texts of which the encoder reads the beginning alone."""
        if self.corpus.modality != "text" or not isinstance(self.encoder, TextEncoder) or not items:
            return []
        reason = f"cut to its first {self.encoder.max_tokens} tokens"
        are_cut = self.encoder.is_cut(items)
        numbers = [n for n, is_cut in zip(positions, are_cut, strict=True) if is_cut]
        return [skip(record, reason) for record in records_of(self.rows.iloc[numbers])]

    def _prepare(
        self, positions: list[int], items: list[Any]
    ) -> tuple[list[int], Inputs | list[Any], list[Skipped]]:
        """Inputs of a network, with the positions of the items in them, and what it refuses."""
        if not isinstance(self.encoder, NetworkEncoder) or not items:
            return positions, items, []
        try:
            return positions, self.encoder.prepare(items), []
        except REFUSALS:  # one item is at fault: take them one by one
            positions, items, refused = sift(self.encoder.prepare, positions, items, self.rows)
            return positions, self.encoder.prepare(items) if items else [], refused

    def _open(self, shard: int) -> None:
        """Read the records of a shard and sort them by length."""
        if shard == self._shard:
            return
        numbers = self.plan.rows(shard)
        self._records = records_of(self.rows.iloc[numbers.start : numbers.stop])
        lengths = [self.corpus.length(record) for record in self._records]
        self._by_length = np.argsort(lengths, kind="stable")
        self._shard = shard

    def _read(self, record: Record, cut: list[Skipped]) -> Any:
        """A row's item; one that is too long is cut, and listed in `cut`."""
        raw = self.corpus.raw(record)
        if self.corpus.modality == "text" or isinstance(raw, np.ndarray):
            return raw
        if self.corpus.modality == "image":
            return read_image(raw)
        rate = int(getattr(self.encoder, "sample_rate", SAMPLE_RATE))
        longest = getattr(self.encoder, "max_seconds", None)
        audio, full_seconds = read_sound(raw, rate, longest)
        if full_seconds is not None:
            cut.append(skip(record, f"cut to the first {longest:g} s of {full_seconds:.1f} s"))
        return audio


def records_of(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows of a table as mappings."""
    return [
        {str(key): value for key, value in record.items()} for record in rows.to_dict("records")
    ]


def skip(record: Record, reason: object) -> Skipped:
    """The entry of a listed row that is skipped, or used in part only."""
    return Skipped(
        str(record["row"]), str(record["item"]), str(record.get("path", "")), str(reason)
    )


def sift(
    attempt: Callable[[list[Any]], object],
    positions: Sequence[int],
    items: Sequence[Any],
    rows: pd.DataFrame,
) -> tuple[list[int], list[Any], list[Skipped]]:
    """Try items one by one.

    Args:
        attempt: an encoder's function of a list of items.
        positions, items: row number and raw item of each.
        rows: the listed rows.

    Returns:
        Positions and items of those that it takes, and those that it refuses.
    """
    taken_positions, taken_items, refused = list[int](), list[Any](), list[Skipped]()
    for position, item in zip(positions, items, strict=True):
        try:
            attempt([item])
        except REFUSALS as error:
            record = records_of(rows.iloc[[position]])[0]
            refused.append(skip(record, f"the encoder refuses it ({one_line(error)})"))
        else:
            taken_positions.append(position)
            taken_items.append(item)
    return taken_positions, taken_items, refused
