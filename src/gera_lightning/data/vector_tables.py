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

from gera_lightning.data.records import COLUMNS
from gera_lightning.utils.errors import UserError, did_you_mean

BATCH = 10_000
"""Rows of a Parquet file that are read at once."""
KEPT_SPLITS = ("train", "test")
"""Of a dataset's splits; what else there is (`validation`) is left out, as it is no side of a
store.
"""


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
    """Everything but the vectors, a record a row, and the vectors `[n, D]`, part by part in the
    same order.

    Args:
        path: see `is_vector_table`.
        key: the column of vectors; by default the only one that holds lists of numbers.
        columns: our column to the table's.

    Returns:
        Records with the columns that a store has, `item` the position in the split where the table
        has none; rows whose vector is missing are rows of NaN.

    Raises:
        UserError: no such column, several, or vectors of several widths.
    """
    columns = columns or {}
    files = _files(path)
    schema = _schema(next(iter(files.values()))[0])
    chosen = _vector_column(schema, key, path)
    wanted = [
        name
        for name in dict.fromkeys([*COLUMNS, *columns.values()])
        if name in schema.names and name != chosen
    ]
    unnamed = "item" not in columns and "item" not in schema.names
    records: list[dict[str, Any]] = []
    for split, parts in files.items():
        # without a column that is wanted a batch of the vectors' own still says how many rows there
        # are
        batches = (batch for file in parts for batch in _batches(file, wanted or [chosen]))
        rows = [
            record
            for batch in batches
            for record in (batch.to_pylist() if wanted else [{} for _ in range(len(batch))])
        ]
        for number, record in enumerate(rows):
            if unnamed:
                record["item"] = f"{split}/{number}" if split else str(number)
            if len(files) > 1 and "split" not in wanted:
                record["split"] = split
        records += rows
    return records, _all_vectors((file for parts in files.values() for file in parts), chosen)


def _parquets(path: Path) -> list[Path]:
    return (
        sorted(path.glob("*.parquet"))
        if path.is_dir() and not (path / "manifest.json").exists()
        else []
    )


def _files(path: Path) -> dict[str, list[Path]]:
    """Files by split, in order; one split without a name where the source has none.

    Raises:
        UserError: a dataset without a split that is kept, or one that is not whole.
    """
    if path.is_file():
        return {"": [path]}
    try:
        if (path / "dataset_dict.json").is_file():
            names = json.loads((path / "dataset_dict.json").read_text())["splits"]
            kept = {name: _saved(path / name) for name in names if name in KEPT_SPLITS}
            if not kept:
                raise UserError(
                    f"{path}: holds the splits {', '.join(names)}, none of"
                    f" {', '.join(KEPT_SPLITS)}: import the folder of one, {path}/{names[0]}"
                )
            return kept
        if (path / "state.json").is_file():
            return {"": _saved(path)}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: the saved dataset is damaged ({error!r}): save it again"
        ) from error
    return {"": _parquets(path)}


def _saved(folder: Path) -> list[Path]:
    """Arrow files of one saved split."""
    state = json.loads((folder / "state.json").read_text())
    if state.get("_indices_files") or state.get("_indices_data_files"):
        raise UserError(
            f"{folder}: its rows are a choice of its files' rows: save it with"
            " dataset.flatten_indices().save_to_disk(...)"
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
        raise UserError(
            f"{file}: cannot be read ({' '.join(str(error).split())[:200]}): check the file"
        ) from error


def _batches(file: Path, names: list[str]) -> Iterator[pa.RecordBatch]:
    with _open(file) as source:
        try:
            batches = (
                source.iter_batches(BATCH, columns=names) if file.suffix == ".parquet" else source
            )
            for batch in batches:
                yield batch.select(names)
        except (OSError, pa.ArrowException, KeyError) as error:
            raise UserError(
                f"{file}: cannot be read ({' '.join(str(error).split())[:200]}): check the file"
            ) from error


def _vector_column(schema: pa.Schema, key: str | None, path: Path) -> str:
    def holds_vectors(kind: pa.DataType) -> bool:
        lists = (
            pa.types.is_list(kind)
            or pa.types.is_large_list(kind)
            or pa.types.is_fixed_size_list(kind)
        )
        return lists and (
            pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type)
        )

    found = [field.name for field in schema if holds_vectors(field.type)]
    if key is not None and key not in found:
        raise UserError(
            f"key={key!r}: {path} has no such column of vectors{did_you_mean(key, found)}"
        )
    if key is None and len(found) != 1:
        raise UserError(
            f"{path} holds {len(found)} columns of vectors ({', '.join(found or schema.names)}):"
            " name one, key=..."
        )
    return key or found[0]


def _all_vectors(files: Iterable[Path], name: str) -> Iterator[np.ndarray]:
    """A column of lists as `[n, D]` arrays; a missing list is a row of NaN.

    Raises:
        UserError: vectors of several widths, or a first part without any.
    """
    width = 0
    for file in files:
        for batch in _batches(file, [name]):
            column = batch.column(0)
            there = column.is_valid()
            kept = column.filter(there)
            widths = {*pc.list_value_length(kept).unique().to_pylist(), *([width] if width else [])}
            if len(widths) != 1:
                raise UserError(
                    f"{file}: column {name} holds vectors of several widths, {min(widths)} and"
                    f" {max(widths)}: keep those of one encoder"
                    if widths
                    else f"{file}: the first {len(column)} rows have no vector: leave them out"
                )
            [width] = widths
            values = kept.flatten().to_numpy(zero_copy_only=False).reshape(len(kept), width)
            if len(kept) < len(column):
                every = np.full(
                    (len(column), width), np.nan, dtype=np.result_type(values.dtype, np.float16)
                )
                every[there.to_numpy(zero_copy_only=False)] = values
                values = every
            yield values
