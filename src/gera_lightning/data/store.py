"""Embedding stores: folders of memory-mapped vectors, with one table row per vector.

A store is a folder (the layout that clip-retrieval and autofaiss read)::

    emb_0000.npy, emb_0001.npy, ...            float16 or float32, [n, D], C order
    rows_0000.parquet, rows_0001.parquet, ...  same order; `row` (unique) and `item` are required
    manifest.json                              format, version, dim, dtype, count, shards + sha256,
                                               encoder, source

Rows of two stores with the same `item` are a pair. Optional columns: `text`, `path`, `group`
(source of nuisance: voice, renderer), `family` (near-duplicates, never cut by a split), `label`,
`split` (train, test, both, unused), `condition` (test rows of another kind, such as `robot`, which
are evaluated apart under that name). `both` is for names of classes, in the second store: they are
seen in training and searched in test, and the first store's rows of such an item have each a
`split` of their own.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from gera_lightning.data.verification import VerifiedFiles
from gera_lightning.utils.errors import UserError, check_one_of
from gera_lightning.utils.files import (
    file_sha256,
    flush,
    named_errors,
    natural_order,
    read_bounded,
    replace_atomically,
)

log = logging.getLogger(__name__)
FORMAT = "gera-embeddings"
VERSION = 1
ABOUT = ("encoder", "source")
"""Parts of a manifest that say where the rows come from."""
REQUIRED_COLUMNS = ("row", "item")
SPLITS = ("train", "test", "both", "unused")
DTYPES = ("float16", "float32")
CONDITION = re.compile(r"(?!unseen$)[A-Za-z][A-Za-z0-9_]*")
SCRATCH = ".embed"
"""Folder that an unfinished run of `gera embed` keeps beside its shards."""
SHARD_FILES = ("emb_*.npy", "rows_*.parquet")
"""Files of a store's shards."""
UNFINISHED = ".begun"
"""File that a writer keeps until its store is finished. It says that the shards beside it are a
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

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Shard:
        """The shard that a manifest or a writer recorded.

        Raises:
            ValueError: its files do not lie in the store's folder.
            TypeError: keys are missing, or there are others.
        """
        shard = cls(**record)
        for name in (shard.vectors, shard.rows):
            if name in ("", ".", "..") or Path(name).name != name:
                raise ValueError(f"{name!r} is no file of the store's folder")
        return shard

    def is_whole(self, files: VerifiedFiles) -> bool:
        """Whether both files are as they were written."""
        return files.check(self.vectors, self.vectors_sha256) and files.check(
            self.rows, self.rows_sha256
        )


class EmbeddingStore:
    """A store opened for reading; vectors stay on disk until `read`.

    A file is compared with its checksum in the manifest before it is read first.

    Args:
        path: the store's folder.

    Attributes:
        count, dim: number of rows, and width of a vector.
        manifest: the content of `manifest.json`.

    Raises:
        UserError: no store there, an unknown format, or files that do not match the manifest.

    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> _ = write_store(f"{folder.name}/text", np.eye(3), {"item": ["cat", "dog", "owl"]})
    >>> store = EmbeddingStore(f"{folder.name}/text")
    >>> len(store), store.dim, store.rows["item"].tolist()
    (3, 3, ['cat', 'dog', 'owl'])
    >>> store.read([2, 0])
    array([[0., 0., 1.],
           [1., 0., 0.]], dtype=float32)
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        manifest_path = self.path / "manifest.json"
        if not manifest_path.is_file():
            raise _no_store(self.path)
        try:
            self.manifest: dict[str, Any] = json.loads(read_bounded(manifest_path, 2**28))
            self.dim = int(self.manifest["dim"])
            self.count = int(self.manifest["count"])
            self.shards = [Shard.of(shard) for shard in self.manifest["shards"]]
            written_as = (self.manifest["format"], self.manifest["version"])
            if not all(isinstance(self.manifest.get(key) or {}, dict) for key in ABOUT):
                raise ValueError(f"{' or '.join(ABOUT)} is no mapping")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise _damaged(manifest_path, f"is not a readable manifest ({error!r})") from error
        if written_as != (FORMAT, VERSION):
            raise UserError(
                f"has format {written_as[0]!r} version {written_as[1]!r}; this version reads"
                f" {FORMAT!r} version {VERSION}",
                key=str(manifest_path),
            )
        self._files, self._checked = VerifiedFiles(self.path), set[str]()
        self._vectors = [self._open_shard(shard) for shard in self.shards]
        self._starts = np.cumsum([0, *(len(vectors) for vectors in self._vectors)])
        if self._starts[-1] != self.count:
            found = f"{self._starts[-1]} vectors"
            raise _damaged(manifest_path, f"counts {self.count}, but the shards hold {found}")

    def _open_shard(self, shard: Shard) -> np.ndarray:
        path = self.path / shard.vectors
        try:
            vectors = np.load(path, mmap_mode="r", allow_pickle=False)
        except Exception as error:  # a damaged header may be anything to NumPy's parser
            raise _damaged(path, f"cannot be read as a .npy array ({error})") from error
        if vectors.shape != (shard.count, self.dim) or vectors.dtype.name not in DTYPES:
            expected = f"{(shard.count, self.dim)} of {' or '.join(DTYPES)}"
            found = f"holds {vectors.dtype} {vectors.shape}, the manifest says {expected}"
            raise _damaged(path, found)
        return vectors

    def __len__(self) -> int:
        return self.count

    def __repr__(self) -> str:
        return (
            f"EmbeddingStore({str(self.path)!r}, rows={self.count}, width={self.dim},"
            f" encoder={self.encoder.get('name', 'unknown')!r})"
        )

    @cached_property
    def rows(self) -> pd.DataFrame:
        """The table of rows, in the order of the vectors, index 0..count-1."""
        table = pd.concat([self._read_rows(shard) for shard in self.shards], ignore_index=True)
        check_rows(table, str(self.path))
        return table

    def _read_rows(self, shard: Shard) -> pd.DataFrame:
        path = self.path / shard.rows
        self._check(shard.rows, shard.rows_sha256)
        try:
            rows = pd.read_parquet(path)
        except (OSError, ValueError, pa.ArrowException) as error:
            raise _damaged(path, f"cannot be read as a table ({error})") from error
        if len(rows) != shard.count:
            raise _damaged(path, f"holds {len(rows)} rows for {shard.count} vectors")
        return rows

    @cached_property
    def data_hash(self) -> str:
        """Hash of the shards' checksums: equal for stores with equal vectors and rows, wherever
        they are.
        """
        sums = "".join(shard.vectors_sha256 + shard.rows_sha256 for shard in self.shards)
        return hashlib.sha256(sums.encode()).hexdigest()[:16]

    @property
    def encoder(self) -> dict[str, Any]:
        """What made the vectors, as the manifest records it."""
        return self.manifest.get("encoder") or {}

    def read(self, indices: np.ndarray | Sequence[int] | slice = slice(None)) -> np.ndarray:
        """Vectors as float32 `[n, D]`.

        Args:
            indices: row numbers in any order, a slice, or a mask of all rows; all by default.

        Raises:
            UserError: a vector that is not finite (named by its row), or a file that is not as it
                was written.
            IndexError: an index beyond the store, or a mask of another length.
        """
        index = _row_numbers(indices, self.count)
        out = np.empty((len(index), self.dim), dtype=np.float32)
        shard_of = np.searchsorted(self._starts, index, side="right") - 1
        for number in np.unique(shard_of):
            self._check(self.shards[number].vectors, self.shards[number].vectors_sha256)
            in_shard = np.flatnonzero(shard_of == number)
            out[in_shard] = self._vectors[number][index[in_shard] - self._starts[number]]
        finite = np.isfinite(out)
        if not finite.all():
            not_finite = index[~finite.all(axis=1)]
            name = self.rows["row"].iloc[not_finite[0]]
            raise UserError(
                f"has {len(not_finite)} vectors that are not finite, the first is row {name!r}",
                key=str(self.path),
                remedy="embed them again, or remove them",
            )
        return out

    def verify(self) -> None:
        """Read every file, and compare it with its checksum in the manifest.

        Raises:
            UserError: naming the file that differs.
        """
        for shard in self.shards:
            for name, expected in (
                (shard.vectors, shard.vectors_sha256),
                (shard.rows, shard.rows_sha256),
            ):
                if not self._files.check(name, expected, again=True):
                    raise _not_as_written(self.path / name)

    def _check(self, name: str, expected: str) -> None:
        """Compare a file with its checksum, once."""
        if name not in self._checked:
            if not self._files.check(name, expected):
                raise _not_as_written(self.path / name)
            self._checked.add(name)


