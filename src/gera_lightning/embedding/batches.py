"""Which rows a step of embedding sees, and their raw items read and prepared.

Rows are cut into shards in their own order. Inside a shard they are sorted by length and cut into
batches; process r of w takes batches r::w. So a batch's members depend on the corpus and the
settings alone: not on where a run was interrupted, nor on the number of processes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
import pandas as pd
from torch.utils.data import Dataset

from gera_lightning.data.records import Skipped
from gera_lightning.embedding.corpus import Corpus
from gera_lightning.embedding.reading import Unreadable, read_image, read_sound
from gera_lightning.encoders.base import Encoder, Inputs, NetworkEncoder
from gera_lightning.utils.errors import UserError

SAMPLE_RATE = 16_000
"""Of encoders that state none."""
REFUSALS = (Unreadable, UserError, ValueError)
"""What an encoder raises on an item that it cannot take."""


@dataclass(frozen=True)
class BatchPlan:
    """The steps of one process.

    Attributes:
        count: rows of the corpus.
        shard_rows, batch_size: rows a shard, and a batch.
        first: shard to begin with; those before are whole.
        rank, size: this process and the number of them. All take the same number of steps a shard,
            some of them empty.
    """

    count: int
    shard_rows: int
    batch_size: int
    first: int = 0
    rank: int = 0
    size: int = 1

    @property
    def shards(self) -> int:
        """Shards of the whole corpus."""
        return ceil(self.count / self.shard_rows)

    def rows(self, shard: int) -> range:
        """Rows of a shard."""
        return range(shard * self.shard_rows, min((shard + 1) * self.shard_rows, self.count))

    def steps_of(self, shard: int) -> int:
        """Steps of each process for a shard."""
        return ceil(ceil(len(self.rows(shard)) / self.batch_size) / self.size)

    def __len__(self) -> int:
        if self.first >= self.shards:
            return 0
        return self.steps_of(0) * (self.shards - 1 - self.first) + self.steps_of(self.shards - 1)

    def step(self, number: int) -> tuple[int, slice, bool]:
        """Shard of a step, its part of the shard's sorted rows, and whether it is this process's
        last step of the shard.
        """
        shard, within = divmod(number, self.steps_of(0))
        shard += self.first
        start = (within * self.size + self.rank) * self.batch_size
        return shard, slice(start, start + self.batch_size), within == self.steps_of(shard) - 1


@dataclass(frozen=True)
class Batch:
    """One step's items.

    Attributes:
        shard: which shard they are of.
        last: this process's last step of the shard.
        positions: rows whose items were read.
        inputs: prepared tensors of a network, else the items.
        skipped: what could not be read.
        cut: what was read in part only.
    """

    shard: int
    last: bool
    positions: list[int]
    inputs: Inputs | list[Any]
    skipped: list[Skipped]
    cut: list[Skipped]


class ItemBatches(Dataset[Batch]):
    """The steps of one process as a map-style dataset; an item that cannot be read is named, never
    raised.

    Args:
        corpus: says where raw items are.
        rows: its listed rows.
        encoder: its `prepare` runs here, so in loader processes where there are some.
        plan: which rows a step sees.
    """

    def __init__(
        self, corpus: Corpus, rows: pd.DataFrame, encoder: Encoder, plan: BatchPlan
    ) -> None:
        self.corpus, self.rows, self.encoder, self.plan = corpus, rows, encoder, plan
        self._shard, self._records, self._order = (
            -1,
            list[dict[str, Any]](),
            np.empty(0, dtype=np.int64),
        )

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, number: int) -> Batch:
        if number >= len(self):
            raise IndexError(number)
        shard, part, last = self.plan.step(number)
        self._open(shard)
        positions, items, skipped, cut = list[int](), list[Any](), list[Skipped](), list[Skipped]()
        for within in self._order[part]:
            record = self._records[within]
            try:
                items.append(self._read(record, cut))
                positions.append(self.plan.rows(shard)[within])
            except Unreadable as error:
                skipped.append(skip(record, error))
            except OSError as error:  # such as a tar that is gone since it was listed
                skipped.append(skip(record, f"not readable ({' '.join(str(error).split())})"))
        if not isinstance(self.encoder, NetworkEncoder) or not items:
            return Batch(shard, last, positions, items, skipped, cut)
        try:
            return Batch(shard, last, positions, self.encoder.prepare(items), skipped, cut)
        except REFUSALS:  # one of them is at fault: which?
            positions, items, more = sift(self.encoder.prepare, positions, items, self.rows)
            return Batch(
                shard,
                last,
                positions,
                self.encoder.prepare(items) if items else [],
                skipped + more,
                cut,
            )

    def _open(self, shard: int) -> None:
        if shard != self._shard:
            numbers = self.plan.rows(shard)
            self._records = records_of(self.rows.iloc[numbers.start : numbers.stop])
            self._order = np.argsort(
                [self.corpus.length(record) for record in self._records], kind="stable"
            )
            self._shard = shard

    def _read(self, record: Mapping[str, Any], cut: list[Skipped]) -> Any:
        """A row's item; one that is too long is cut, and named in `cut`."""
        raw = self.corpus.raw(record)
        if self.corpus.modality == "text" or isinstance(raw, np.ndarray):
            return raw
        if self.corpus.modality == "image":
            return read_image(raw)
        rate = int(getattr(self.encoder, "sample_rate", SAMPLE_RATE))
        most = getattr(self.encoder, "max_seconds", None)
        audio, whole = read_sound(raw, rate, most)
        if whole is not None:
            cut.append(skip(record, f"cut to the first {most:g} s of {whole:.1f} s"))
        return audio


def records_of(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows of a table as mappings."""
    return [
        {str(key): value for key, value in record.items()} for record in rows.to_dict("records")
    ]


def skip(record: Mapping[str, Any], reason: object) -> Skipped:
    """A listed row that is left out, or kept in part."""
    return Skipped(
        str(record["row"]), str(record["item"]), str(record.get("path", "")), str(reason)
    )


def sift(
    attempt: Any, positions: Sequence[int], items: Sequence[Any], rows: pd.DataFrame
) -> tuple[list[int], list[Any], list[Skipped]]:
    """Items that `attempt` takes one by one, with their positions, and those it refuses."""
    good, kept, skipped = list[int](), list[Any](), list[Skipped]()
    for position, item in zip(positions, items, strict=True):
        try:
            attempt([item])
        except REFUSALS as error:
            skipped.append(
                skip(
                    records_of(rows.iloc[[position]])[0],
                    f"the encoder refuses it ({' '.join(str(error).split())})",
                )
            )
        else:
            good.append(position)
            kept.append(item)
    return good, kept, skipped
