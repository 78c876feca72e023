"""Corpora: where raw items lie, and the rows of a store that they become. Tables only; nothing is
decoded here.

A corpus lists its rows (`row`, `item`, `path` or `text`, optional `group family label split`) in a
fixed order, and says where an item's raw form is: a text, a path, bytes, or what is read already.
Rows of two corpora with the same `item` are a pair. An entry that cannot become a row is kept with
the reason, so that nothing is dropped in silence.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from gera_lightning.data.records import COLUMNS, Skipped, read_records, text_of
from gera_lightning.data.splits import unit_hash
from gera_lightning.data.store import check_rows
from gera_lightning.utils.errors import UserError, check_one_of, did_you_mean
from gera_lightning.utils.instantiate import register

Folder = str | os.PathLike[str]
MODALITIES = ("text", "audio", "image")
Raw = str | Path | bytes | np.ndarray
"""A text, a file, its bytes, or what is read already."""
SUFFIXES = {
    "text": (".txt",),
    "audio": (".wav", ".flac", ".mp3", ".ogg", ".aiff", ".opus"),
    "image": (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
}
"""File names that a folder's items of a modality end in."""


@dataclass(frozen=True)
class Listing:
    """Rows of a corpus, index 0..n-1, and what could not become one."""

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
        """From entries with `item`, and `text` or `path`; `row` is made where it is not given;
        empty entries are left out.

        A sound or image that stands there twice under one item (once a caption) is one row.

        Args:
            entries: in order; from a generator, so that a long corpus is held once only.
            modality: whether `text` or `path` is needed.
            where: for messages.
            skipped: what is left out already; may grow while `entries` are drawn.

        Raises:
            UserError: no entry, or rows that break the contract of stores.
        """
        raw = "text" if modality == "text" else "path"
        columns: dict[str, list[str | None]] = {column: [] for column in COLUMNS}
        left_out, seen, count = list[Skipped](), set[tuple[str, str]](), dict[str, int]()
        for entry in entries:
            values = {
                key: words
                for key, value in entry.items()
                if key in COLUMNS and (words := text_of(value)) is not None
            }
            item = values.get("item", "")
            number = count.get(item, 0)
            if not item or raw not in values:
                missing = "no item" if not item else f"no {raw}"
                left_out.append(
                    Skipped(
                        values.get("row", f"{item}-{number}"), item, values.get("path", ""), missing
                    )
                )
                continue
            if raw == "path":
                if (item, values["path"]) in seen:
                    continue
                seen.add((item, values["path"]))
            count[item] = number + 1
            values.setdefault("row", f"{item}-{number}")
            for column, held in columns.items():
                held.append(values.get(column))
        left_out = [*skipped, *left_out]
        if not columns["row"]:
            reason = (
                f" ({len(left_out)} are left out, the first: {left_out[0].reason})"
                if left_out
                else ""
            )
            raise UserError(f"{where}: no {modality} items{reason}: check the path and the columns")
        rows = pd.DataFrame(
            {
                column: held
                for column, held in columns.items()
                if any(value is not None for value in held)
            },
            dtype="str",
        )
        check_rows(rows, where)
        return cls(rows, left_out)