def _not_as_written(path: Path) -> UserError:
    return UserError(
        "is missing, or its checksum is not that of the manifest",
        key=str(path),
        remedy="restore the file, or rebuild the store",
    )


def _row_numbers(indices: np.ndarray | Sequence[int] | slice, count: int) -> np.ndarray:
    """Numbers 0..count-1 of the rows that are asked for; negative ones count from the end."""
    if isinstance(indices, slice):
        return np.arange(*indices.indices(count))
    index = np.asarray(indices)
    if index.dtype == bool:
        if index.shape != (count,):
            raise IndexError(f"a mask of shape {index.shape} for {count} rows")
        return np.flatnonzero(index)
    index = index.astype(np.int64)  # an empty list is of floats
    if index.size and not -count <= index.min() <= index.max() < count:
        raise IndexError(f"rows {index.min()} to {index.max()} of {count}")
    return index % count


def _no_store(path: Path) -> UserError:
    stores_inside = [folder.name for folder in store_folders(path)]
    searched = "" if path.is_absolute() else f" in {Path.cwd()}"
    return UserError(
        f"no embedding store at {str(path)!r} (manifest.json is missing{searched})",
        remedy=f"it holds {', '.join(stores_inside)}: name one of them"
        if stores_inside
        else "check the path, or build the store",
    )


