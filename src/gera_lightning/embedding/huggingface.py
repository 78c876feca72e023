"""Datasets that the package `datasets` saved to disk; it is needed for these alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from gera_lightning.data.records import one_line
from gera_lightning.embedding.corpus import Corpus, Folder, Listing, check_modality, existing
from gera_lightning.utils.errors import UserError, did_you_mean
from gera_lightning.utils.instantiate import register


@register("huggingface")
class HuggingFaceDataset(Corpus):
    """A dataset that `datasets` saved to a folder with `save_to_disk`.

    Audio and images are decoded here, not by `datasets`.

    Args:
        path: the folder.
        modality: `text`, `audio` or `image`.
        column: the column to embed; the modality's name by default.
        item: column that names the item; by default the position in its split.
        group, family, label: columns to keep under these names.
        splits: split of the dataset to split of the store; by default `train` and `test`. The
            others are not read.

    Raises:
        UserError: no such folder, `datasets` is not installed, or a column that is not there.

    Example::

        datasets.load_dataset("google/fleurs", "en_us").save_to_disk("raw/fleurs")
        HuggingFaceDataset("raw/fleurs", "text", column="transcription", item="id").listing()
    """

    def __init__(
        self,
        path: Folder,
        modality: str,
        *,
        column: str | None = None,
        item: str | None = None,
        group: str | None = None,
        family: str | None = None,
        label: str | None = None,
        splits: Mapping[str, str] | None = None,
    ) -> None:
        self.modality, self.where = check_modality(modality), str(path)
        self.column, self.item = column or modality, item
        more = {"group": group, "family": family, "label": label}
        self.more_columns = {name: theirs for name, theirs in more.items() if theirs}
        self.splits = dict(splits or {"train": "train", "test": "test"})
        loaded = _load_from_disk(existing("path", path, "folder"))
        parts = dict(loaded) if isinstance(loaded, dict) else {"": loaded}
        self.parts = {name: part for name, part in parts.items() if not name or name in self.splits}
        if not self.parts:
            raise UserError(
                f"names none of the splits of {self.where}, {', '.join(parts)}",
                key="splits",
                value=list(self.splits),
                remedy="name them, splits.THEIRS=train",
            )
        for name, part in self.parts.items():
            self._check_columns(name, part.column_names)
        self.undecoded = {name: _undecoded(part, self.column) for name, part in self.parts.items()}

    def _check_columns(self, split: str, known: list[str]) -> None:
        for column in (self.column, self.item, *self.more_columns.values()):
            if column is not None and column not in known:
                raise UserError(
                    f"is no column of {self.where} {split}{did_you_mean(column, known)}",
                    key="column",
                    value=column,
                )

    def listing(self) -> Listing:
        """All rows of the splits, in their order; `path` is `split/position`."""
        entries = (entry for name, part in self.parts.items() for entry in self._rows(name, part))
        return Listing.of(entries, self.modality, self.where)

    def _rows(self, name: str, part: Any) -> Iterator[dict[str, Any]]:
        values_of = {column: _values(part, theirs) for column, theirs in self.more_columns.items()}
        items = part[self.item][:] if self.item else None
        texts = part[self.column][:] if self.modality == "text" else None
        for number in range(len(part)):
            place = f"{name}/{number}"
            entry = {column: value_of(number) for column, value_of in values_of.items()}
            entry |= {"row": place, "path": place, "split": self.splits.get(name) if name else None}
            entry["item"] = place if items is None else items[number]
            if texts is not None:
                entry["text"] = texts[number]
            yield entry

    def describe(self) -> dict[str, Any]:
        """Also the column."""
        return super().describe() | {"column": self.column}

    def raw(self, row: Mapping[str, Any]) -> str | Path | bytes:
        """The row's text, or the bytes (or path) that the dataset holds."""
        if self.modality == "text":
            return str(row["text"])
        buffer, path = self._stored(row)
        if buffer:
            return buffer.to_pybytes()
        return Path(path) if path else b""

    def file(self, row: Mapping[str, Any]) -> Path | None:
        """The row's file, where the dataset holds a path in place of the bytes."""
        if self.modality == "text":
            return None
        buffer, path = self._stored(row)
        return Path(path) if path and not buffer else None

    def length(self, row: Mapping[str, Any]) -> int:
        """Characters of a text, bytes of a sound; the bytes are counted without being read."""
        buffer = self._stored(row)[0] if self.modality == "audio" else None
        return len(buffer) if buffer else super().length(row)

    def _stored(self, row: Mapping[str, Any]) -> tuple[Any, str]:
        """What the dataset stores of a sound or image: an Arrow buffer (no copy; None where there
        is none), and a path or "".
        """
        name, _, number = str(row["path"]).rpartition("/")
        value: Any = self.undecoded[name][int(number)].column(self.column)[0]
        if not value.is_valid or not isinstance(value, Mapping):
            return None, ""
        return value["bytes"].as_buffer(), value["path"].as_py() or ""


def _load_from_disk(path: Path) -> Any:
    try:
        from datasets import load_from_disk
    except ImportError as error:
        raise UserError(
            "reading a Hugging Face dataset needs the package datasets",
            remedy="pip install datasets",
        ) from error
    try:
        return load_from_disk(str(path))
    except (OSError, ValueError) as error:
        raise UserError(
            f"is no dataset saved by save_to_disk ({one_line(error)[:200]})",
            key="path",
            value=str(path),
        ) from error


def _undecoded(part: Any, column: str) -> Any:
    """One column as an Arrow table, its audio or images as they are stored.

    Reading a row of the dataset itself would decode all of its columns.
    """
    feature, table = part.features[column], part.select_columns([column])
    if hasattr(feature, "decode"):
        table = table.cast_column(column, type(feature)(decode=False))
    return table.with_format("arrow")


def _values(part: Any, column: str) -> Callable[[int], Any]:
    """A column's value by position; a class number becomes the class's name."""
    values, class_name = part[column][:], getattr(part.features[column], "int2str", None)

    def value(number: int) -> Any:
        found = values[number]
        if class_name is None:
            return found
        return None if found is None or found < 0 else class_name(found)  # -1: no label

    return value
