"""Embedding stores: folders of memory-mapped vectors with one table row a vector.

A store is a folder (the layout that clip-retrieval and autofaiss read)::

    emb_0000.npy, emb_0001.npy, ...            float16 or float32, [n, D], C order
    rows_0000.parquet, rows_0001.parquet, ...  same order; `row` (unique) and `item` are required
    manifest.json                              format, version, dim, dtype, count, shards + sha256,
    encoder, source

Rows of two stores with the same `item` are a pair. Optional columns: `text`, `path`, `group`
(source of nuisance: voice, renderer), `family` (never cut by a split), `label`, `split` (train,
test, both, unused).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from gera_lightning.utils.errors import UserError, check_one_of
from gera_lightning.utils.files import file_sha256, replace_atomically

log = logging.getLogger(__name__)
FORMAT = "gera-embeddings"
VERSION = 1
REQUIRED_COLUMNS = ("row", "item")
SPLITS = ("train", "test", "both", "unused")
DTYPES = ("float16", "float32")
SCRATCH = ".embed"
"""Folder that an unfinished run of `gera embed` keeps beside its shards."""
PARTS = ("emb_*.npy", "rows_*.parquet")
"""Files of a store's shards."""
BEGUN = ".begun"
"""File that a writer keeps until its store is finished: files of vectors beside it are the
writer's, and may be written over.
"""


@dataclass(frozen=True)
class Shard:
    """One pair of files of a store: `count` vectors and their rows."""

    vectors: str
    rows: str
    count: int
    vectors_sha256: str
    rows_sha256: str


