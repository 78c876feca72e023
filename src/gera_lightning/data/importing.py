"""Embeddings that people have already, as stores: `.npy`, `.npz` and safetensors with a file of
ids, tables with a column of vectors, and clip-retrieval folders.
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

from gera_lightning.data.records import COLUMNS, Skipped, read_records, text_of
from gera_lightning.data.store import (
    DTYPES,
    EmbeddingStore,
    StoreWriter,
    as_kept,
    check_rows,
    left_out,
)
from gera_lightning.data.vector_tables import is_vector_table, table_records
from gera_lightning.utils.errors import UserError, check_one_of, did_you_mean
from gera_lightning.utils.files import replace_atomically

Folder = str | os.PathLike[str]
IDS = ("ids", "items", "item", "keys", "names", "filenames")
"""Names under which an `.npz` file's ids are found."""
CLIP_COLUMNS = {"item": "key", "path": "image_path", "text": "caption"}
"""Our column to clip-retrieval's."""


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
    """Write vectors that are there already as a store.

    Args:
        source: a `.npy`, `.npz` or `.safetensors` file of `[n, D]` vectors; a Parquet file, a
            folder of them, or a dataset that the library `datasets` saved to disk, with a column of
            vectors; or a folder that clip-retrieval wrote.
        target: the new store's folder.
        ids: table (.csv, .tsv, .jsonl, .parquet) with a row a vector in the same order, `item` and
            what else a store has; or a `.txt` file, an item a line. Without it an `.npz` file's own
            ids are taken, or else the position (`0`, `1`, ...) is the item.
        key: array of an `.npz` or safetensors file, or column of a table; by default its only one
            of vectors.
        side: of a clip-retrieval folder: `image` or `text`.
        columns: our column to that of the table.
        encoder: what made the vectors, for the manifest.
        dtype: `float16` or `float32`; the source's own by default.
        shard_rows: rows a file.

    Raises:
        UserError: nothing readable there, ids that do not fit the vectors, or a store at `target`.
    """
    path = Path(source)
    record: dict[str, Any] = {"imported_from": path.name}
    if is_vector_table(path):
        if ids is not None:
            raise UserError(
                f"ids={str(ids)!r}: {path} is a table and brings its own: name its columns,"
                " columns.item=THEIRS"
            )
        parts = _table_parts(path, key, columns, shard_rows)
    elif path.is_dir():
        parts = clip_retrieval_parts(path, side, columns)
        record["side"] = side
    elif path.is_file():
        vectors, own = _vectors_of(path, key)
        parts = iter([(vectors, _rows_of(ids, own, len(vectors), columns, path))])
    else:
        raise UserError(f"{path}: there is no such file or folder: check the path")
    return _write(
        parts, Path(target), path, {"name": encoder or path.stem}, record, dtype, shard_rows
    )


def _write(
    parts: Iterator[tuple[np.ndarray, pd.DataFrame]],
    target: Path,
    path: Path,
    encoder: dict[str, Any],
    source: dict[str, Any],
    dtype: str | None,
    shard_rows: int,
) -> EmbeddingStore:
    if shard_rows < 1:
        raise UserError(f"shard_rows={shard_rows} must be at least 1")
    writer: StoreWriter | None = None
    skipped, seen = list[Skipped](), set[str]()
    try:
        for vectors, rows in parts:
            if twice := seen.intersection(rows["row"]):
                raise UserError(
                    f"{path}: row {min(twice)!r} stands there twice; `row` must be unique"
                )
            seen.update(rows["row"])
            if writer is None:
                kept_as = dtype or (
                    vectors.dtype.name if vectors.dtype.name in DTYPES else "float32"
                )
                writer = StoreWriter(target, kept_as, resume=False)
            for start in range(0, len(rows), shard_rows):
                skipped += _append(
                    writer,
                    vectors[start : start + shard_rows],
                    rows.iloc[start : start + shard_rows],
                )
    except BaseException:  # also Ctrl+C: half an import is of no use
        if writer is not None:
            writer.withdraw()
        raise
    if writer is None or not writer.shards:
        raise UserError(f"{path}: holds no vectors that can be kept")
    lines = [json.dumps(asdict(entry), ensure_ascii=False) + "\n" for entry in skipped]
    replace_atomically(target / "skipped.jsonl", "".join(lines).encode())
    return writer.finish(encoder, {**source, "skipped": len(skipped)})


