"""Corpora that the package `datasets` saved to disk; the package is no dependency, and asked for
only here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gera_lightning.embedding.corpus import Corpus, Folder, Listing, check_modality, existing
from gera_lightning.utils.errors import UserError, did_you_mean
from gera_lightning.utils.instantiate import register


@register("huggingface")
class HuggingFaceDataset(Corpus):
    """A dataset that `datasets` saved to a folder (`save_to_disk`); audio and images are decoded by
    us, not by `datasets`.

    Args:
        path: the folder.
        modality: `text`, `audio` or `image`.
        column: the column to embed; the modality's name by default.
        item: column that names the item; by default the position in its split.
        group, family, label: columns to keep under these names.
        splits: split of the dataset to ours; by default `train`, `test`, and the others left out.

    Raises:
        UserError: no such folder, `datasets` is not installed, or a column that is not there.
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
        self.kept = {
            name: theirs
            for name, theirs in (("group", group), ("family", family), ("label", label))
            if theirs
        }
        self.splits = dict(splits or {"train": "train", "test": "test"})
        loaded = _load_from_disk(existing("path", path, "folder"))
        parts = dict(loaded) if isinstance(loaded, dict) else {"": loaded}
        self.parts = {name: part for name, part in parts.items() if not name or name in self.splits}
        if not self.parts:
            raise UserError(
                f"splits: {self.where} holds {', '.join(parts)}, none of {', '.join(self.splits)}:"
                " name them, splits.THEIRS=train"
            )
        for name, part in self.parts.items():
            for theirs in (self.column, self.item, *self.kept.values()):
                if theirs is not None and theirs not in part.column_names:
                    raise UserError(
                        f"column {theirs!r}: {self.where} {name} has no such"
                        f" column{did_you_mean(theirs, part.column_names)}"
                    )
        self.undecoded = {name: _undecoded(part, self.column) for name, part in self.parts.items()}

    def listing(self) -> Listing:
        """All rows of the splits, in their order; `path` is `split/position`."""
        entries = []
        for name, part in self.parts.items():
            columns = {ours: _words(part, theirs) for ours, theirs in self.kept.items()}
            items = part[self.item][:] if self.item else None
            texts = part[self.column][:] if self.modality == "text" else None
            for number in range(len(part)):
                entry = {ours: values(number) for ours, values in columns.items()}
                entry |= {
                    "row": f"{name}/{number}",
                    "item": items[number] if items is not None else f"{name}/{number}",
                }
                entry |= {
                    "path": f"{name}/{number}",
                    "split": self.splits.get(name) if name else None,
                }
                entries.append(entry | ({"text": texts[number]} if texts is not None else {}))
        return Listing.of(entries, self.modality, self.where)

    def describe(self) -> dict[str, Any]:
        """Also the column."""
        return super().describe() | {"column": self.column}

    def raw(self, row: Mapping[str, Any]) -> str | Path | bytes:
        """The row's text, or the bytes (or path) that the dataset holds."""
        if self.modality == "text":
            return str(row["text"])
        held, path = self._held(row)
        return held.to_pybytes() if held else Path(path) if path else b""

    def file(self, row: Mapping[str, Any]) -> Path | None:
        """The path, where the dataset holds one in place of the bytes."""
        held, path = (None, "") if self.modality == "text" else self._held(row)
        return Path(path) if path and not held else None

    def length(self, row: Mapping[str, Any]) -> int:
        """Characters of a text, bytes of a sound, which are counted without being read."""
        held = self._held(row)[0] if self.modality == "audio" else None
        return len(held) if held else super().length(row)

    def _held(self, row: Mapping[str, Any]) -> tuple[Any, str]:
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
            "reading a Hugging Face dataset needs the package datasets: pip install datasets"
        ) from error
    try:
        return load_from_disk(str(path))
    except (OSError, ValueError) as error:
        raise UserError(
            f"path={str(path)!r}: not a dataset saved by save_to_disk"
            f" ({' '.join(str(error).split())[:200]})"
        ) from error


def _undecoded(part: Any, column: str) -> Any:
    """The column alone, as an Arrow table of audio or images as they are stored: reading a row
    would decode all of its columns.
    """
    feature = part.features[column]
    alone = part.select_columns([column])
    alone = (
        alone.cast_column(column, type(feature)(decode=False))
        if hasattr(feature, "decode")
        else alone
    )
    return alone.with_format("arrow")


def _words(part: Any, column: str) -> Callable[[int], Any]:
    """A column's value by position, class numbers as their names."""
    values, names = part[column][:], getattr(part.features[column], "int2str", None)
    return lambda number: (
        names(values[number]) if names and values[number] is not None else values[number]
    )
