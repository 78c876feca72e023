"""Text files and tables as lines, records and values; every reader of the package reads by this
one.

A text file is UTF-8, with or without a byte order mark. Its lines end in LF or CRLF alone: other
line breaks of Unicode may stand in a sentence.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gera_lightning.utils.errors import UserError

COLUMNS = ("row", "item", "path", "text", "group", "family", "label", "split", "condition")
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


class BadValue(ValueError):
    """A value that a store cannot keep; the message is the reason."""


def read_text(path: Path) -> str:
    """A whole text file.

    Raises:
        UnicodeDecodeError: not UTF-8.
    """
    return path.read_bytes().decode("utf-8-sig")


def read_lines(path: Path) -> Iterator[str]:
    """The lines of a text file, without their ends.

    Raises:
        UnicodeDecodeError: not UTF-8.

    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> path = Path(folder.name, "ids.txt")
    >>> _ = path.write_bytes("\\ufeffa\\u2028b\\r\\nc\\n".encode())
    >>> list(read_lines(path))
    ['a\\u2028b', 'c']
    """
    with open(path, encoding="utf-8-sig", newline="\n") as file:
        for line in file:
            yield line.removesuffix("\n").removesuffix("\r")


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a CSV, TSV, JSONL or Parquet table as mappings; an empty CSV field is an empty text.

    A CSV file quotes as RFC 4180 says; a TSV file has no quotes, each line is a row.

    Raises:
        UserError: another format, a damaged table, a quote that is left open, a line with more
            fields than the header or that is no mapping.

    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> path = Path(folder.name, "ids.csv")
    >>> _ = path.write_text("item,text\\n7,a cat\\n")
    >>> list(read_records(path))
    [{'item': '7', 'text': 'a cat'}]
    """
    suffix = path.suffix.lower()
    readers = {
        **dict.fromkeys((".csv", ".tsv"), _csv_records),
        **dict.fromkeys((".jsonl", ".ndjson"), _json_records),
        ".parquet": _parquet_records,
    }
    if suffix not in readers:
        raise UserError(
            "is no table",
            key="path",
            value=str(path),
            remedy="a table ends in .csv, .tsv, .jsonl or .parquet",
        )
    try:
        yield from readers[suffix](path)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(
            f"is not readable as a table ({one_line(error)[:200]})",
            key=str(path),
            remedy="repair the file",
        ) from error


def _csv_records(path: Path) -> Iterator[dict[str, Any]]:
    header: list[str] | None = None
    tabs = path.suffix.lower() == ".tsv"
    for number, fields in _tsv_fields(path) if tabs else csv_fields(path):
        if header is None:
            header = fields
            continue
        # a text with an unquoted comma: its rest would be lost without a word
        if len(fields) > len(header):
            raise UserError(
                f"has more fields in line {number} than in the header",
                key=str(path),
                remedy="a text may hold no tabs" if tabs else "quote texts with commas",
            )
        missing = [None] * (len(header) - len(fields))
        yield dict(zip(header, [*fields, *missing], strict=True))


def _tsv_fields(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Line numbers and fields."""
    for number, line in enumerate(read_lines(path), start=1):
        if line:
            yield number, line.split("\t")


def csv_fields(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Numbers of the lines that the records of a CSV file begin in, and their fields.

    Raises:
        UserError: a quote that is not closed, or not doubled, naming the line.
    """
    csv.field_size_limit(2**31 - 1)  # its own limit is 128 kB
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file, strict=True)
        while True:
            number = reader.line_num + 1
            try:
                fields = next(reader, None)
            except csv.Error as error:
                raise UserError(
                    f"has a quote in line {number} that is not closed, or not doubled"
                    f" ({one_line(error)})",
                    key=str(path),
                    remedy='write a quote inside a quoted text as ""',
                ) from error
            if fields is None:
                return
            if fields:
                yield number, fields


def _json_records(path: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from error
        if not isinstance(record, dict):
            raise ValueError(f'line {number} is no mapping such as {{"item": ...}}')
        yield record


def _parquet_records(path: Path) -> Iterator[dict[str, Any]]:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches():
            yield from batch.to_pylist()  # whole numbers stay whole where others are missing


def text_of(value: Any) -> str | None:
    """A table's value as a store keeps it: text, or None where it is missing or blank.

    Whole numbers lose their point: a column with gaps turns them into floats. Bytes are UTF-8.

    Raises:
        BadValue: a list, a mapping, bytes that are no text, or half a character.

    >>> text_of(7.0), text_of(0.5), text_of(" "), text_of(float("nan")), text_of(b"cat")
    ('7', '0.5', None, None, 'cat')
    """
    if isinstance(value, float | np.floating):
        value = None if np.isnan(value) else int(value) if float(value).is_integer() else value
    if isinstance(value, bytes):
        try:
            value = value.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise BadValue("bytes that are no text") from error
    if isinstance(value, list | tuple | set | np.ndarray | Mapping):
        raise BadValue(f"a {type(value).__name__} where one value belongs")
    text = "" if value is None else str(value)
    try:
        text.encode()
    except UnicodeEncodeError as error:  # such as one half of an emoji's surrogate pair
        raise BadValue("half a character") from error
    return text if text.strip() else None


def captions_of(value: Any) -> list[Any] | None:
    """The captions of a value that is a list of them; None for a single value."""
    return list(value) if isinstance(value, list | tuple | np.ndarray) else None


def printable(text: str) -> str:
    """A text of any origin as one that can be written: half characters as `\udcff`."""
    return text.encode("utf-8", "backslashreplace").decode()


def for_terminal(text: str) -> str:
    """A text of any origin in one line, without characters that would steer a terminal.

    >>> for_terminal("a\\x1b[2Jdog\\nruns")
    'a�[2Jdog runs'
    """
    line = " ".join(text.split())
    return "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in line)