def _append(writer: StoreWriter, vectors: np.ndarray, rows: pd.DataFrame) -> list[Skipped]:
    """Write one shard of what can be kept; returns the rest."""
    part, odd, lost = as_kept(np.asarray(vectors), writer.dtype)
    whole = ~(odd | lost)
    if whole.any():
        writer.append(part[whole], rows[whole])
    left = rows.loc[~whole, ["row", "item"]].itertuples(index=False)
    return [
        Skipped(row, item, "", left_out(infinite, writer.dtype))
        for (row, item), infinite in zip(left, odd[~whole], strict=True)
    ]


def _vectors_of(path: Path, key: str | None) -> tuple[np.ndarray, list[Any] | None]:
    """Vectors `[n, D]` of a file, and ids where it holds them; a `.npy` file stays on disk."""
    suffix = path.suffix.lower()
    try:
        if suffix == ".npy":
            return _matrix(np.load(path, mmap_mode="r", allow_pickle=False), path), None
        if suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                chosen = _chosen(key, {name: arrays[name].ndim for name in arrays.files}, path)
                own = next(
                    (
                        arrays[name]
                        for name in IDS
                        if name in arrays.files and arrays[name].ndim == 1
                    ),
                    None,
                )
                return _matrix(arrays[chosen], path), None if own is None else own.tolist()
        if suffix == ".safetensors":
            return _matrix(_tensor(path, key), path), None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: cannot be read ({' '.join(str(error).split())[:200]}): check the file"
        ) from error
    raise UserError(f"{path}: a file of vectors ends in .npy, .npz, .safetensors or .parquet")


