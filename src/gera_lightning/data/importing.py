"""Make stores of embeddings that exist already.

Reads `.npy`, `.npz` and safetensors files with a file of ids, tables with a column of vectors, and
clip-retrieval folders.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from gera_lightning.data.records import (
    COLUMNS,
    BadValue,
    Skipped,
    captions_of,
    one_line,
    printable,
    read_lines,
    read_records,
    text_of,
)
from gera_lightning.data.store import (
    DTYPES,
    EmbeddingStore,
    StoreWriter,
    cast_vectors,
    check_rows,
    with_row_names,
)
from gera_lightning.data.vector_tables import is_vector_table, table_records
from gera_lightning.utils.errors import UserError, check_one_of, did_you_mean
from gera_lightning.utils.files import replace_atomically

Folder = str | os.PathLike[str]
Part = tuple[np.ndarray, pd.DataFrame]
"""Vectors `[n, D]` and their rows."""
IDS = ("ids", "items", "item", "keys", "names", "filenames")
"""Names under which an `.npz` file's ids are found."""
CLIP_COLUMNS = {"item": "key", "path": "image_path", "text": "caption"}
"""Column of a store to column of clip-retrieval's metadata."""
CLIP_FOLDERS = {"image": "img_emb", "text": "text_emb"}
"""Side of a clip-retrieval folder to the folder of its vectors."""


def import_store(
    source: Folder,
    target: Folder,
    *,
    ids: Folder | None = None,
    key: str | None = None,
    side: str = "image",
    columns: Mapping[str, str] | None = None,
    encoder: str | None = None,
    dtype: str | None = None,
    shard_rows: int = 100_000,
) -> EmbeddingStore:
    """Write vectors that exist already as a store.

    Args:
        source: a `.npy`, `.npz` or `.safetensors` file of `[n, D]` vectors; a Parquet file, a
            folder of them, or a dataset saved by `datasets`, with a column of vectors; or a folder
            that clip-retrieval wrote.
        target: the new store's folder.
        ids: a table (.csv, .tsv, .jsonl, .parquet) with one row per vector in the same order: a
            column `item` and the optional columns of a store; or a `.txt` file with one item per
            line. Without it, an `.npz` file's own ids are the items, or else the positions `0`,
            `1`, ... are.
        key: name of the array in an `.npz` or safetensors file, or of the column of vectors in a
            table; not needed where there is only one.
        side: of a clip-retrieval folder, `image` or `text`.
        columns: column of the store to column of the table.
        encoder: what made the vectors, for the manifest; the file's name by default.
        dtype: `float16` or `float32`; the source's own by default.
        shard_rows: rows per file.

    Raises:
        UserError: nothing readable at `source`, ids that do not fit the vectors, or a store at
            `target`.

    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> np.save(f"{folder.name}/vectors.npy", np.eye(3))
    >>> store = import_store(f"{folder.name}/vectors.npy", f"{folder.name}/store")
    >>> store.rows["item"].tolist(), store.encoder
    (['0', '1', '2'], {'name': 'vectors'})
    """
    path = Path(source)
    columns = columns or {}
    if shard_rows < 1:
        raise UserError("must be at least 1", key="shard_rows", value=shard_rows)
    origin: dict[str, Any] = {"imported_from": path.name}
    if is_vector_table(path):
        if ids is not None:
            raise UserError(
                f"is not read: the table {path} has its own columns",
                key="ids",
                value=str(ids),
                remedy="name its column of items, columns.item=THEIRS",
            )
        parts = _table_parts(path, key, columns, shard_rows)
    elif path.is_dir():
        parts = clip_retrieval_parts(path, side, columns)
        origin["side"] = side
    elif path.is_file():
        vectors, own_ids = _read_vectors(path, key)
        parts = iter([(vectors, _rows_of(path, len(vectors), ids, own_ids, columns))])
    else:
        raise UserError("does not exist", key=str(path), remedy="check the path")
    writer, skipped = _write_parts(parts, Path(target), path, dtype, shard_rows)
    lines = [json.dumps(asdict(entry), ensure_ascii=False) + "\n" for entry in skipped]
    replace_atomically(writer.path / "skipped.jsonl", "".join(lines).encode())
    return writer.finish({"name": encoder or path.stem}, {**origin, "skipped": len(skipped)})


def _write_parts(
    parts: Iterator[Part], target: Path, source: Path, dtype: str | None, shard_rows: int
) -> tuple[StoreWriter, list[Skipped]]:
    """Write all parts; nothing is left of them where one is refused."""
    writer: StoreWriter | None = None
    skipped, names = list[Skipped](), set[str]()
    try:
        for vectors, rows in parts:
            if repeated := names.intersection(rows["row"]):
                raise UserError(
                    f"has the row {min(repeated)!r} twice",
                    key=str(source),
                    remedy="make `row` unique",
                )
            names.update(rows["row"])
            if writer is None:
                own = vectors.dtype.name if vectors.dtype.name in DTYPES else "float32"
                writer = StoreWriter(target, dtype or own, resume=False)
            for start in range(0, len(rows), shard_rows):
                shard = slice(start, start + shard_rows)
                skipped += _append_usable(writer, vectors[shard], rows.iloc[shard])
        if writer is None or not writer.shards:
            raise UserError("has no vectors that a store can hold", key=str(source))
    except BaseException:  # also Ctrl+C: half an import is of no use
        if writer is not None:
            writer.remove()
        raise
    return writer, skipped