def _damaged(path: Path, problem: str) -> UserError:
    return UserError(problem, key=str(path), remedy="rebuild the store")


def is_whole(path: str | os.PathLike[str]) -> bool:
    """Whether there is a store whose files are all as its manifest says."""
    try:
        store = EmbeddingStore(path)
    except (UserError, OSError):
        return False
    files = VerifiedFiles(path)
    return all(shard.is_whole(files) for shard in store.shards)


def whole_shards(path: Path) -> list[Shard]:
    """The leading whole shards of an unfinished writer; records of damaged ones, and of those after
    them, are removed.
    """
    files, shards = VerifiedFiles(path), list[Shard]()
    records = sorted(path.glob("shard_*.json"), key=natural_order)
    for record in records:
        try:
            shard = Shard.of(json.loads(record.read_text(encoding="utf-8")))
        except (ValueError, TypeError):
            break
        if not shard.is_whole(files):
            break
        shards.append(shard)
    if len(shards) < len(records):
        log.warning(
            "%s: shard %d is damaged: it and those after it are written again", path, len(shards)
        )
    for record in records[len(shards) :]:
        record.unlink()
    return shards


def store_folders(path: str | os.PathLike[str]) -> list[Path]:
    """The folder itself if it is a store, else the stores in it (`gera embed` writes one per
    layer).
    """
    folder = Path(path)
    if (folder / "manifest.json").is_file():
        return [folder]
    return sorted(
        (manifest.parent for manifest in folder.glob("*/manifest.json")), key=natural_order
    )


