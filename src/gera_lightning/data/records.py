"""Tables in files as records, and their values as text."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from gera_lightning.utils.errors import UserError

COLUMNS = ("row", "item", "path", "text", "group", "family", "label", "split")
"""Columns that a store may have."""


@dataclass(frozen=True)
class Skipped:
    """An entry that was skipped, or used in part only, and why."""

    row: str
    item: str
    path: str
    reason: str


def one_line(error: Exception) -> str:
    """An error's message without line breaks."""
    return " ".join(str(error).split())


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a CSV, TSV, JSONL or Parquet table as mappings; an empty CSV field is an empty text.

    Raises:
        UserError: another format, a damaged table, or a line with more fields than the header.

    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> path = Path(folder.name, "ids.csv")
    >>> _ = path.write_text("item,text\\n7,a cat\\n")
    >>> list(read_records(path))
    [{'item': '7', 'text': 'a cat'}]
    """
    suffix = path.suffix.lower()
    try:
        if suffix in (".csv", ".tsv"):
            yield from _csv_records(path, "\t" if suffix == ".tsv" else ",")
        elif suffix in (".jsonl", ".ndjson"):
            with open(path, encoding="utf-8") as file:
                yield from (json.loads(line) for line in file if line.strip())
        elif suffix == ".parquet":
            table = pd.read_parquet(path)
            for record in table.astype(object).where(table.notna(), None).to_dict("records"):
                yield {str(key): value for key, value in record.items()}
        else:
            raise UserError(
                "is no table",
                key="path",
                value=str(path),
                remedy="a table ends in .csv, .tsv, .jsonl or .parquet",
            )
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(
            f"is not readable as a table ({one_line(error)[:200]})",
            key=str(path),
            remedy="repair the file",
        ) from error


def _csv_records(path: Path, delimiter: str) -> Iterator[dict[str, Any]]:
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, delimiter=delimiter)
        for record in reader:
            # a text with an unquoted comma: its rest would be lost without a word
            if None in record:
                separator = "tabs" if delimiter == "\t" else "commas"
                raise UserError(
                    f"has more fields in line {reader.line_num} than in the header",
                    key=str(path),
                    remedy=f"quote texts with {separator}",
                )
            yield record


def text_of(value: Any) -> str | None:
    """A table's value as a store keeps it: text, or None where it is missing or blank.

    Whole numbers lose their point: a column with gaps turns them into floats.

    >>> text_of(7.0), text_of(0.5), text_of(" "), text_of(float("nan"))
    ('7', '0.5', None, None)
    """
    if isinstance(value, float | np.floating):
        value = None if np.isnan(value) else int(value) if float(value).is_integer() else value
    text = "" if value is None else str(value)
    return text if text.strip() else None