def _append_usable(writer: StoreWriter, vectors: np.ndarray, rows: pd.DataFrame) -> list[Skipped]:
    """Write the rows that the store can hold as one shard; return the others."""
    cast = cast_vectors(np.asarray(vectors), writer.dtype)
    if cast.usable.any():
        writer.append(cast.vectors[cast.usable], rows[cast.usable])
    refused = rows.loc[~cast.usable, ["row", "item"]].itertuples(index=False)
    return [
        Skipped(row, item, "", reason)
        for (row, item), reason in zip(refused, cast.reasons, strict=True)
    ]


# ---- files of vectors ----


def _read_vectors(path: Path, key: str | None) -> tuple[np.ndarray, list[Any] | None]:
    """Vectors `[n, D]` of a file, and the ids in it, if any; a `.npy` file stays on disk."""
    suffix = path.suffix.lower()
    try:
        if suffix == ".npy":
            return _matrix(np.load(path, mmap_mode="r", allow_pickle=False), path), None
        if suffix == ".npz":
            return _read_npz(path, key)
        if suffix == ".safetensors":
            return _matrix(_read_tensor(path, key), path), None
    except UserError:
        raise
    except Exception as error:  # a damaged header may be anything to NumPy's parser
        raise _unreadable(path, error) from error
    raise UserError(
        "is no file of vectors", key=str(path), remedy="give .npy, .npz, .safetensors or .parquet"
    )


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError(
        f"cannot be read ({one_line(error)[:200]})", key=str(path), remedy="check the file"
    )


def _read_npz(path: Path, key: str | None) -> tuple[np.ndarray, list[Any] | None]:
    with np.load(path, allow_pickle=False) as arrays:
        dimensions = {name: arrays[name].ndim for name in arrays.files}
        vectors = _matrix(arrays[_array_name(key, dimensions, path)], path)
        own_ids = next((arrays[name].tolist() for name in IDS if dimensions.get(name) == 1), None)
    return vectors, own_ids


def _read_tensor(path: Path, key: str | None) -> np.ndarray:
    import torch
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        names = list(file.keys())
        dimensions = {name: len(file.get_slice(name).get_shape()) for name in names}
        tensor = file.get_tensor(_array_name(key, dimensions, path))
    is_half = tensor.dtype.itemsize == 2 and tensor.dtype != torch.bfloat16  # unknown to NumPy
    return (tensor if is_half else tensor.float()).numpy()


def _array_name(key: str | None, dimensions: Mapping[str, int], path: Path) -> str:
    """The array that `key` names, by default the only one of two dimensions."""
    if key is not None:
        if key not in dimensions:
            raise UserError(
                f"is no array of {path}{did_you_mean(key, dimensions)}", key="key", value=key
            )
        return key
    matrices = [name for name, count in dimensions.items() if count == 2]
    if len(matrices) != 1:
        raise UserError(
            f"has {len(matrices)} arrays of two dimensions ({', '.join(dimensions)})",
            key=str(path),
            remedy="name one, key=...",
        )
    return matrices[0]


def _matrix(vectors: np.ndarray, path: Path) -> np.ndarray:
    if vectors.ndim != 2 or vectors.dtype.kind not in "fiu":
        found = f"{vectors.dtype} {vectors.shape}"
        raise UserError(f"holds {found}, not vectors [n, D]", key=str(path))
    return vectors


# ---- rows ----


def _rows_of(
    path: Path,
    count: int,
    ids: Folder | None,
    own_ids: Sequence[Any] | None,
    columns: Mapping[str, str],
) -> pd.DataFrame:
    """Rows of the `count` vectors of a file: of a file of ids, its own ids, or their positions."""
    where = str(path if ids is None else ids)
    records: list[dict[str, Any]]
    if ids is not None:
        records = _read_ids(Path(ids))
    else:
        items = map(str, range(count)) if own_ids is None else own_ids
        records = [{"item": item} for item in items]
    if len(records) != count:
        raise UserError(
            f"has {len(records)} ids for {count} vectors of {path}",
            key=where,
            remedy="give one per vector, in the same order",
        )
    return rows_from(records, columns, where)


