"""A store that grows shard by shard and survives being stopped at any moment.

Until the store is finished, the folder `.embed/` lies beside its shards. `plan.json` says which run
it is. For each shard of the plan there is a record: how many rows the shard has, which items it
skipped or cut, and the state of its raw files. The record is written before the shard's vectors, so
a record without vectors is a shard to do again.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from filelock import FileLock, Timeout

from gera_lightning.config.embed_schema import EmbedConfig
from gera_lightning.data.records import Skipped
from gera_lightning.data.store import (
    SCRATCH,
    SHARD_FILES,
    UNFINISHED,
    EmbeddingStore,
    StoreWriter,
    cast_vectors,
    whole_shards,
)
from gera_lightning.embedding.batches import records_of, skip
from gera_lightning.embedding.corpus import Corpus, Listing
from gera_lightning.encoders.base import Encoder
from gera_lightning.utils.errors import UserError
from gera_lightning.utils.files import natural_order, replace_atomically

SKIPPED = "skipped.jsonl"
CUT = "cut.jsonl"


@dataclass(frozen=True)
class Encoded:
    """The rows of a batch.

    Attributes:
        shard: number of their shard.
        last: whether this is the last batch of its process in the shard.
        positions: row numbers.
        rows: their vectors, float32 `[n, D]`, or `[n, L, D]` of several layers.
        skipped: items of the batch that have no row.
        cut: items of which only the beginning was read.
    """

    shard: int
    last: bool
    positions: list[int]
    rows: np.ndarray
    skipped: list[Skipped]
    cut: list[Skipped]


@dataclass(frozen=True)
class SkipLimit:
    """How many items may be skipped before a run stops.

    Attributes:
        total: number of items.
        strict: none may be skipped.
        share: else this share of them.
    """

    total: int
    strict: bool
    share: float

    def check(self, skipped: list[Skipped], count: int, store: Path) -> None:
        """Refuse too many.

        Args:
            skipped: the latest ones.
            count: all so far.
            store: the folder, for the message.

        Raises:
            UserError: any under `strict`, else more than the share.
        """
        if not skipped or not (self.strict or count > self.share * self.total):
            return
        first = skipped[0]
        found = (
            f"stops {store}: {count} of {self.total} items cannot be used, such as"
            f" {first.path or first.row!r} ({first.reason})"
        )
        if self.strict:
            raise UserError(
                found, key="embed.strict", value=True, remedy="repair it, or set embed.strict=false"
            )
        raise UserError(
            f"{found}, see {store / SKIPPED}",
            key="embed.max_skipped",
            value=self.share,
            remedy="raise it to go on from here, or repair the items and start again with"
            " overwrite=true",
        )


class Shards:
    """The growing store with its `.embed/` folder. Only the first process has one.

    Args:
        path: the folder of the run.
        folders: those of the stores: `path` itself, or one per layer inside it.
        corpus: names the raw files.
        listing: all rows, and what the corpus itself skipped.
        settings: number format and limits.
        plan: hash that identifies the run.

    Attributes:
        done: shards of the plan that are written.
        skipped, cut: all items so far that were skipped, or cut.

    Raises:
        UserError: shards of another run, vectors of no run, another process at work here, or too
            many items that are skipped already.
    """

    def __init__(
        self,
        path: Path,
        folders: Sequence[Path],
        corpus: Corpus,
        listing: Listing,
        settings: EmbedConfig,
        plan: str,
    ) -> None:
        self.path, self.folders, self.scratch = path, folders, path / SCRATCH
        self.corpus, self.listing = corpus, listing
        self.shard_rows, self.dtype = settings.shard_rows, settings.dtype
        self._check_no_foreign_vectors()
        self.scratch.mkdir(parents=True, exist_ok=True)
        self.lock = FileLock(self.scratch / "lock")
        try:
            self.lock.acquire(timeout=0)
        except Timeout as error:
            raise UserError(
                "is being written by another process", key=str(path), remedy="wait for it"
            ) from error
        plan_file = self.scratch / "plan.json"
        same_run = plan_file.is_file() and json.loads(plan_file.read_text(encoding="utf-8")) == {
            "plan": plan
        }
        if not same_run:
            self._clear_other_run()
        self._drop_uneven_shards()
        self.writers = [StoreWriter(folder, self.dtype) for folder in folders]
        replace_atomically(plan_file, json.dumps({"plan": plan}).encode())
        total = len(listing.rows) + len(listing.skipped)
        self.limit = SkipLimit(total, settings.strict, settings.max_skipped)
        self.done, self.skipped, self.cut = self._committed()
        self.limit.check(listing.skipped, len(listing.skipped), path)

    def _check_no_foreign_vectors(self) -> None:
        found = any(file for folder in self.folders for file in folder.glob("emb_*.npy"))
        if found and not self.scratch.exists():
            raise UserError(
                "holds vectors that are not of this run",
                key=str(self.path),
                remedy="choose another folder, or replace them with overwrite=true",
            )

    def _clear_other_run(self) -> None:
        """Remove an unfinished run that has no whole shard yet.

        Raises:
            UserError: it has one.
        """
        if rows := _rows_in_shards(self.path):
            self.lock.release()
            raise UserError(
                f"holds {rows:,} rows of an unfinished run with other settings or items",
                key=str(self.path),
                remedy="put them back, or replace the rows with overwrite=true",
            )
        remove_store(self.path, keep=(self.scratch / "lock",))

    def _drop_uneven_shards(self) -> None:
        """Bring the stores of all layers to the shards that every one of them has.

        A kill may come between two layers of a shard, or between their manifests in `finish`.
        """
        for folder in self.folders:
            if (folder / "manifest.json").is_file():
                for number, shard in enumerate(EmbeddingStore(folder).shards):
                    record = folder / f"shard_{number:04d}.json"
                    replace_atomically(record, json.dumps(vars(shard)).encode())
                (folder / "manifest.json").unlink()
        in_every_store = min(len(whole_shards(folder)) for folder in self.folders)
        for folder in self.folders:
            for record in sorted(folder.glob("shard_*.json"), key=natural_order)[in_every_store:]:
                record.unlink()

    def _committed(self) -> tuple[int, list[Skipped], list[Skipped]]:
        """Number of leading shards of the plan that are written, and what they skipped and cut.

        Raises:
            UserError: one of their raw files has changed.
        """
        vectors_left = len(self.writers[0].shards)
        skipped, cut = list(self.listing.skipped), list[Skipped]()
        number = 0
        while (record := self.scratch / f"shard_{number:06d}.json").is_file():
            content = json.loads(record.read_text(encoding="utf-8"))
            if content["kept"]:
                if not vectors_left:
                    break  # the record was written, its vectors were not
                vectors_left -= 1
            if content["files"] != self._files(number):
                names = self._rows(number)["row"]
                raise UserError(
                    f"is unfinished, and raw files of its rows {names.iloc[0]!r} to"
                    f" {names.iloc[-1]!r} have changed since",
                    key=str(self.path),
                    remedy="put them back, or start again with overwrite=true",
                )
            skipped += [Skipped(**entry) for entry in content["skipped"]]
            cut += [Skipped(**entry) for entry in content["cut"]]
            number += 1
        return number, skipped, cut

    def _rows(self, shard: int) -> pd.DataFrame:
        return self.listing.rows.iloc[shard * self.shard_rows : (shard + 1) * self.shard_rows]

    def _files(self, shard: int) -> str:
        """Hash of the size and the time of change of a shard's raw files; texts are in the plan."""
        states = list[tuple[int, int] | None]()
        for file in (self.corpus.file(record) for record in records_of(self._rows(shard))):
            found = file.stat() if file is not None and file.exists() else None
            states.append((found.st_size, found.st_mtime_ns) if found else None)
        return hashlib.sha256(repr(states).encode()).hexdigest()[:16]

    def commit(self, shard: int, batches: list[Encoded]) -> None:
        """Write one shard of the plan.

        Args:
            shard: its number.
            batches: its rows, from all processes, in any order.

        Raises:
            UserError: too many items are skipped.
        """
        positions = np.array(
            [position for batch in batches for position in batch.positions], dtype=np.int64
        )
        order = np.argsort(positions)
        positions = positions[order]
        cast = cast_vectors(np.concatenate([batch.rows for batch in batches])[order], self.dtype)
        refused = records_of(self.listing.rows.iloc[positions[~cast.usable]])
        skipped = [entry for batch in batches for entry in batch.skipped] + [
            skip(record, f"the encoder gave {reason}")
            for record, reason in zip(refused, cast.reasons, strict=True)
        ]
        skipped.sort(key=lambda entry: entry.row)
        cut = sorted((entry for batch in batches for entry in batch.cut), key=lambda e: e.row)
        self.skipped += skipped
        self.cut += cut
        if self.limit.strict:
            self.limit.check(skipped, len(self.skipped), self.path)
        self._write_record(shard, int(cast.usable.sum()), skipped, cut)
        self._write_vectors(cast.vectors[cast.usable], positions[cast.usable])
        if len(self.skipped) > self.limit.share * self.limit.total:
            self.write_skipped()
        self.limit.check(skipped, len(self.skipped), self.path)

    def _write_record(
        self, shard: int, kept: int, skipped: list[Skipped], cut: list[Skipped]
    ) -> None:
        record = {
            "kept": kept,
            "files": self._files(shard),
            "skipped": [asdict(entry) for entry in skipped],
            "cut": [asdict(entry) for entry in cut],
        }
        replace_atomically(
            self.scratch / f"shard_{shard:06d}.json",
            json.dumps(record, ensure_ascii=False).encode(),
        )

    def _write_vectors(self, vectors: np.ndarray, positions: np.ndarray) -> None:
        if not len(positions):
            return
        layers = vectors.reshape(len(positions), len(self.writers), -1)  # [n, L, D], L = 1 for one
        for number, writer in enumerate(self.writers):
            writer.append(layers[:, number], self.listing.rows.iloc[positions])

    def write_skipped(self) -> None:
        """Write `skipped.jsonl`, one line per item that was skipped, and `cut.jsonl` if one was
        cut.
        """
        for name, entries in ((SKIPPED, self.skipped), (CUT, self.cut)):
            if entries or name == SKIPPED:
                lines = [json.dumps(asdict(entry), ensure_ascii=False) + "\n" for entry in entries]
                replace_atomically(self.path / name, "".join(lines).encode())

    def finish(self, encoder: Encoder, source: dict[str, Any]) -> list[EmbeddingStore]:
        """Write the lists of skipped and cut items and the manifests; remove `.embed/`."""
        self.write_skipped()
        about = encoder.describe()
        source = {**source, "skipped": len(self.skipped), "cut": len(self.cut)}
        encoders = [about]
        if self.folders[0] != self.path:
            encoders = [{**about, "layer": layer} for layer in about["layer"]]
        stores = [
            writer.finish(each, source) for writer, each in zip(self.writers, encoders, strict=True)
        ]
        remove_scratch(self.path, self.folders)
        return stores