def check_rows(table: pd.DataFrame, where: str) -> None:
    """Check the table of rows of a store.

    Args:
        table: the rows.
        where: what the message begins with.

    Raises:
        UserError: a missing column, a `row` or `item` that is empty or not text, a repeated `row`,
            an unknown `split`.
    """
    for column in REQUIRED_COLUMNS:
        if column not in table:
            has = ", ".join(map(str, table.columns))
            raise UserError(f"has no column {column!r} (it has {has})", key=where)
        if table[column].isna().any():
            position = int(table[column].isna().argmax())
            raise UserError(f"has an empty {column!r} at position {position}", key=where)
        others = [] if isinstance(table[column].dtype, pd.StringDtype) else list(table[column])
        no_text = next((value for value in others if not isinstance(value, str)), None)
        if no_text is not None:
            raise UserError(
                f"has {no_text} in column {column!r}, which is not text",
                key=where,
                remedy=f"write it as {str(no_text)!r}",
            )
    repeated = table["row"].duplicated()
    if repeated.any():
        name = table["row"][repeated].iloc[0]
        raise UserError(f"has the row {name!r} twice", key=where, remedy="make `row` unique")
    if "condition" in table:
        _check_conditions(table, where)
    if "split" in table:
        unknown = set(table["split"].dropna().unique()) - set(SPLITS)
        if unknown:
            name = sorted(map(str, unknown))[0]
            known = ", ".join(SPLITS)
            raise UserError(f"has the split {name!r}, which is not one of {known}", key=where)


def _check_conditions(table: pd.DataFrame, where: str) -> None:
    """Rows of a condition are test rows, and its name stands in those of measures.

    Raises:
        UserError: another split, or another name.
    """
    for name in table["condition"].dropna().unique():
        if not CONDITION.fullmatch(str(name)):
            raise UserError(
                f"has the condition {name!r}",
                key=where,
                remedy="name it by letters, digits and _, and not unseen",
            )
    outside = table["condition"].notna() & (table.get("split") != "test")
    if outside.any():
        row = table["row"][outside].iloc[0]
        raise UserError(f"has the condition of row {row!r} outside of split `test`", key=where)


def with_row_names(rows: pd.DataFrame) -> pd.DataFrame:
    """The table with a column `row`, made of the item and a number where there is none.

    >>> with_row_names(pd.DataFrame({"item": ["cat", "dog", "cat"]}))["row"].tolist()
    ['cat-0', 'dog-0', 'cat-1']
    """
    if "row" in rows or "item" not in rows:
        return rows
    number = rows.groupby("item", dropna=False).cumcount().astype(str)
    names = rows["item"].astype(str) + "-" + number
    return pd.concat([names.rename("row"), rows], axis=1)


# ---- number formats ----


@dataclass(frozen=True)
class CastVectors:
    """Vectors in the number format of a store, and which of them it cannot hold.

    Attributes:
        vectors: the vectors in that format, `[n, D]` or `[n, L, D]`.
        not_finite: rows with a value that is infinite or NaN in it, `[n]`.
        underflows: rows that are not zero, and would become zero, `[n]`.
    """

    vectors: np.ndarray
    not_finite: np.ndarray
    underflows: np.ndarray

    @property
    def usable(self) -> np.ndarray:
        """Rows that a store can hold, `[n]`."""
        return ~(self.not_finite | self.underflows)

    @property
    def reasons(self) -> list[str]:
        """Why a store cannot hold each row that is not `usable`, in their order."""
        return [
            f"values that are {'not finite in' if not_finite else 'too small for'}"
            f" {self.vectors.dtype}"
            for not_finite in self.not_finite[~self.usable]
        ]


def cast_vectors(vectors: np.ndarray, dtype: str) -> CastVectors:
    """Cast vectors to a store's number format, and find those that it cannot hold.

    Args:
        vectors: `[n, D]`, or `[n, L, D]` of L layers. A row that one layer cannot hold counts as
            one that none can hold.
        dtype: `float16` or `float32`.

    >>> cast_vectors(np.array([[1.0, 2.0], [1e6, 0.0], [1e-9, 0.0]]), "float16").reasons
    ['values that are not finite in float16', 'values that are too small for float16']
    """
    with np.errstate(over="ignore"):
        cast = np.ascontiguousarray(vectors, dtype=dtype)
    not_finite = ~np.isfinite(cast).all(axis=-1)
    underflows = np.any(vectors, axis=-1) & ~np.any(cast, axis=-1)
    if cast.ndim == 3:
        not_finite, underflows = np.any(not_finite, axis=1), np.any(underflows, axis=1)
    return CastVectors(cast, not_finite, underflows)