def _read_ids(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise UserError("does not exist", key="ids", value=str(path), remedy="check the path")
    if path.suffix.lower() == ".txt":
        try:
            return [{"item": line} for line in read_lines(path)]
        except UnicodeDecodeError as error:
            raise _unreadable(path, error) from error
    return list(read_records(path))


def rows_from(
    records: Sequence[Mapping[str, Any]], columns: Mapping[str, str], where: str
) -> pd.DataFrame:
    """A store's table, one row per record, in order; `row` is made of the item where it is missing.

    Args:
        records: rows as mappings.
        columns: column of the store to key of the records; by default the same name.
        where: what a message begins with.

    Raises:
        UserError: no `item` column, or rows that a store cannot have.

    >>> rows_from([{"id": 7, "caption": "a cat"}], {"item": "id", "text": "caption"}, "here")
       row item   text
    0  7-0    7  a cat
    """
    if not records:
        raise UserError("has no rows", key=where)
    known = set().union(*(record.keys() for record in records[:1000]))
    chosen = {column: columns.get(column, column) for column in COLUMNS}
    chosen = {column: theirs for column, theirs in chosen.items() if theirs in known}
    for column in ("item", *columns):
        if column not in chosen:
            has = ", ".join(sorted(known))
            raise UserError(
                f"has no column {columns.get(column, column)!r} for {column} (it has {has})",
                key=where,
                remedy=f"name it, columns.{column}=THEIRS",
            )
    table = with_row_names(
        pd.DataFrame(
            {
                column: [_text_of(record.get(theirs), column, where) for record in records]
                for column, theirs in chosen.items()
            }
        )
    )
    check_rows(table, where)
    return table


def _text_of(value: Any, column: str, where: str) -> str | None:
    """A value as text; of a list of captions the first.

    Raises:
        UserError: a value that a store cannot keep.
    """
    captions = captions_of(value) if column == "text" else None
    if captions is not None:
        value = next(iter(captions), None)
    try:
        return text_of(value)
    except BadValue as error:
        shown = printable(str(value))[:60]
        raise UserError(f"has {error} in column {column!r}: {shown}", key=where) from error


# ---- tables and clip-retrieval folders ----


def _table_parts(
    path: Path, key: str | None, columns: Mapping[str, str], shard_rows: int
) -> Iterator[Part]:
    """Vectors and rows of a table, its small batches joined to shards."""
    records, batches = table_records(path, key, columns)
    rows = rows_from(records, columns, str(path))
    start, waiting = 0, list[np.ndarray]()
    for batch in batches:
        waiting.append(batch)
        end = start + sum(map(len, waiting))
        if end - start >= shard_rows or end == len(rows):
            yield np.concatenate(waiting), rows.iloc[start:end]
            start, waiting = end, []


def clip_retrieval_parts(folder: Path, side: str, columns: Mapping[str, str]) -> Iterator[Part]:
    """Vectors and rows of each part of a clip-retrieval folder.

    A part is a pair of files such as `img_emb/img_emb_0.npy` and `metadata/metadata_0.parquet`.

    Args:
        folder: what `clip-retrieval inference` wrote.
        side: `image` or `text`.
        columns: column of the store to theirs; by default the item is `key`, or else `image_path`.

    Raises:
        UserError: no vectors of that side, or a part whose metadata are missing or of another
            length.
    """
    check_one_of("side", side, list(CLIP_FOLDERS))
    files = {_number(path): path for path in (folder / CLIP_FOLDERS[side]).glob("*.npy")}
    if not files:
        raise UserError(
            f"has no {CLIP_FOLDERS[side]}/*.npy, so it is no clip-retrieval folder with {side}"
            " vectors",
            key=str(folder),
            remedy="check side= and the path",
        )
    for number, path in sorted(files.items()):
        metadata = _metadata_of(folder / "metadata", number)
        records = list(read_records(metadata))
        vectors, _ = _read_vectors(path, None)
        if len(records) != len(vectors):
            raise UserError(
                f"has {len(records)} rows for {len(vectors)} vectors of {path.name}",
                key=str(metadata),
                remedy="run clip-retrieval again",
            )
        yield vectors, _clip_rows(records, number, columns, str(metadata))


def _metadata_of(folder: Path, number: int) -> Path:
    """Metadata of a part; its number may be padded with zeros, the vectors' not."""
    exact = folder / f"metadata_{number}.parquet"
    padded = [path for path in folder.glob("metadata_*.parquet") if _number(path) == number]
    if not exact.is_file() and not padded:
        raise UserError(
            "is missing, so the rows of this part have no names",
            key=str(exact),
            remedy="restore it",
        )
    return exact if exact.is_file() else padded[0]


def _clip_rows(
    records: Sequence[Mapping[str, Any]], number: int, columns: Mapping[str, str], where: str
) -> pd.DataFrame:
    known = set(records[0]) if records else set()
    theirs = {column: name for column, name in CLIP_COLUMNS.items() if name in known}
    if "image_path" in known:
        theirs.setdefault("item", "image_path")
    rows = rows_from(records, {**theirs, **columns}, where)
    has_names = "row" in columns or "row" in known
    if not has_names and rows["item"].duplicated().any():
        # numbered within this part only: another part may hold the same item
        rows["row"] = [f"{number}-{row}" for row in rows["row"]]
    return rows


def _number(path: Path) -> int:
    found = re.search(r"(\d+)$", path.stem)
    return int(found.group(1)) if found else 0
