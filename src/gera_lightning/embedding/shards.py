"""A store that grows shard by shard and survives being stopped at any moment.

Beside the shards lies `.embed/` until the store is finished: what the run is (`plan.json`), and for
each shard of the plan how many rows it kept, which it skipped or cut, and of what state its raw
files were. That record is written before the shard's vectors, so a record without vectors is a
shard to redo.
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
    BEGUN,
    PARTS,
    SCRATCH,
    EmbeddingStore,
    StoreWriter,
    as_kept,
    left_out,
)
from gera_lightning.embedding.batches import records_of, skip
from gera_lightning.embedding.corpus import Corpus, Listing
from gera_lightning.encoders.base import Encoder
from gera_lightning.utils.errors import UserError
from gera_lightning.utils.files import replace_atomically

SKIPPED = "skipped.jsonl"
CUT = "cut.jsonl"


@dataclass(frozen=True)
class Encoded:
    """A batch's rows `[n, D]` or `[n, L, D]` float32 at `positions`, what was skipped, and what of
    the rows was cut.
    """

    shard: int
    last: bool
    positions: list[int]
    rows: np.ndarray
    skipped: list[Skipped]
    cut: list[Skipped]


@dataclass(frozen=True)
class SkipLimit:
    """How much may be left out of `total` entries before a run stops."""

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
        what = (
            f"{store}: {count} of {self.total} items cannot be used, such as"
            f" {first.path or first.row!r} ({first.reason})"
        )
        if self.strict:
            raise UserError(f"{what}: mend it, or leave out embed.strict=true")
        raise UserError(
            f"{what}: more than embed.max_skipped={self.share}, see {store / SKIPPED}; "
            "raise it to go on from here, or mend the items and start again with overwrite=true"
        )


class Shards:
    """The growing store with its `.embed/` folder. Only the first process has one.

    Args:
        path: the folder of the run.
        folders: the stores': `path` itself, or one a layer inside it.
        corpus: where raw files are.
        listing: all rows, and what the corpus itself left out.
        settings: dtype and limits.
        plan: what identifies the run.

    Raises:
        UserError: whole shards of another run, vectors of no run, another process at work here, or
            too much that is skipped already.
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
        self.path, self.folders, self.corpus, self.listing, self.scratch = (
            path,
            folders,
            corpus,
            listing,
            path / SCRATCH,
        )
        if not self.scratch.exists() and any(
            file for folder in folders for file in folder.glob("emb_*.npy")
        ):
            raise UserError(
                f"{path} holds vectors that are not of this run: choose another folder, or replace"
                " them with overwrite=true"
            )
        self.scratch.mkdir(parents=True, exist_ok=True)
        self.lock = FileLock(self.scratch / "lock")
        try:
            self.lock.acquire(timeout=0)
        except Timeout as error:
            raise UserError(
                f"{path}: another process is writing this store: wait for it"
            ) from error
        record = self.scratch / "plan.json"
        same = record.is_file() and json.loads(record.read_text()) == {"plan": plan}
        if not same:
            if rows := _rows_in_shards(path):
                self.lock.release()
                raise UserError(
                    f"{path} holds {rows:,} rows of an unfinished run with other settings or items:"
                    " put them back, or replace them with overwrite=true"
                )
            remove_store(path, keep=(self.scratch / "lock",))
        self._level()
        self.writers = [StoreWriter(folder, settings.dtype) for folder in folders]
        self.dtype = settings.dtype
        replace_atomically(record, json.dumps({"plan": plan}).encode())
        self.limit = SkipLimit(
            len(listing.rows) + len(listing.skipped), settings.strict, settings.max_skipped
        )
        self.shard_rows = settings.shard_rows
        self.done, self.skipped, self.cut = self._committed()
        self.limit.check(listing.skipped, len(listing.skipped), path)

    def _level(self) -> None:
        """Bring all stores to the shards that every one of them has: a kill may fall between two
        layers of a shard, or of `finish`.
        """
        for folder in self.folders:
            if (folder / "manifest.json").is_file():
                for number, shard in enumerate(EmbeddingStore(folder).shards):
                    replace_atomically(
                        folder / f"shard_{number:04d}.json", json.dumps(vars(shard)).encode()
                    )
                (folder / "manifest.json").unlink()
        records = [sorted(folder.glob("shard_*.json")) for folder in self.folders]
        for record in [record for each in records for record in each[min(map(len, records)) :]]:
            record.unlink()

    def _committed(self) -> tuple[int, list[Skipped], list[Skipped]]:
        """Leading shards of the plan that are whole, and what they skipped and cut: a shard's
        record is written before its vectors.

        Raises:
            UserError: a raw file of theirs has changed.
        """
        written, skipped, cut = (
            len(self.writers[0].shards),
            list(self.listing.skipped),
            list[Skipped](),
        )
        number = 0
        while (record := self.scratch / f"shard_{number:06d}.json").is_file():
            content = json.loads(record.read_text())
            if content["kept"]:
                if not written:
                    break
                written -= 1
            if content["files"] != self._files(number):
                rows = self._rows(number)["row"]
                raise UserError(
                    f"{self.path}: raw files of the rows {rows.iloc[0]!r} to {rows.iloc[-1]!r} have"
                    " changed since these were embedded: put them back, or start again with"
                    " overwrite=true"
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

    def commit(self, shard: int, parts: list[Encoded]) -> None:
        """Append one shard of the plan.

        Raises:
            UserError: too much is skipped.
        """
        skipped = [entry for part in parts for entry in part.skipped]
        positions = np.array(
            [position for part in parts for position in part.positions], dtype=np.int64
        )
        order = np.argsort(positions)
        positions = positions[order]
        vectors, odd, lost = as_kept(
            np.concatenate([part.rows for part in parts])[order], self.dtype
        )
        if vectors.ndim == 3:  # what one layer cannot keep none keeps
            odd, lost = np.any(odd, axis=1), np.any(lost, axis=1)
        bad = odd | lost
        records = records_of(self.listing.rows.iloc[positions[bad]])
        skipped += [
            skip(record, f"the encoder gave {left_out(infinite, self.dtype)}")
            for record, infinite in zip(records, odd[bad], strict=True)
        ]
        skipped.sort(key=lambda entry: entry.row)
        self.skipped += skipped
        cut = sorted((entry for part in parts for entry in part.cut), key=lambda entry: entry.row)
        self.cut += cut
        if self.limit.strict:
            self.limit.check(skipped, len(self.skipped), self.path)
        told = {
            name: [asdict(entry) for entry in entries]
            for name, entries in (("skipped", skipped), ("cut", cut))
        }
        record = {"kept": int((~bad).sum()), "files": self._files(shard), **told}
        replace_atomically(
            self.scratch / f"shard_{shard:06d}.json",
            json.dumps(record, ensure_ascii=False).encode(),
        )
        if not bad.all():
            layers = vectors[~bad].reshape(
                int((~bad).sum()), len(self.writers), -1
            )  # [n, L, D], L = 1 of one store
            for number, writer in enumerate(self.writers):
                writer.append(layers[:, number], self.listing.rows.iloc[positions[~bad]])
        if len(self.skipped) > self.limit.share * self.limit.total:
            self.write_skipped()
        self.limit.check(skipped, len(self.skipped), self.path)

    def write_skipped(self) -> None:
        """Write `skipped.jsonl`, one line an entry that was left out, and `cut.jsonl` where one was
        kept in part.
        """
        for name, entries in ((SKIPPED, self.skipped), (CUT, self.cut)):
            if entries or name == SKIPPED:
                lines = [json.dumps(asdict(entry), ensure_ascii=False) + "\n" for entry in entries]
                replace_atomically(self.path / name, "".join(lines).encode())

    def finish(self, encoder: Encoder, source: dict[str, Any]) -> list[EmbeddingStore]:
        """Write what was skipped and cut, and the manifests, and remove what only the run needed."""
        self.write_skipped()
        about = encoder.describe()
        layers = about["layer"] if self.folders[0] != self.path else [None]
        told = [about if layer is None else {**about, "layer": layer} for layer in layers]
        source = {**source, "skipped": len(self.skipped), "cut": len(self.cut)}
        stores = [
            writer.finish(each, source) for writer, each in zip(self.writers, told, strict=True)
        ]
        remove_scratch(self.path, self.folders)
        return stores


def _rows_in_shards(path: Path) -> int:
    """Rows in whole shards of an unfinished run."""
    layers = [folder.glob("shard_*.json") for folder in (path, *path.glob("layer_*"))]
    return max(
        sum(int(json.loads(record.read_text())["count"]) for record in records)
        for records in layers
    )


def remove_store(path: Path, keep: Sequence[Path] = ()) -> None:
    """Remove a store's files, whole or half written, and those of its layers, but no others, nor
    `keep`.
    """
    patterns = ("manifest.json", BEGUN, "shard_*.json", *PARTS, SKIPPED, CUT, f"{SCRATCH}/*")
    layers = list(path.glob("layer_*"))
    for file in {
        file for folder in (path, *layers) for pattern in patterns for file in folder.glob(pattern)
    } - set(keep):
        file.unlink()
    for folder in layers:
        if not any(folder.iterdir()):
            folder.rmdir()


def remove_scratch(path: Path, folders: Sequence[Path]) -> None:
    """Remove what only the run needed."""
    shutil.rmtree(path / SCRATCH, ignore_errors=True)
    for file in [
        file for folder in folders for file in (*folder.glob("shard_*.json"), folder / BEGUN)
    ]:
        file.unlink(missing_ok=True)