class Corpus(ABC):
    """A source of raw items of one modality.

    One whose items are files says so by `file` too: batches of sounds are formed by size, and a
        file that changed is noticed.

    Attributes:
        modality: `text`, `audio` or `image`.
        where: its main file or folder, for messages and the manifest.
    """

    modality: str
    where: str

    @abstractmethod
    def listing(self) -> Listing:
        """All rows, in a fixed order."""

    @abstractmethod
    def raw(self, row: Mapping[str, Any]) -> Raw:
        """The item of a listed row: its text, path or bytes, or an array that the encoder takes as
        it is.
        """

    def file(self, row: Mapping[str, Any]) -> Path | None:  # noqa: ARG002
        """The file that a listed row's item is read from; None where the table itself holds it, or
        it is not known.
        """
        return None

    def length(self, row: Mapping[str, Any]) -> int:
        """By which batches are formed: characters of a text, bytes of a sound; images are all of
        one size.
        """
        if self.modality == "text":
            return len(str(row["text"]))
        file = self.file(row) if self.modality == "audio" else None
        return file.stat().st_size if file is not None and file.is_file() else 0

    def describe(self) -> dict[str, Any]:
        """What a store's manifest records of its source: all that decides the raw items beside the
        rows, for by it a run is told from others.
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
    """A path that is there.

    Raises:
        UserError: naming the key.
    """
    found = Path(path)
    if not (found.is_dir() if kind == "folder" else found.is_file()):
        raise UserError(f"{key}={str(path)!r}: there is no such {kind}: check the path")
    return found


class TableCorpus(Corpus):
    """A table of rows that is made already, as the builds of the shipped data make one.

    Args:
        rows: columns of a store.
        modality: `text`, `audio` or `image`.
        source: what the store's manifest says of where it comes from.
        raw: the item of a row; its text by default.

    Raises:
        UserError: rows that break the contract of stores.
    """

    def __init__(
        self,
        rows: pd.DataFrame,
        modality: str,
        source: Mapping[str, Any],
        raw: Callable[[Mapping[str, Any]], Raw] | None = None,
    ) -> None:
        check_rows(rows, "rows")
        self.rows, self.modality, self.source = (
            rows.reset_index(drop=True),
            check_modality(modality),
            dict(source),
        )
        self._raw = raw or (lambda row: str(row["text"]))

    def listing(self) -> Listing:
        """The table."""
        return Listing(self.rows, [])

    def raw(self, row: Mapping[str, Any]) -> Raw:
        """As the function that was given says."""
        return self._raw(row)

    def describe(self) -> dict[str, Any]:
        """The source."""
        return dict(self.source)


def shuffled(rows: pd.DataFrame, salt: str) -> pd.DataFrame:
    """Rows in the order of a hash of `salt` and their names, which tells nothing of them and is the
    same on every machine.
    """
    return rows.iloc[
        rows["row"].map(lambda name: unit_hash(f"{salt}:{name}")).argsort(kind="stable")
    ].reset_index(drop=True)


class RowsAndFiles(Corpus):
    """A corpus whose raw items are texts of the table, or files below a folder."""

    root: Path

    def raw(self, row: Mapping[str, Any]) -> str | Path | bytes:
        """The row's text, or the path of its file."""
        return str(row["text"]) if self.modality == "text" else self.root / str(row["path"])

    def file(self, row: Mapping[str, Any]) -> Path | None:
        """The path that `raw` gives."""
        return None if self.modality == "text" else self.root / str(row["path"])

    def describe(self) -> dict[str, Any]:
        """Also the folder of the files: the same table names other files below another."""
        return super().describe() | ({} if self.modality == "text" else {"root": str(self.root)})