class EmbeddingStore:
    """A store opened for reading; vectors stay on disk until `read`.

    Args:
        path: the store's folder.

    Raises:
        UserError: no store there, an unknown format, or rows that break the contract.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        manifest_path = self.path / "manifest.json"
        if not manifest_path.is_file():
            inside = [folder.name for folder in store_folders(self.path)]
            there = "" if self.path.is_absolute() else f" in {Path.cwd()}"
            remedy = (
                f"it holds {', '.join(inside)}: name one of them"
                if inside
                else "check the path, or build it"
            )
            raise UserError(
                f"no embedding store at {str(self.path)!r} (manifest.json is missing{there}):"
                f" {remedy}"
            )
        try:
            self.manifest: dict[str, Any] = json.loads(manifest_path.read_text())
            self.dim = int(self.manifest["dim"])
            self.count = int(self.manifest["count"])
            self.shards = [Shard(**shard) for shard in self.manifest["shards"]]
            kind = (self.manifest["format"], self.manifest["version"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{manifest_path}: not a readable manifest ({error!r}): rebuild the store"
            ) from error
        if kind != (FORMAT, VERSION):
            raise UserError(
                f"{manifest_path}: format {kind[0]!r} version {kind[1]!r}; this version reads"
                f" {FORMAT!r} version {VERSION}"
            )
        self._vectors = [self._open_shard(shard) for shard in self.shards]
        self._starts = np.cumsum([0, *(len(v) for v in self._vectors)])
        if self._starts[-1] != self.count:
            raise UserError(
                f"{manifest_path}: count is {self.count} but the shards hold {self._starts[-1]}"
                " vectors: rebuild the store"
            )

    def _open_shard(self, shard: Shard) -> np.ndarray:
        path = self.path / shard.vectors
        try:
            vectors = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise UserError(
                f"{path}: cannot be read as a .npy array ({error}): rebuild the store"
            ) from error
        if vectors.shape != (shard.count, self.dim) or vectors.dtype.name not in DTYPES:
            raise UserError(
                f"{path}: holds {vectors.dtype} {vectors.shape}, the manifest says"
                f" {(shard.count, self.dim)} of {' or '.join(DTYPES)}: rebuild the store"
            )
        return vectors

    def __len__(self) -> int:
        return self.count

    def __repr__(self) -> str:
        return f"EmbeddingStore({str(self.path)!r}, count={self.count}, dim={self.dim})"

    @cached_property
    def rows(self) -> pd.DataFrame:
        """The table of rows, in the order of the vectors, index 0..count-1."""
        parts = []
        for shard in self.shards:
            try:
                part = pd.read_parquet(self.path / shard.rows)
            except (OSError, ValueError) as error:
                raise UserError(
                    f"{self.path / shard.rows}: cannot be read as a table ({error}): rebuild the"
                    " store"
                ) from error
            if len(part) != shard.count:
                raise UserError(
                    f"{self.path / shard.rows}: {len(part)} rows for {shard.count} vectors: rebuild"
                    " the store"
                )
            if file_sha256(self.path / shard.rows) != shard.rows_sha256:
                log.warning(
                    "%s is not what the manifest says: finished runs and caches of the store as it"
                    " was are taken for its own; write it anew",
                    self.path / shard.rows,
                )
            parts.append(part)
        table = pd.concat(parts, ignore_index=True)
        check_rows(table, str(self.path))
        return table

    @cached_property
    def data_hash(self) -> str:
        """Hash of the shards' checksums: equal for stores with equal vectors and rows, wherever
        they lie.
        """
        sums = "".join(shard.vectors_sha256 + shard.rows_sha256 for shard in self.shards)
        return hashlib.sha256(sums.encode()).hexdigest()[:16]

    @property
    def encoder(self) -> dict[str, Any]:
        """What made the vectors, as the manifest records it."""
        return self.manifest.get("encoder") or {}

    def read(self, indices: np.ndarray | Sequence[int] | slice = slice(None)) -> np.ndarray:
        """Vectors at `indices`, row numbers, a slice or a mask of all rows, as float32 `[n, D]`.

        Raises:
            UserError: a vector that is not finite (named by its row).
            IndexError: an index beyond the store, or a mask of another length.
        """
        if isinstance(indices, slice):
            index = np.arange(*indices.indices(self.count))
        else:
            given = np.asarray(indices)
            index = np.arange(self.count)[given if given.dtype == bool else given.astype(np.int64)]
        out = np.empty((len(index), self.dim), dtype=np.float32)
        shard_of = np.searchsorted(self._starts, index, side="right") - 1
        for number, vectors in enumerate(self._vectors):
            here = np.flatnonzero(shard_of == number)
            if len(here):
                out[here] = vectors[index[here] - self._starts[number]]
        if not np.isfinite(out).all():
            bad = index[~np.isfinite(out).all(axis=1)]
            name = self.rows["row"].iloc[bad[0]]
            raise UserError(
                f"{self.path}: {len(bad)} vectors are not finite, the first is row {name!r}: embed"
                " them again or leave them out"
            )
        return out

    def verify(self) -> None:
        """Compare every file with its checksum in the manifest.

        Raises:
            UserError: naming the file that differs.
        """
        for shard in self.shards:
            for name, expected in (
                (shard.vectors, shard.vectors_sha256),
                (shard.rows, shard.rows_sha256),
            ):
                path = self.path / name
                if not path.is_file() or file_sha256(path) != expected:
                    raise UserError(
                        f"{path}: missing, or its checksum differs from the manifest: restore or"
                        " rebuild the store"
                    )


def is_whole(path: str | os.PathLike[str]) -> bool:
    """Whether a store is there and every file of it is as its manifest says."""
    try:
        EmbeddingStore(path).verify()
    except (UserError, OSError):
        return False
    return True


def store_folders(path: str | os.PathLike[str]) -> list[Path]:
    """The folder itself where it is a store, else those of its folders that are: one a layer, as
    `embed` writes several of them.
    """
    whole = Path(path)
    return (
        [whole]
        if (whole / "manifest.json").is_file()
        else sorted(file.parent for file in whole.glob("*/manifest.json"))
    )


def check_rows(table: pd.DataFrame, where: str) -> None:
    """Check a table of rows against the contract.

    Raises:
        UserError: a missing column, a `row` or `item` that is null or not text, a repeated `row`,
            an unknown `split`.
    """
    for column in REQUIRED_COLUMNS:
        if column not in table:
            raise UserError(
                f"{where}: column {column!r} is missing (has {', '.join(table.columns)})"
            )
        if table[column].isna().any():
            raise UserError(
                f"{where}: column {column!r} has empty values at position"
                f" {int(table[column].isna().argmax())}"
            )
        odd = next((value for value in table[column] if not isinstance(value, str)), None)
        if odd is not None:
            raise UserError(
                f"{where}: column {column!r} holds {odd}, not text: write it as {str(odd)!r}"
            )
    if table["row"].duplicated().any():
        raise UserError(
            f"{where}: row {table['row'][table['row'].duplicated()].iloc[0]!r} stands there twice;"
            " `row` must be unique"
        )
    if "split" in table:
        unknown = set(table["split"].dropna().unique()) - set(SPLITS)
        if unknown:
            raise UserError(
                f"{where}: split {sorted(map(str, unknown))[0]!r} is not one of {', '.join(SPLITS)}"
            )


def left_out(infinite: bool, dtype: str) -> str:
    """Why a vector of one of `as_kept`'s masks is left out."""
    return f"values that are {'not finite in' if infinite else 'too small for'} {dtype}"