def _tensor(path: Path, key: str | None) -> np.ndarray:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            shapes = {name: len(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118  it is no mapping
            tensor = file.get_tensor(_chosen(key, shapes, path))
    except SafetensorError as error:
        raise UserError(f"{path}: cannot be read ({error}): check the file") from error
    return (
        tensor.float()
        if tensor.dtype.itemsize != 2 or str(tensor.dtype) == "torch.bfloat16"
        else tensor
    ).numpy()


def _chosen(key: str | None, dimensions: Mapping[str, int], path: Path) -> str:
    if key is not None:
        if key not in dimensions:
            raise UserError(f"key={key!r}: {path} has no such array{did_you_mean(key, dimensions)}")
        return key
    found = [name for name, count in dimensions.items() if count == 2]
    if len(found) != 1:
        raise UserError(
            f"{path} holds {len(found)} arrays of two dimensions ({', '.join(dimensions)}): name"
            " one, key=..."
        )
    return found[0]


def _matrix(vectors: np.ndarray, path: Path) -> np.ndarray:
    if vectors.ndim != 2 or vectors.dtype.kind not in "fiu":
        raise UserError(f"{path}: holds {vectors.dtype} {vectors.shape}, not vectors [n, D]")
    return vectors


def _rows_of(
    ids: Folder | None,
    own: Sequence[Any] | None,
    count: int,
    columns: Mapping[str, str] | None,
    path: Path,
) -> pd.DataFrame:
    if ids is None:
        records: list[dict[str, Any]] = [
            {"item": item} for item in (own if own is not None else map(str, range(count)))
        ]
        where = str(path)
    else:
        where = str(ids)
        if not Path(ids).is_file():
            raise UserError(f"ids={where!r}: there is no such file: check the path")
        text = Path(ids).suffix.lower() == ".txt"
        records = (
            [{"item": line} for line in Path(ids).read_text().splitlines()]
            if text
            else list(read_records(Path(ids)))
        )
    if len(records) != count:
        raise UserError(
            f"{where}: {len(records)} ids for {count} vectors of {path}: one each, in the same"
            " order"
        )
    return rows_from(records, {} if columns is None else columns, where)


def rows_from(
    records: Sequence[Mapping[str, Any]], columns: Mapping[str, str], where: str
) -> pd.DataFrame:
    """A store's table, one row a record, in order; `row` is made of the item where it is not given.

    Raises:
        UserError: no `item` column, or rows that break the contract of stores.
    """
    if not records:
        raise UserError(f"{where}: holds no rows")
    known = set().union(*(record.keys() for record in records[:1000]))
    chosen = {
        column: columns.get(column, column)
        for column in COLUMNS
        if columns.get(column, column) in known
    }
    for column in ("item", *columns):
        if column not in chosen:
            raise UserError(
                f"{where}: no column {columns.get(column, column)!r} for {column} (has"
                f" {', '.join(sorted(known))}): name it, columns.{column}=THEIRS"
            )
    table = pd.DataFrame(
        {
            column: [text_of(record.get(theirs)) for record in records]
            for column, theirs in chosen.items()
        }
    )
    if "row" not in table:
        table.insert(
            0,
            "row",
            table["item"].astype(str)
            + "-"
            + table.groupby("item", dropna=False).cumcount().astype(str),
        )
    check_rows(table, where)
    return table


def _table_parts(
    path: Path, key: str | None, columns: Mapping[str, str] | None, shard_rows: int
) -> Iterator[tuple[np.ndarray, pd.DataFrame]]:
    """Vectors and rows of a table, its small batches joined to shards."""
    records, batches = table_records(path, key, columns)
    rows, start, waiting = rows_from(records, columns or {}, str(path)), 0, list[np.ndarray]()
    for batch in batches:
        waiting.append(batch)
        count = sum(map(len, waiting))
        if count >= shard_rows or start + count == len(rows):
            yield np.concatenate(waiting), rows.iloc[start : start + count]
            start, waiting = start + count, []


def clip_retrieval_parts(
    folder: Path, side: str, columns: Mapping[str, str] | None = None
) -> Iterator[tuple[np.ndarray, pd.DataFrame]]:
    """Vectors and rows of each part of a clip-retrieval folder: `img_emb/img_emb_0.npy`,
    `metadata/metadata_0.parquet`.

    Args:
        folder: what `clip-retrieval inference` wrote.
        side: `image` or `text`.
        columns: our column to theirs; by default the item is `key`, or else `image_path`.

    Raises:
        UserError: no vectors of that side, or parts whose metadata are missing or of another
            length.
    """
    names = {"image": "img_emb", "text": "text_emb"}
    check_one_of("side", side, list(names))
    parts = {_number(path): path for path in (folder / names[side]).glob("*.npy")}
    if not parts:
        raise UserError(
            f"{folder}: no {names[side]}/*.npy, so no clip-retrieval folder with {side} vectors:"
            " check side= and the path"
        )
    for number, path in sorted(parts.items()):
        table = folder / "metadata" / f"metadata_{number}.parquet"
        padded = [
            p for p in (folder / "metadata").glob("metadata_*.parquet") if _number(p) == number
        ]
        if not table.is_file() and not padded:
            raise UserError(
                f"{table}: missing, so the rows of {path.name} have no names: restore it"
            )
        records = list(read_records(table if table.is_file() else padded[0]))
        vectors, _ = _vectors_of(path, None)
        if len(records) != len(vectors):
            raise UserError(
                f"{table}: {len(records)} rows for {len(vectors)} vectors of {path.name}: run"
                " clip-retrieval again"
            )
        known = set(records[0]) if records else set()
        names_of = {ours: theirs for ours, theirs in CLIP_COLUMNS.items() if theirs in known}
        names_of = {"item": "image_path", **names_of} if "image_path" in known else names_of
        rows = rows_from(records, {**names_of, **(columns or {})}, str(table))
        if "row" not in (columns or {}) and "row" not in known and rows["item"].duplicated().any():
            rows["row"] = [f"{number}-{row}" for row in rows["row"]]
        yield vectors, rows


def _number(path: Path) -> int:
    found = re.search(r"(\d+)$", path.stem)
    return int(found.group(1)) if found else 0