@register("manifest")
class Manifest(RowsAndFiles):
    """A table in a CSV, TSV, JSONL or Parquet file, one row an item.

    Args:
        path: the table; or split (`train`, `test`, ...) to table.
        modality: `text`, `audio` or `image`: which of `text` and `path` is embedded.
        root: folder that `path` is relative to; the table's own by default.
        columns: our column to theirs, or to a pattern of theirs such as `"audio/{youtube_id}.wav"`;
            by default the same names.
        splits: their word for a split to ours (`train`, `test`, `both`, `unused`).

    Raises:
        UserError: no such file, another format, or a column that is not there.
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
        self.paths, self.modality, self.where = (
            by_split("path", path, "file"),
            check_modality(modality),
            words_of(path),
        )
        self.root = (
            next(iter(self.paths.values())).parent
            if root is None
            else existing("root", root, "folder")
        )
        self.columns, self.splits = dict(columns or {}), dict(splits or {})
        for column in self.columns:
            if column not in COLUMNS:
                raise UserError(
                    f"columns.{column} is not a column of a store{did_you_mean(column, COLUMNS)}"
                )

    def listing(self) -> Listing:
        """All rows of the tables, in their order."""
        entries = (
            entry for split, path in self.paths.items() for entry in self._entries(split, path)
        )
        return Listing.of(entries, self.modality, self.where)

    def _entries(self, split: str, path: Path) -> Iterator[dict[str, Any]]:
        records = read_records(path)
        head = list(islice(records, 1000))
        known = list(dict.fromkeys(key for record in head for key in record))
        raw = "text" if self.modality == "text" else "path"
        chosen = {
            column: self.columns.get(column, column)
            for column in COLUMNS
            if column in self.columns or column in known
        }
        for column in ("item", raw):
            if column not in chosen:
                raise UserError(
                    f"{path} has no column {column!r} (has {', '.join(known)}): name it,"
                    f" columns.{column}=THEIRS"
                )
        for column, theirs in chosen.items():
            if "{" not in theirs and theirs not in known:
                raise UserError(
                    f"columns.{column}={theirs!r}: {path} has no such"
                    f" column{did_you_mean(theirs, known)}"
                )
        for record in chain(head, records):
            entry = {
                column: _value(record, theirs, column, path) for column, theirs in chosen.items()
            }
            entry["split"] = split or self.splits.get(str(entry.get("split")), entry.get("split"))
            yield entry


def _value(record: Mapping[str, Any], theirs: str, column: str, path: Path) -> Any:
    if "{" not in theirs:
        return record.get(theirs)
    try:
        return theirs.format_map(record)
    except (KeyError, ValueError, IndexError) as error:
        raise UserError(f"columns.{column}={theirs!r}: {error} is no column of {path}") from error


def by_split(key: str, paths: Folder | Mapping[str, Folder], kind: str) -> dict[str, Path]:
    """Split to path; one path alone has the split "", which stands for none.

    Raises:
        UserError: a path that is not there.
    """
    given = paths if isinstance(paths, Mapping) else {"": paths}
    return {
        split: existing(f"{key}.{split}" if split else key, path, kind)
        for split, path in given.items()
    }


def words_of(paths: Folder | Mapping[str, Folder]) -> str:
    """One path, or several, in words."""
    return (
        ", ".join(str(path) for path in paths.values())
        if isinstance(paths, Mapping)
        else str(paths)
    )


@register("folder")
class FolderOfFiles(RowsAndFiles):
    """Every file of a folder and its folders; the name without its suffix is the item, so `7.wav`
    and `7.txt` are a pair.

    A sound or image beside a text keeps that text in its row, for people to read.

    Args:
        root: the folder.
        modality: `audio`, `image`, or `text` (a file a text).
        group: take the name of the folder that a file lies in as its `group` (speaker, renderer).

    Raises:
        UserError: no such folder.
    """

    def __init__(self, root: Folder, modality: str, *, group: bool = False) -> None:
        self.root, self.modality, self.where = (
            existing("root", root, "folder"),
            check_modality(modality),
            str(root),
        )
        self.group = group

    def listing(self) -> Listing:
        """All files of the modality's kinds, sorted by path."""
        entries, skipped = [], list[Skipped]()
        for path in sorted(
            p for p in self.root.rglob("*") if p.suffix.lower() in SUFFIXES[self.modality]
        ):
            name, item = (
                path.relative_to(self.root).as_posix(),
                path.relative_to(self.root).with_suffix("").as_posix(),
            )
            entry = {
                "row": name,
                "item": item,
                "path": name,
                "group": path.parent.name if self.group else None,
            }
            words = path if self.modality == "text" else path.with_suffix(".txt")
            if self.modality == "text" or words.is_file():
                try:
                    entry["text"] = words.read_text(encoding="utf-8").strip()
                except (OSError, UnicodeDecodeError) as error:
                    if self.modality == "text":
                        skipped.append(
                            Skipped(
                                name,
                                item,
                                name,
                                f"not readable as text ({' '.join(str(error).split())})",
                            )
                        )
                        continue
            entries.append(entry)
        return Listing.of(entries, self.modality, str(self.root), skipped)