def as_kept(vectors: np.ndarray, dtype: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vectors `[..., D]` as a store keeps them, and two masks `[...]` of what it cannot keep.

    Returns:
        the vectors in `dtype`; those that are not finite in it; those that are too small for it and
        would be zero.
    """
    with np.errstate(over="ignore"):
        kept = np.ascontiguousarray(vectors, dtype=dtype)
    return kept, ~np.isfinite(kept).all(-1), np.any(vectors, axis=-1) & ~np.any(kept, axis=-1)


class StoreWriter:
    """Append shards to a store; `finish` makes it readable. An interrupted writer goes on after its
    last whole shard.

    Args:
        path: folder to make or to go on in.
        dtype: `float16` or `float32`, how vectors are kept.
        resume: keep the whole shards of an interrupted writer; False drops them.

    Raises:
        UserError: an unknown dtype, a store at `path`, or with `resume=False` an unfinished run of
            `gera embed` or vectors of no writer.
    """

    def __init__(
        self, path: str | os.PathLike[str], dtype: str = "float16", *, resume: bool = True
    ) -> None:
        check_one_of("dtype", dtype, DTYPES)
        self.path = Path(path)
        self.dtype = dtype
        if (self.path / "manifest.json").exists():
            raise UserError(
                f"{str(path)!r} holds a store already: remove it, or choose another folder"
            )
        if not resume and (self.path / SCRATCH).exists():
            raise UserError(
                f"{str(path)!r} holds an unfinished run of gera embed: finish or remove it, or"
                " choose another folder"
            )
        records = sorted(self.path.glob("shard_*.json"))  # kept only until `finish`
        files = [file for pattern in PARTS for file in self.path.glob(pattern)]
        if not resume and files and not records and not (self.path / BEGUN).exists():
            raise UserError(
                f"{str(path)!r} holds {files[0].name}, which is of no store: choose another folder"
            )
        self.shards: list[Shard] = []
        if resume:
            self.shards += [Shard(**json.loads(record.read_text())) for record in records]
        else:
            self.withdraw()
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / BEGUN).touch()

    @property
    def count(self) -> int:
        """Rows in whole shards."""
        return sum(shard.count for shard in self.shards)

    def append(self, vectors: np.ndarray, rows: pd.DataFrame) -> None:
        """Write one shard: `vectors` [n, D] and its `rows` (n rows).

        Raises:
            UserError: rows that break the contract, another width than before, or values beyond
                float16.
        """
        vectors = np.asarray(vectors)
        if (
            vectors.ndim != 2
            or not vectors.shape[1]
            or vectors.dtype.kind not in "fiub"
            or len(vectors) != len(rows)
        ):
            raise UserError(
                f"{self.path}: vectors must be real numbers [n, D], one for each of {len(rows)}"
                f" rows, got {vectors.dtype} {vectors.shape}"
            )
        check_rows(rows, str(self.path))
        if self.shards:
            width = int(
                np.load(
                    self.path / self.shards[0].vectors, mmap_mode="r", allow_pickle=False
                ).shape[1]
            )
            if vectors.shape[1] != width:
                raise UserError(
                    f"{self.path}: vectors of width {vectors.shape[1]} after a shard of width"
                    f" {width}: one encoder a store"
                )
        kept, odd, lost = as_kept(vectors, self.dtype)
        beyond = odd & np.isfinite(vectors).all(1)
        if beyond.any():
            name = rows["row"].iloc[beyond.argmax()]
            raise UserError(
                f"{self.path}: row {name!r} has values beyond {self.dtype}'s"
                f" {np.finfo(kept.dtype).max:g}: write it with dtype=float32"
            )
        if lost.any():
            name = rows["row"].iloc[lost.argmax()]
            raise UserError(
                f"{self.path}: row {name!r} is too small for {self.dtype} and would be zero: write"
                " it with dtype=float32"
            )
        number = len(self.shards)
        names = f"emb_{number:04d}.npy", f"rows_{number:04d}.parquet"
        np.save(self.path / names[0], kept)
        rows.reset_index(drop=True).to_parquet(self.path / names[1], index=False)
        shard = Shard(*names, len(rows), *(file_sha256(self.path / name) for name in names))
        replace_atomically(self.path / f"shard_{number:04d}.json", json.dumps(vars(shard)).encode())
        self.shards.append(shard)

    def withdraw(self) -> None:
        """Remove what was written."""
        for pattern in ("shard_*.json", *PARTS, BEGUN):
            for file in self.path.glob(pattern):
                file.unlink()
        self.shards.clear()

    def finish(self, encoder: Mapping[str, Any], source: Mapping[str, Any]) -> EmbeddingStore:
        """Write the manifest and open the store.

        Args:
            encoder: name, revision, pooling and preprocessing of what made the vectors.
            source: where the raw data came from, with its licence.
        """
        if not self.shards:
            raise UserError(f"{self.path}: nothing was written, so there is no store to finish")
        dim = int(np.load(self.path / self.shards[0].vectors, mmap_mode="r").shape[1])
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "dim": dim,
            "dtype": self.dtype,
            "count": self.count,
            "shards": [vars(shard) for shard in self.shards],
            "encoder": dict(encoder),
            "source": dict(source),
        }
        replace_atomically(
            self.path / "manifest.json",
            (json.dumps(manifest, indent=1, ensure_ascii=False) + "\n").encode(),
        )
        for file in (*self.path.glob("shard_*.json"), self.path / BEGUN):
            file.unlink(missing_ok=True)
        return EmbeddingStore(self.path)


def write_store(
    path: str | os.PathLike[str],
    vectors: np.ndarray,
    rows: pd.DataFrame,
    *,
    encoder: Mapping[str, Any],
    source: Mapping[str, Any],
    dtype: str = "float16",
    shard_rows: int = 100_000,
) -> EmbeddingStore:
    """Write `vectors` [n, D] and `rows` as a new store, in shards of `shard_rows`.

    Raises:
        UserError: a store is there already, the rows break the contract or are not as many as the
            vectors, or values beyond `dtype`.
    """
    if (
        not isinstance(rows, pd.DataFrame)
        or not isinstance(encoder, Mapping)
        or not isinstance(source, Mapping)
    ):
        raise UserError(
            'rows must be a pandas DataFrame, encoder and source mappings, such as {"name":'
            ' "my-encoder"}'
        )
    check_rows(rows, str(path))
    if shard_rows < 1:
        raise UserError(f"shard_rows={shard_rows} must be at least 1")
    if len(vectors) != len(rows):
        raise UserError(
            f"{str(path)!r}: {len(vectors)} vectors for {len(rows)} rows: one each, in the same"
            " order"
        )
    writer = StoreWriter(path, dtype, resume=False)
    for start in range(0, len(rows), shard_rows):
        writer.append(vectors[start : start + shard_rows], rows.iloc[start : start + shard_rows])
    return writer.finish(encoder, source)
