"""Tables with a column of vectors: Parquet files, and datasets that the Hugging Face library
`datasets` saved to disk (Arrow files).

Legend: `n` rows of a part, `D` width.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gera_lightning.data.records import COLUMNS, one_line
from gera_lightning.utils.errors import UserError, did_you_mean
from gera_lightning.utils.files import natural_order

BATCH = 10_000
"""Rows of a Parquet file that are read at a time."""
SPLITS_READ = ("train", "test")
"""Splits of a dataset that are read; others (`validation`) are no side of a store."""


def is_vector_table(path: Path) -> bool:
    """Whether a path is a Parquet or Arrow file, a folder of Parquet files, or a saved dataset."""
    return (
        path.suffix in (".parquet", ".arrow")
        or any((path / name).is_file() for name in ("state.json", "dataset_dict.json"))
        or bool(_parquets(path))
    )


def table_records(
    path: Path, key: str | None, columns: Mapping[str, str] | None
) -> tuple[list[dict[str, Any]], Iterator[np.ndarray]]:
    """The rows of a table as records, and its vectors.

    Args:
        path: see `is_vector_table`.
        key: the column of vectors; by default the only one that holds lists of numbers.
        columns: column of a store to column of the table.

    Returns:
        One record per row with the columns that a store may have; where the table has no `item`, it
        is the position in the split. Then the vectors in the same order, in parts `[n, D]`; a row
        without a vector is a row of NaN.

    Raises:
        UserError: no such column, several, or vectors of several widths.
    """
    columns = columns or {}
    files_of_split = _files_by_split(path)
    schema = _schema(next(iter(files_of_split.values()))[0])
    vector_column = _vector_column(schema, key, path)
    read = [
        name
        for name in dict.fromkeys([*COLUMNS, *columns.values()])
        if name in schema.names and name != vector_column
    ]
    has_items = "item" in columns or "item" in schema.names
    records: list[dict[str, Any]] = []
    for split, files in files_of_split.items():
        rows = _records(files, read, vector_column)
        for number, record in enumerate(rows):
            if not has_items:
                record["item"] = f"{split}/{number}" if split else str(number)
            if len(files_of_split) > 1 and "split" not in read:
                record["split"] = split
        records += rows
    every_file = (file for files in files_of_split.values() for file in files)
    return records, _all_vectors(every_file, vector_column)


def _records(files: list[Path], columns: list[str], vector_column: str) -> list[dict[str, Any]]:
    # with no other column to read, the vectors still say how many rows there are
    batches = (batch for file in files for batch in _batches(file, columns or [vector_column]))
    return [
        record
        for batch in batches
        for record in (batch.to_pylist() if columns else [{} for _ in range(len(batch))])
    ]


def _parquets(path: Path) -> list[Path]:
    is_store = (path / "manifest.json").exists()  # its own tables have no vectors
    if not path.is_dir() or is_store:
        return []
    files = (file for file in path.glob("*.parquet") if not file.name.startswith("."))
    return sorted(files, key=natural_order)


def _files_by_split(path: Path) -> dict[str, list[Path]]:
    """Files of each split, in order; a source without splits has the one split "".

    Raises:
        UserError: a dataset without one of `SPLITS_READ`, or one that is not whole.
    """
    if path.is_file():
        return {"": [path]}
    try:
        if (path / "dataset_dict.json").is_file():
            names = json.loads((path / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
            files = {name: _saved_files(path / name) for name in names if name in SPLITS_READ}
            if not files:
                raise UserError(
                    f"has the splits {', '.join(names)}, none of {', '.join(SPLITS_READ)}",
                    key=str(path),
                    remedy=f"import the folder of one, {path}/{names[0]}",
                )
            return files
        if (path / "state.json").is_file():
            return {"": _saved_files(path)}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"is a damaged dataset ({error!r})", key=str(path), remedy="save it again"
        ) from error
    return {"": _parquets(path)}


def _saved_files(folder: Path) -> list[Path]:
    """Arrow files of one saved split."""
    state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    if state.get("_indices_files") or state.get("_indices_data_files"):
        raise UserError(
            "holds a selection of its files' rows",
            key=str(folder),
            remedy="save it with dataset.flatten_indices().save_to_disk(...)",
        )
    return [folder / entry["filename"] for entry in state["_data_files"]]


def _schema(file: Path) -> pa.Schema:
    with _open(file) as source:
        return source.schema_arrow if file.suffix == ".parquet" else source.schema


def _open(file: Path) -> Any:
    try:
        if file.suffix == ".parquet":
            return pq.ParquetFile(file)
        return pa.ipc.open_stream(pa.memory_map(str(file)))
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(file, error) from error


def _unreadable(file: Path, error: Exception) -> UserError:
    return UserError(
        f"cannot be read ({one_line(error)[:200]})", key=str(file), remedy="check the file"
    )


def _batches(file: Path, names: list[str]) -> Iterator[pa.RecordBatch]:
    with _open(file) as source:
        try:
            batches = (
                source.iter_batches(BATCH, columns=names) if file.suffix == ".parquet" else source
            )
            for batch in batches:
                yield batch.select(names)
        except (OSError, pa.ArrowException, KeyError) as error:
            raise _unreadable(file, error) from error


def _vector_column(schema: pa.Schema, key: str | None, path: Path) -> str:
    """The column of vectors that `key` names, by default the only one."""
    found = [field.name for field in schema if _holds_vectors(field.type)]
    if key is not None and key not in found:
        raise UserError(
            f"is no column of vectors in {path}{did_you_mean(key, found)}", key="key", value=key
        )
    if key is None and len(found) != 1:
        raise UserError(
            f"has {len(found)} columns of vectors ({', '.join(found or schema.names)})",
            key=str(path),
            remedy="name one, key=...",
        )
    return key or found[0]


def _holds_vectors(kind: pa.DataType) -> bool:
    is_list = (
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )
    return is_list and (
        pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type)
    )


def _all_vectors(files: Iterable[Path], name: str) -> Iterator[np.ndarray]:
    """A column of lists as `[n, D]` arrays; a missing list is a row of NaN.

    Raises:
        UserError: vectors of several widths, or a first part without any.
    """
    width = 0
    for file in files:
        for batch in _batches(file, [name]):
            column = batch.column(0)
            width = _width(column, width, file, name)
            yield _matrix(column, width)


def _width(column: pa.Array, width: int, file: Path, name: str) -> int:
    """Width of the vectors in a part, which must be that of the parts before (0 for none)."""
    lengths = pc.list_value_length(column.drop_null()).unique().to_pylist()
    widths = {*lengths, *([width] if width else [])}
    if not widths:
        raise UserError(
            f"has no vector in its first {len(column)} rows",
            key=str(file),
            remedy="remove rows without one",
        )
    if len(widths) > 1:
        raise UserError(
            f"has vectors of several widths in column {name}, {min(widths)} and {max(widths)}",
            key=str(file),
            remedy="import those of one encoder",
        )
    return int(widths.pop())


def _matrix(column: pa.Array, width: int) -> np.ndarray:
    present = column.drop_null()
    vectors = present.flatten().to_numpy(zero_copy_only=False).reshape(len(present), width)
    if len(present) == len(column):
        return vectors
    with_gaps = np.full(
        (len(column), width), np.nan, dtype=np.result_type(vectors.dtype, np.float16)
    )
    with_gaps[column.is_valid().to_numpy(zero_copy_only=False)] = vectors
    return with_gaps