def _rows_in_shards(path: Path) -> int:
    """Rows in whole shards of an unfinished run."""
    rows_of_stores = (
        sum(
            int(json.loads(record.read_text(encoding="utf-8"))["count"])
            for record in folder.glob("shard_*.json")
        )
        for folder in (path, *path.glob("layer_*"))
    )
    return max(rows_of_stores)


def remove_store(path: Path, keep: Sequence[Path] = ()) -> None:
    """Remove the files of a store and of its layers, whole or half written, and no others.

    Args:
        path: the folder.
        keep: files to leave.
    """
    patterns = (
        *("manifest.json", UNFINISHED, "shard_*.json", *SHARD_FILES),
        *(SKIPPED, CUT, f"{SCRATCH}/*"),
    )
    layers = list(path.glob("layer_*"))
    for folder in (path, *layers):
        for pattern in patterns:
            for file in folder.glob(pattern):
                if file not in keep:
                    file.unlink()
    for folder in layers:
        if not any(folder.iterdir()):
            folder.rmdir()


def remove_scratch(path: Path, folders: Sequence[Path]) -> None:
    """Remove what only an unfinished run needs."""
    shutil.rmtree(path / SCRATCH, ignore_errors=True)
    for folder in folders:
        for file in (*folder.glob("shard_*.json"), folder / UNFINISHED):
            file.unlink(missing_ok=True)
