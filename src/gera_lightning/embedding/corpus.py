"""Corpora: where raw items are, and the rows of a store that they become.

A corpus lists its rows (`row`, `item`, `path` or `text`, optional `group family label split
condition`) in a fixed order, and gives the raw form of each: a text, a path, bytes, or an array.
Rows of two corpora with the same `item` are a pair. An entry that cannot become a row is listed as
skipped, with the reason. Nothing is decoded here.
"""

from __future__ import annotations

import logging
import os
import unicodedata
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
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
    read_records,
    read_text,
    text_of,
)
from gera_lightning.data.splits import unit_hash
from gera_lightning.data.store import check_rows
from gera_lightning.utils.errors import UserError, check_one_of, did_you_mean
from gera_lightning.utils.files import natural_order
from gera_lightning.utils.instantiate import register

log = logging.getLogger(__name__)
Folder = str | os.PathLike[str]
MODALITIES = ("text", "audio", "image")
Raw = str | Path | bytes | np.ndarray
"""A text, a file, its bytes, or an array that the encoder takes as it is."""
SUFFIXES = {
    "text": (".txt",),
    "audio": (".wav", ".flac", ".mp3", ".ogg", ".aiff", ".opus"),
    "image": (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
}
"""What the file names of a modality end in."""


@dataclass(frozen=True)
class Listing:
    """The rows of a corpus, and the entries that could not become one.

    Attributes:
        rows: table of the rows, index 0..n-1.
        skipped: the other entries, with the reason.

    >>> entries = [{"item": "1", "text": "a cat"}, {"item": "1", "text": "the cat"}, {"item": "2"}]
    >>> listing = Listing.of(entries, "text", where="captions")
    >>> listing.rows.to_dict("list")
    {'row': ['1-0', '1-1'], 'item': ['1', '1'], 'text': ['a cat', 'the cat']}
    >>> listing.skipped
    [Skipped(row='2-0', item='2', path='', reason='no text')]
    """

    rows: pd.DataFrame
    skipped: list[Skipped]

    @classmethod
    def of(
        cls,
        entries: Iterable[Mapping[str, Any]],
        modality: str,
        where: str,
        skipped: Sequence[Skipped] = (),
    ) -> Listing:
        """List entries with `item`, and `text` or `path`; entries without are skipped.

        `row` is made of the item where it is missing. A sound or image that is listed twice under
        one item (once per caption) becomes one row; a list of captions becomes one row each.

        Args:
            entries: in order; a generator is best for a long corpus, which is then held once only.
            modality: decides whether `text` or `path` is needed.
            where: what a message begins with.
            skipped: entries that were skipped already; may grow while `entries` are drawn.

        Raises:
            UserError: no usable entry, or rows that a store cannot have.
        """
        raw = "text" if modality == "text" else "path"
        columns: dict[str, list[str | None]] = {column: [] for column in COLUMNS}
        unusable, listed, rows_per_item = list[Skipped](), set[tuple[str, str]](), Counter[str]()
        for entry in _one_text_each(entries, modality):
            try:
                values = _texts(entry)
            except BadValue as error:
                row, item, path = (
                    printable(str(entry.get(key) or "")) for key in ("row", "item", "path")
                )
                unusable.append(Skipped(row, item, path, str(error)))
                continue
            item, path = values.get("item", ""), values.get("path", "")
            name = values.setdefault("row", f"{item}-{rows_per_item[item]}")
            if not item or raw not in values:
                reason = "no item" if not item else f"no {raw}"
                unusable.append(Skipped(name, item, path, reason))
                continue
            if raw == "path":
                if (item, path) in listed:
                    continue
                listed.add((item, path))
            rows_per_item[item] += 1
            for column, value_of_row in columns.items():
                value_of_row.append(values.get(column))
        unusable = [*skipped, *unusable]
        if not columns["row"]:
            raise _no_items(modality, where, unusable)
        used = {
            column: values
            for column, values in columns.items()
            if any(value is not None for value in values)
        }
        rows = pd.DataFrame(used, dtype="str")
        check_rows(rows, where)
        return cls(rows, unusable)


def _one_text_each(
    entries: Iterable[Mapping[str, Any]], modality: str
) -> Iterator[Mapping[str, Any]]:
    """Entries with one text each: of a list of captions every one, or the first beside a sound or
    an image, for people to read.
    """
    for entry in entries:
        texts = captions_of(entry.get("text"))
        if texts is None:
            yield entry
        elif modality != "text":
            yield {**entry, "text": next(iter(texts), None)}
        else:
            named = entry.get("row") is not None
            for number, text in enumerate(texts):
                row = {"row": f"{entry['row']}-{number}"} if named else {}
                yield {**entry, **row, "text": text}
            if not texts:
                yield {**entry, "text": None}


def _texts(entry: Mapping[str, Any]) -> dict[str, str]:
    """The values of an entry that a store keeps, as text.

    Raises:
        BadValue: naming the column.
    """
    texts = dict[str, str]()
    for column, value in entry.items():
        if column in COLUMNS:
            try:
                text = text_of(value)
            except BadValue as error:
                raise BadValue(f"its {column} is {error}") from error
            if text is not None:
                texts[column] = text
    return texts


def _no_items(modality: str, where: str, skipped: list[Skipped]) -> UserError:
    reason = f" ({len(skipped)} are skipped, the first: {skipped[0].reason})" if skipped else ""
    return UserError(
        f"has no {modality} items{reason}", key=where, remedy="check the path and the columns"
    )


class Corpus(ABC):
    """A source of raw items of one modality.

    Your own corpus needs `listing` and `raw`. Where its items are files, define `file` too: batches
    of sounds are then formed by size, and a file that changed during an interrupted run is noticed.

    Attributes:
        modality: `text`, `audio` or `image`.
        where: its main file or folder, for messages and the manifest.

    >>> class Numbers(Corpus):
    ...     modality, where = "text", "numbers"
    ...     def listing(self):
    ...         names = ["one", "two", "three"]
    ...         entries = [{"item": str(n), "text": name} for n, name in enumerate(names)]
    ...         return Listing.of(entries, self.modality, self.where)
    ...     def raw(self, row):
    ...         return row["text"]
    >>> corpus = Numbers()
    >>> [corpus.raw(row) for _, row in corpus.listing().rows.iterrows()]
    ['one', 'two', 'three']
    """

    modality: str
    where: str

    @abstractmethod
    def listing(self) -> Listing:
        """All rows, in a fixed order."""

    @abstractmethod
    def raw(self, row: Mapping[str, Any]) -> Raw:
        """The raw item of a listed row."""

    def file(self, row: Mapping[str, Any]) -> Path | None:  # noqa: ARG002
        """The file that a listed row is read from; None for a text of the table itself."""
        return None

    def length(self, row: Mapping[str, Any]) -> int:
        """Length of a row's item, by which batches are formed.

        Characters of a text, bytes of a sound, 0 for images: they are all resized.
        """
        if self.modality == "text":
            return len(str(row["text"]))
        file = self.file(row) if self.modality == "audio" else None
        return file.stat().st_size if file is not None and file.is_file() else 0

    def describe(self) -> dict[str, Any]:
        """What a store's manifest records of its source.

        It must name everything beside the rows that decides the raw items: an interrupted run goes
        on only where this is the same.
        """
        return {"corpus": type(self).__name__, "modality": self.modality, "where": self.where}


def check_modality(modality: str) -> str:
    """Refuse an unknown modality.

    Raises:
        UserError: naming the nearest known one.
    """
    check_one_of("modality", modality, MODALITIES)
    return modality


def existing(key: str, path: Folder, kind: str = "file") -> Path:
    """A path that must exist.

    Args:
        key: argument that gave it, for the message.
        path: the path.
        kind: `file` or `folder`.

    Raises:
        UserError: naming the key.
    """
    found = Path(path)
    if not (found.is_dir() if kind == "folder" else found.is_file()):
        raise UserError(
            f"is not an existing {kind}", key=key, value=str(path), remedy="check the path"
        )
    return found


class TableCorpus(Corpus):
    """A corpus from a table in memory.

    Args:
        rows: columns of a store.
        modality: `text`, `audio` or `image`.
        source: what the store's manifest records of where it comes from.
        raw: gives the raw item of a row; its text by default.

    Raises:
        UserError: rows that a store cannot have.

    >>> rows = pd.DataFrame({"row": ["r1"], "item": ["1"], "text": ["a cat"]})
    >>> corpus = TableCorpus(rows, "text", {"name": "my-corpus"})
    >>> corpus.raw(corpus.listing().rows.iloc[0])
    'a cat'
    """

    def __init__(
        self,
        rows: pd.DataFrame,
        modality: str,
        source: Mapping[str, Any],
        raw: Callable[[Mapping[str, Any]], Raw] | None = None,
    ) -> None:
        check_rows(rows, "rows")
        self.rows = rows.reset_index(drop=True)
        self.modality = check_modality(modality)
        self.source = dict(source)
        self._raw = raw or (lambda row: str(row["text"]))

    def listing(self) -> Listing:
        """The table."""
        return Listing(self.rows, [])

    def raw(self, row: Mapping[str, Any]) -> Raw:
        """What the function `raw` gives."""
        return self._raw(row)

    def describe(self) -> dict[str, Any]:
        """The source."""
        return dict(self.source)


def shuffled(rows: pd.DataFrame, salt: str) -> pd.DataFrame:
    """Rows in an order that tells nothing of them: that of a hash of `salt` and their names.

    It is the same on every machine.

    >>> shuffled(pd.DataFrame({"row": ["r0", "r1", "r2"]}), "salt")["row"].tolist()
    ['r0', 'r2', 'r1']
    """
    rank = rows["row"].map(lambda name: unit_hash(f"{salt}:{name}"))
    return rows.iloc[rank.argsort(kind="stable")].reset_index(drop=True)


class RowsAndFiles(Corpus):
    """A corpus whose raw items are texts of its table, or files below the folder `root`."""

    root: Path

    def raw(self, row: Mapping[str, Any]) -> str | Path | bytes:
        """The row's text, or the path of its file."""
        return str(row["text"]) if self.modality == "text" else self.root / str(row["path"])

    def file(self, row: Mapping[str, Any]) -> Path | None:
        """The row's file; None for a text."""
        return None if self.modality == "text" else self.root / str(row["path"])

    def describe(self) -> dict[str, Any]:
        """Also the folder of the files: the same table below another folder names other files."""
        return super().describe() | ({} if self.modality == "text" else {"root": str(self.root)})


@register("manifest")
class Manifest(RowsAndFiles):
    """A table in a CSV, TSV, JSONL or Parquet file, one row per item.

    Args:
        path: the table; or a mapping of split (`train`, `test`, ...) to table.
        modality: `text`, `audio` or `image`: which of the columns `text` and `path` is embedded.
        root: folder that `path` of a row is relative to; that of the table by default.
        columns: column of the store to column of the table, or to a pattern of its columns such as
            `"audio/{youtube_id}.wav"`; by default the same names.
        splits: name of a split in the table to that of the store (`train`, `test`, `both`,
            `unused`).

    Raises:
        UserError: no such file, another format, or a column that is not there.

    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> table = Path(folder.name, "captions.csv")
    >>> _ = table.write_text("id,caption\\n7,a cat\\n8,a dog\\n")
    >>> corpus = Manifest(table, "text", columns={"item": "id", "text": "caption"})
    >>> corpus.listing().rows["text"].tolist()
    ['a cat', 'a dog']
    """

    def __init__(
        self,
        path: Folder | Mapping[str, Folder],
        modality: str,
        *,
        root: Folder | None = None,
        columns: Mapping[str, str] | None = None,
        splits: Mapping[str, str] | None = None,
    ) -> None:
        self.tables = paths_by_split("path", path, "file")
        self.modality, self.where = check_modality(modality), paths_as_text(path)
        first_table = next(iter(self.tables.values()))
        self.root = first_table.parent if root is None else existing("root", root, "folder")
        self.columns, self.splits = dict(columns or {}), dict(splits or {})
        for column in self.columns:
            if column not in COLUMNS:
                raise UserError(
                    f"is not a column of a store{did_you_mean(column, COLUMNS)}",
                    key=f"columns.{column}",
                )

    def listing(self) -> Listing:
        """All rows of the tables, in their order."""
        entries = (
            entry for split, table in self.tables.items() for entry in self._entries(split, table)
        )
        return Listing.of(entries, self.modality, self.where)

    def _entries(self, split: str, table: Path) -> Iterator[dict[str, Any]]:
        records = read_records(table)
        head = list(islice(records, 1000))  # JSONL has no header: any of these may name a column
        known = list(dict.fromkeys(key for record in head for key in record))
        source_of = self._source_columns(known, table)
        for record in chain(head, records):
            entry = {
                column: _value(record, source, column, table)
                for column, source in source_of.items()
            }
            entry["split"] = split or self.splits.get(str(entry.get("split")), entry.get("split"))
            yield entry

    def _source_columns(self, known: Sequence[str], table: Path) -> dict[str, str]:
        """Column of the store to column of the table, or to a pattern of its columns."""
        source_of = {
            column: self.columns.get(column, column)
            for column in COLUMNS
            if column in self.columns or column in known
        }
        for column in ("item", "text" if self.modality == "text" else "path"):
            if column not in source_of:
                raise UserError(
                    f"has no column {column!r} (it has {', '.join(known)})",
                    key=str(table),
                    remedy=f"name it, columns.{column}=THEIRS",
                )
        for column, source in source_of.items():
            if "{" not in source and source not in known:
                raise UserError(
                    f"is no column of {table}{did_you_mean(source, known)}",
                    key=f"columns.{column}",
                    value=source,
                )
        return source_of


def _value(record: Mapping[str, Any], source: str, column: str, table: Path) -> Any:
    if "{" not in source:
        return record.get(source)
    try:
        return source.format_map(record)
    except (KeyError, ValueError, IndexError) as error:
        raise UserError(
            f"asks for {error}, which is no column of {table}",
            key=f"columns.{column}",
            value=source,
        ) from error


def paths_by_split(key: str, paths: Folder | Mapping[str, Folder], kind: str) -> dict[str, Path]:
    """Split to path; one path alone has the split "", which stands for none.

    Raises:
        UserError: a path that is not there.
    """
    given = paths if isinstance(paths, Mapping) else {"": paths}
    return {
        split: existing(f"{key}.{split}" if split else key, path, kind)
        for split, path in given.items()
    }


def paths_as_text(paths: Folder | Mapping[str, Folder]) -> str:
    """One path, or several with commas between them."""
    several = paths.values() if isinstance(paths, Mapping) else [paths]
    return ", ".join(map(str, several))


@register("folder")
class FolderOfFiles(RowsAndFiles):
    """Every file of a modality in a folder and its subfolders.

    A file's name without its suffix is the item, so `7.wav` and `7.txt` are a pair. A sound or
    image beside a text of its name keeps that text in its row, for people to read.

    Args:
        root: the folder.
        modality: `audio`, `image`, or `text` (one text per file).
        group: use the name of the folder that a file is in as its `group` (speaker, renderer).

    Raises:
        UserError: no such folder.

    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> _ = Path(folder.name, "7.txt").write_text("a cat")
    >>> FolderOfFiles(folder.name, "text").listing().rows.to_dict("records")
    [{'row': '7.txt', 'item': '7', 'path': '7.txt', 'text': 'a cat'}]
    """

    def __init__(self, root: Folder, modality: str, *, group: bool = False) -> None:
        self.root = existing("root", root, "folder")
        self.modality, self.where = check_modality(modality), str(root)
        self.group = group

    def listing(self) -> Listing:
        """All files of the modality's kinds, sorted by path, numbers as numbers."""
        skipped = list[Skipped]()
        files = files_below(self.root, SUFFIXES[self.modality])
        entries = (entry for path in files if (entry := self._entry(path, skipped)))
        return Listing.of(entries, self.modality, str(self.root), skipped)

    def _entry(self, path: Path, skipped: list[Skipped]) -> dict[str, Any] | None:
        """A file's entry; None for a text that cannot be read, which is then in `skipped`."""
        relative = path.relative_to(self.root)
        # macOS writes an accent as a character of its own, and the partner may not
        item = unicodedata.normalize("NFC", relative.with_suffix("").as_posix())
        name = relative.as_posix()
        entry = {"row": name, "item": item, "path": name}
        if self.group:
            entry["group"] = path.parent.name
        text_file = path.with_suffix(".txt") if self.modality != "text" else path
        try:
            if self.modality == "text" or text_file.is_file():
                entry["text"] = read_text(text_file).strip()
        except (OSError, UnicodeDecodeError) as error:
            if self.modality == "text":
                reason = f"not readable as text ({one_line(error)})"
                skipped.append(Skipped(printable(name), printable(item), printable(name), reason))
                return None
        return entry


def files_below(root: Path, suffixes: Sequence[str]) -> list[Path]:
    """The files with these suffixes in a folder and its subfolders, linked ones too, sorted by
    path, numbers as numbers.

    Hidden files and folders (`.ipynb_checkpoints`, `._7.wav`, `__MACOSX`) are left out, with one
    line that counts and names them; a link to a folder that holds it is not followed.
    """
    files, hidden = list[Path](), list[Path]()

    def enter(folder: Path, above: tuple[str, ...]) -> None:
        for path in folder.iterdir():
            is_wanted = path.name.lower().endswith(tuple(suffixes))
            if path.name.startswith(".") or path.name == "__MACOSX":
                if path.is_dir() or is_wanted:
                    hidden.append(path)
            elif path.is_dir():
                real = os.path.realpath(path)
                if real not in above:
                    enter(path, (*above, real))
            elif is_wanted:
                files.append(path)

    enter(root, (os.path.realpath(root),))
    if hidden:
        first = min(hidden, key=natural_order)
        log.warning(
            "%s: %d hidden files or folders are left out, such as %s",
            root,
            len(hidden),
            first.relative_to(root),
        )
    return sorted(files, key=natural_order)