# ---- writing ----


class StoreWriter:
    """Write a store shard by shard; `finish` makes it readable.

    An interrupted writer goes on after its leading whole shards.

    Args:
        path: folder to make or to go on in.
        dtype: `float16` or `float32`, the format of the vectors on disk.
        resume: keep the whole shards of an interrupted writer; False drops them.

    Raises:
        UserError: an unknown dtype, a store at `path`, or with `resume=False` an unfinished run of
            `gera embed` or files of vectors that no writer left.

    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> writer = StoreWriter(f"{folder.name}/text")
    >>> writer.append(np.eye(2), pd.DataFrame({"row": ["r0", "r1"], "item": ["cat", "dog"]}))
    >>> writer.append(np.ones((1, 2)), pd.DataFrame({"row": ["r2"], "item": ["owl"]}))
    >>> len(writer.finish({"name": "my-encoder"}, {"name": "my-corpus"}))
    3
    """

    def __init__(
        self, path: str | os.PathLike[str], dtype: str = "float16", *, resume: bool = True
    ) -> None:
        check_one_of("dtype", dtype, DTYPES)
        self.path = Path(path)
        self.dtype = dtype
        has_records = any(self.path.glob("shard_*.json"))  # kept only until `finish`
        self._check_folder(resume, has_records=has_records)
        self.shards: list[Shard] = []
        if resume:
            self.shards += whole_shards(self.path)
        else:
            self.remove()
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / UNFINISHED).touch()

    def _check_folder(self, resume: bool, has_records: bool) -> None:
        """Refuse a folder whose files are not this writer's to replace."""
        if (self.path / "manifest.json").exists():
            raise UserError(
                "holds a store already",
                key=str(self.path),
                remedy="remove it, or choose another folder",
            )
        if resume:
            return
        if (self.path / SCRATCH).exists():
            raise UserError(
                "holds an unfinished run of gera embed",
                key=str(self.path),
                remedy="finish or remove it, or choose another folder",
            )
        files = [file for pattern in SHARD_FILES for file in self.path.glob(pattern)]
        if files and not has_records and not (self.path / UNFINISHED).exists():
            raise UserError(
                f"holds {files[0].name}, which belongs to no store",
                key=str(self.path),
                remedy="choose another folder",
            )

    @property
    def count(self) -> int:
        """Rows in whole shards."""
        return sum(shard.count for shard in self.shards)

    @property
    def dim(self) -> int:
        """Width of the vectors in the first shard."""
        first = self.path / self.shards[0].vectors
        return int(np.load(first, mmap_mode="r", allow_pickle=False).shape[1])

    def append(self, vectors: np.ndarray, rows: pd.DataFrame) -> None:
        """Write one shard.

        Args:
            vectors: `[n, D]`.
            rows: their n rows, with `row` and `item`.

        Raises:
            UserError: rows that a store cannot have, another width than before, or values that do
                not fit the writer's dtype.
        """
        vectors = np.asarray(vectors)
        self._check(vectors, rows)
        cast = cast_vectors(vectors, self.dtype)
        overflows = cast.not_finite & np.isfinite(vectors).all(axis=1)
        for refused, problem in (
            (overflows, f"with values beyond {np.finfo(self.dtype).max:g}"),
            (cast.underflows, "whose values are so small that they would become zero"),
        ):
            if refused.any():
                name = rows["row"].iloc[refused.argmax()]
                raise UserError(
                    f"cannot hold row {name!r} of {self.path}, {problem}",
                    key="dtype",
                    value=self.dtype,
                    remedy="write it with dtype=float32",
                )
        number = len(self.shards)
        names = f"emb_{number:04d}.npy", f"rows_{number:04d}.parquet"
        vectors_file, rows_file = (self.path / name for name in names)
        with named_errors(vectors_file):
            np.save(vectors_file, cast.vectors)
            flush(vectors_file)
        with named_errors(rows_file):
            rows.reset_index(drop=True).to_parquet(rows_file, index=False)
            flush(rows_file)
        shard = Shard(*names, len(rows), *(file_sha256(self.path / name) for name in names))
        # the record comes last: a shard without one was cut off, and is written again
        replace_atomically(self.path / f"shard_{number:04d}.json", json.dumps(vars(shard)).encode())
        self.shards.append(shard)

    def _check(self, vectors: np.ndarray, rows: pd.DataFrame) -> None:
        numeric = vectors.dtype.kind in "fiub"
        is_matrix = vectors.ndim == 2 and vectors.shape[1] > 0
        if not numeric or not is_matrix or len(vectors) != len(rows):
            raise UserError(
                f"needs vectors of real numbers [n, D], one for each of {len(rows)} rows, got"
                f" {vectors.dtype} {vectors.shape}",
                key=str(self.path),
            )
        check_rows(rows, str(self.path))
        if self.shards and vectors.shape[1] != self.dim:
            raise UserError(
                f"has vectors of width {self.dim}, got some of width {vectors.shape[1]}",
                key=str(self.path),
                remedy="write one store per encoder",
            )

    def remove(self) -> None:
        """Remove what was written."""
        for pattern in ("shard_*.json", *SHARD_FILES, UNFINISHED):
            for file in self.path.glob(pattern):
                file.unlink()
        self.shards.clear()

    def finish(self, encoder: Mapping[str, Any], source: Mapping[str, Any]) -> EmbeddingStore:
        """Write the manifest and open the store.

        Args:
            encoder: name, revision, pooling and preprocessing of what made the vectors.
            source: where the raw data came from, with its licence.

        Raises:
            UserError: nothing was written.
        """
        if not self.shards:
            raise UserError("has no rows: nothing was written", key=str(self.path))
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "dim": self.dim,
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
        for file in (*self.path.glob("shard_*.json"), self.path / UNFINISHED):
            file.unlink(missing_ok=True)
        return EmbeddingStore(self.path)


