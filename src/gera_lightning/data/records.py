"""Tables in files as records, and their values in words."""

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
"""Columns that a corpus may give a store."""


@dataclass(frozen=True)
class Skipped:
    """An entry that is left out, or kept in part, and why."""

    row: str
    item: str
    path: str
    reason: str


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a CSV, TSV, JSONL or Parquet table as mappings; what is empty in a CSV is an empty
    text.

    Raises:
        UserError: another format, a table that is damaged, or a line with more fields than the
            header.
    """
    suffix = path.suffix.lower()
    try:
        if suffix in (".csv", ".tsv"):
            with open(path, newline="", encoding="utf-8-sig") as file:
                reader = csv.DictReader(file, delimiter="\t" if suffix == ".tsv" else ",")
                for record in reader:
                    if (
                        None in record
                    ):  # else the rest of a text after its comma would be lost in silence
                        separator = "tabs" if suffix == ".tsv" else "commas"
                        raise UserError(
                            f"{path}: line {reader.line_num} has more fields than the header: quote"
                            f" texts with {separator}"
                        )
                    yield record
        elif suffix in (".jsonl", ".ndjson"):
            with open(path, encoding="utf-8") as file:
                yield from (json.loads(line) for line in file if line.strip())
        elif suffix == ".parquet":
            table = pd.read_parquet(path)
            for record in table.astype(object).where(table.notna(), None).to_dict("records"):
                yield {str(key): value for key, value in record.items()}
        else:
            raise UserError(f"path={str(path)!r}: a table ends in .csv, .tsv, .jsonl or .parquet")
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(
            f"{path}: not readable as a table ({' '.join(str(error).split())[:200]}): mend the file"
        ) from error


def text_of(value: Any) -> str | None:
    """A table's value as a store keeps it: None where it is missing or blank; whole numbers without
    a point, as tables with gaps give them.
    """
    if isinstance(value, float | np.floating):
        value = None if np.isnan(value) else int(value) if float(value).is_integer() else value
    words = "" if value is None else str(value)
    return words if words.strip() else None
