"""A store that grows shard by shard and survives being stopped at any moment.

Beside the shards lies `.embed/` until the store is finished: what the run is (`plan.json`), and for each shard of the plan how many
rows it kept and which it skipped. That record is written before the shard's vectors, so a record without vectors is a shard to redo.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from gera_lightning.data.corpus import Listing, Skipped
from gera_lightning.data.store import EmbeddingStore, StoreWriter
from gera_lightning.encoders.base import Encoder
from gera_lightning.encoders.batches import records_of, skip
from gera_lightning.encoders.settings import EmbedConfig
from gera_lightning.errors import UserError
from gera_lightning.files import replace_atomically

SCRATCH = ".embed"
SKIPPED = "skipped.jsonl"


@dataclass(frozen=True)
class Encoded:
    """A batch's rows `[n, D]` float32 at `positions`, and what was skipped."""

    shard: int
    last: bool
    positions: list[int]
    rows: np.ndarray
    skipped: list[Skipped]


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
        what = f"{store}: {count} of {self.total} items cannot be used, such as {first.path or first.row!r} ({first.reason})"
        if self.strict:
            raise UserError(f"{what}: mend it, or leave out embed.strict=true")
        raise UserError(
            f"{what}: more than embed.max_skipped={self.share}, see {store / SKIPPED}; "
            "raise it to go on from here, or mend the items and start again with overwrite=true"
        )


class Shards:
    """The growing store with its `.embed/` folder. Only the first process has one.

    Args:
        path: the store's folder.
        listing: all rows, and what the corpus itself left out.
        settings: dtype and limits.
        plan: what identifies the run; leftovers of another run are dropped.
    """

    def __init__(self, path: Path, listing: Listing, settings: EmbedConfig, plan: str) -> None:
        self.path, self.listing, self.scratch = path, listing, path / SCRATCH
        if not self.scratch.exists() and any(path.glob("emb_*.npy")):
            raise UserError(f"{path} holds vectors that are not of this run: choose another folder, or replace them with overwrite=true")
        self.scratch.mkdir(parents=True, exist_ok=True)
        self.lock = FileLock(self.scratch / "lock")
        try:
            self.lock.acquire(timeout=0)
        except Timeout as error:
            raise UserError(f"{path}: another process is writing this store: wait for it") from error
        record = self.scratch / "plan.json"
        same = record.is_file() and json.loads(record.read_text()) == {"plan": plan}
        if not same:
            remove_store(path, keep=(self.scratch / "lock",))
        self.writer = StoreWriter(path, settings.dtype)
        replace_atomically(record, json.dumps({"plan": plan}).encode())
        self.limit = SkipLimit(len(listing.rows) + len(listing.skipped), settings.strict, settings.max_skipped)
        self.done, self.skipped = self._committed()
        self.limit.check(listing.skipped, len(listing.skipped), path)

    def _committed(self) -> tuple[int, list[Skipped]]:
        """Leading shards of the plan that are whole, and what they skipped: a shard's record is written before its vectors."""
        written, skipped = len(self.writer.shards), list(self.listing.skipped)
        number = 0
        while (record := self.scratch / f"shard_{number:06d}.json").is_file():
            content = json.loads(record.read_text())
            if content["kept"]:
                if not written:
                    break
                written -= 1
            skipped += [Skipped(**entry) for entry in content["skipped"]]
            number += 1
        return number, skipped

    def commit(self, shard: int, parts: list[Encoded]) -> None:
        """Append one shard of the plan.

        Raises:
            UserError: too much is skipped.
        """
        skipped = [entry for part in parts for entry in part.skipped]
        positions = np.array([position for part in parts for position in part.positions], dtype=np.int64)
        order = np.argsort(positions)
        positions = positions[order]
        with np.errstate(over="ignore"):
            vectors = np.concatenate([part.rows for part in parts])[order].astype(self.writer.dtype)
        finite = np.isfinite(vectors).all(1)
        records = records_of(self.listing.rows.iloc[positions[~finite]])
        skipped += [skip(record, f"the encoder gave values that are not finite in {self.writer.dtype}") for record in records]
        skipped.sort(key=lambda entry: entry.row)
        self.skipped += skipped
        if self.limit.strict:
            self.limit.check(skipped, len(self.skipped), self.path)
        record = {"kept": int(finite.sum()), "skipped": [asdict(entry) for entry in skipped]}
        replace_atomically(self.scratch / f"shard_{shard:06d}.json", json.dumps(record, ensure_ascii=False).encode())
        if finite.any():
            self.writer.append(vectors[finite], self.listing.rows.iloc[positions[finite]])
        if len(self.skipped) > self.limit.share * self.limit.total:
            self.write_skipped()
        self.limit.check(skipped, len(self.skipped), self.path)

    def write_skipped(self) -> None:
        """Write `skipped.jsonl`, one line an entry that was left out."""
        lines = [json.dumps(asdict(entry), ensure_ascii=False) + "\n" for entry in self.skipped]
        replace_atomically(self.path / SKIPPED, "".join(lines).encode())

    def finish(self, encoder: Encoder, source: dict[str, Any]) -> EmbeddingStore:
        """Write `skipped.jsonl` and the manifest, and remove what only the run needed."""
        self.write_skipped()
        store = self.writer.finish(encoder.describe(), {**source, "skipped": len(self.skipped)})
        remove_scratch(self.path)
        return store


def remove_store(path: Path, keep: Sequence[Path] = ()) -> None:
    """Remove a store's files, whole or half written, but no others, nor `keep`."""
    patterns = ("manifest.json", "shard_*.json", "emb_*.npy", "rows_*.parquet", SKIPPED, f"{SCRATCH}/*")
    for file in {file for pattern in patterns for file in path.glob(pattern)} - set(keep):
        file.unlink()


def remove_scratch(path: Path) -> None:
    """Remove what only the run needed."""
    shutil.rmtree(path / SCRATCH, ignore_errors=True)
    for record in path.glob("shard_*.json"):
        record.unlink()