def write_store(
    path: str | os.PathLike[str],
    vectors: np.ndarray,
    rows: pd.DataFrame | Mapping[str, Sequence[Any]],
    *,
    encoder: Mapping[str, Any] | None = None,
    source: Mapping[str, Any] | None = None,
    dtype: str = "float16",
    shard_rows: int = 100_000,
) -> EmbeddingStore:
    """Write vectors and their rows as a new store.

    Args:
        path: the new store's folder.
        vectors: `[n, D]`, real numbers.
        rows: n rows, a DataFrame or lists by column. `item` alone is enough: rows of two stores
            with the same item are a pair. `row` is made of it; see the module for other columns.
        encoder: what made the vectors: `name`, and what else is known of it.
        source: where the raw data came from.
        dtype: `float16` or `float32`, the format of the vectors on disk.
        shard_rows: rows per file.

    Raises:
        UserError: a store is there already, rows that a store cannot have, or that are not as many
            as the vectors, or values that do not fit `dtype`.

    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> rows = {"item": ["cat", "dog", "cat"], "text": ["a cat", "a dog", "the cat"]}
    >>> store = write_store(f"{folder.name}/text", np.ones((3, 8)), rows)
    >>> store.rows["row"].tolist()
    ['cat-0', 'dog-0', 'cat-1']
    """
    encoder = {} if encoder is None else encoder
    source = {"name": "unknown"} if source is None else source
    for key, value in (("encoder", encoder), ("source", source)):
        if not isinstance(value, Mapping):
            example = f'write {{"name": "my-{key}"}}'
            raise UserError("is no mapping", key=key, value=value, remedy=example)
    if shard_rows < 1:
        raise UserError("must be at least 1", key="shard_rows", value=shard_rows)
    table = with_row_names(pd.DataFrame(rows))
    check_rows(table, str(path))
    if len(vectors) != len(table):
        raise UserError(
            f"gets {len(vectors)} vectors for {len(table)} rows",
            key=str(path),
            remedy="give one row per vector, in the same order",
        )
    writer = StoreWriter(path, dtype, resume=False)
    for start in range(0, len(table), shard_rows):
        writer.append(vectors[start : start + shard_rows], table.iloc[start : start + shard_rows])
    return writer.finish(encoder, source)
