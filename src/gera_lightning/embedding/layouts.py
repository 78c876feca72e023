"""Corpora in the layouts that speech and captioning data sets come in."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gera_lightning.data.records import Skipped
from gera_lightning.embedding.corpus import (
    SUFFIXES,
    Corpus,
    Folder,
    Listing,
    RowsAndFiles,
    by_split,
    check_modality,
    existing,
    words_of,
)
from gera_lightning.utils.errors import UserError, did_you_mean
from gera_lightning.utils.instantiate import register


@register("librispeech")
class LibriSpeech(RowsAndFiles):
    """LibriSpeech's layout: `SET/SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt` beside one flac file an
    utterance.

    `item` is the utterance, `group` the speaker, `family` the chapter, `split` test for sets that
    begin with `test`, else train (none is given where all sets would get the same).

    Args:
        root: the folder that holds the sets.
        modality: `audio` or `text`.
        sets: which sets, such as `[train-clean-100, test-clean]`; all by default.

    Raises:
        UserError: no such folder or set.
    """

    def __init__(self, root: Folder, modality: str, *, sets: Sequence[str] | None = None) -> None:
        self.root, self.modality, self.where = (
            existing("root", root, "folder"),
            check_modality(modality),
            str(root),
        )
        found = sorted(p.name for p in self.root.iterdir() if p.is_dir())
        self.sets = found if sets is None else list(sets)
        for name in self.sets:
            if name not in found:
                raise UserError(
                    f"sets: there is no folder {name!r} in {self.root}{did_you_mean(name, found)}"
                )

    def listing(self) -> Listing:
        """All utterances, sorted by set and name."""
        entries, skipped = [], list[Skipped]()
        given = len({self._split(name) for name in self.sets}) > 1
        for name in self.sets:
            for transcripts in sorted((self.root / name).rglob("*.trans.txt")):
                texts = dict(
                    line.partition(" ")[::2]
                    for line in transcripts.read_text(encoding="utf-8").splitlines()
                    if line.strip()
                )
                folder = transcripts.parent
                for utterance in sorted({*texts, *(path.stem for path in folder.glob("*.flac"))}):
                    speaker, _, rest = utterance.partition("-")
                    entry = {
                        "row": utterance,
                        "item": utterance,
                        "group": speaker,
                        "family": f"{speaker}-{rest.partition('-')[0]}",
                    }
                    entry["path"] = (folder / f"{utterance}.flac").relative_to(self.root).as_posix()
                    if not texts.get(utterance, "").strip():
                        skipped.append(
                            Skipped(utterance, utterance, entry["path"], "no transcript")
                        )
                        continue
                    entries.append(
                        {
                            **entry,
                            "text": texts[utterance].strip(),
                            "split": self._split(name) if given else None,
                        }
                    )
        return Listing.of(entries, self.modality, str(self.root), skipped)

    @staticmethod
    def _split(name: str) -> str:
        return "test" if name.startswith("test") else "train"


@register("coco")
class CocoCaptions(RowsAndFiles):
    """Images with captions in COCO's JSON (`images: id, file_name`; `annotations: id, image_id,
    caption`).

    Args:
        captions: the JSON file; or split (`train`, `test`) to file.
        images: the folder of images; or split to folder.
        modality: `image`, one row an image; or `text`, one row a caption.

    Raises:
        UserError: a path that is not there, or splits of `captions` that `images` does not name.
    """

    def __init__(
        self,
        captions: Folder | Mapping[str, Folder],
        images: Folder | Mapping[str, Folder],
        modality: str,
    ) -> None:
        self.modality, self.where = check_modality(modality), words_of(captions)
        self.captions = by_split("captions", captions, "file")
        # captions alone need no images
        self.images = by_split("images", images, "folder") if modality != "text" else {}
        self.root = Path()
        if modality != "text" and set(self.captions) != set(self.images):
            raise UserError(
                f"images: splits {sorted(self.images)} are not those of captions,"
                f" {sorted(self.captions)}: name the same"
            )

    def listing(self) -> Listing:
        """All images or captions, in the files' order."""
        entries, skipped = list[dict[str, Any]](), list[Skipped]()
        for split, path in self.captions.items():
            images, annotations = _coco_lists(path)
            names = {image["id"]: image["file_name"] for image in images}
            if self.modality == "text":
                for note in annotations:
                    item, row = str(note.get("image_id")), str(note.get("id"))
                    if note.get("image_id") not in names:
                        skipped.append(
                            Skipped(row, item, "", f"its image is not listed in {path.name}")
                        )
                        continue
                    entries.append(
                        {
                            "row": row,
                            "item": item,
                            "text": str(note.get("caption") or "").strip(),
                            "split": split or None,
                        }
                    )
            else:
                for number, name in names.items():
                    full = (self.images[split] / name).as_posix()
                    entries.append(
                        {
                            "row": str(number),
                            "item": str(number),
                            "path": full,
                            "split": split or None,
                        }
                    )
        return Listing.of(entries, self.modality, self.where, skipped)


def _coco_lists(path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        images, annotations = content["images"], content["annotations"]
        _ = [(image["id"], image["file_name"]) for image in images]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: not captions in COCO's format ({error!r}): lists `images` (id, file_name) and"
            " `annotations`"
        ) from error
    return images, annotations


@register("flickr")
class FlickrCaptions(RowsAndFiles):
    """Images with captions in Flickr8k's or Flickr30k's text files.

    Read are lines `name.jpg#0<TAB>caption` (the token files), `name.jpg,caption` (captions.txt) and
    `name.jpg| 0| caption` (results.csv); a first line that names columns is passed over.

    Args:
        captions: the file of captions.
        images: the folder of images.
        modality: `image` or `text`.
        splits: split to a file that lists its images' names, a line each; images in none are
            `unused`.

    Raises:
        UserError: a path that is not there, or a file without captions.
    """

    def __init__(
        self,
        captions: Folder,
        images: Folder,
        modality: str,
        *,
        splits: Mapping[str, Folder] | None = None,
    ) -> None:
        self.captions, self.modality, self.where = (
            existing("captions", captions),
            check_modality(modality),
            str(captions),
        )
        self.root = Path(images) if modality == "text" else existing("images", images, "folder")
        self.splits = by_split("splits", splits, "file") if splits else {}

    def listing(self) -> Listing:
        """All images or captions, in the file's order."""
        side = {
            name.strip(): split
            for split, path in self.splits.items()
            for name in path.read_text().splitlines()
            if name.strip()
        }
        entries, skipped = list[dict[str, Any]](), list[Skipped]()
        for number, line in enumerate(
            self.captions.read_text(encoding="utf-8").splitlines(), start=1
        ):
            if not line.strip():
                continue
            name, caption = _flickr_line(line)
            if Path(name).suffix.lower() not in SUFFIXES["image"]:
                if number > 1:
                    skipped.append(
                        Skipped(
                            f"line {number}",
                            name,
                            "",
                            f"line {number} of {self.captions.name} names no image",
                        )
                    )
                continue
            split = side.get(name, "unused") if side else None
            entries.append({"item": Path(name).stem, "path": name, "text": caption, "split": split})
        return Listing.of(entries, self.modality, str(self.captions), skipped)


def _flickr_line(line: str) -> tuple[str, str]:
    for separator in ("\t", "|", ","):
        name, found, rest = line.partition(separator)
        if found:
            caption = rest.partition("|")[2] if separator == "|" else rest
            return (
                name.partition("#")[0].strip(),
                caption.strip().removeprefix('"').removesuffix('"').strip(),
            )
    return line.strip(), ""


@register("webdataset")
class WebDataset(Corpus):
    """Tar files as webdataset and img2dataset write them: members of one name, `000000012.jpg` and
    `000000012.txt`, are an item.

    `item` is `TAR/NAME`, the name with its folder inside the tar, as webdataset's own key; `path`
    is `TAR.tar:OFFSET:SIZE` of the member that is embedded, so that nothing has to be unpacked. A
    sound or image beside a text keeps that text in its row. A tar that was cut off gives what it
    holds up to there, and is named.

    Args:
        root: the folder of uncompressed tar files, in folders or not.
        modality: `image`, `audio` or `text` (the `.txt` members).

    Raises:
        UserError: no such folder.
    """

    def __init__(self, root: Folder, modality: str) -> None:
        self.root, self.modality, self.where = (
            existing("root", root, "folder"),
            check_modality(modality),
            str(root),
        )

    def listing(self) -> Listing:
        """All items, tar after tar in the order of their names, inside a tar in its own order."""
        skipped = list[Skipped]()
        entries = (
            entry
            for path in sorted(self.root.rglob("*.tar"))
            for entry in self._entries(path, skipped)
        )
        return Listing.of(entries, self.modality, self.where, skipped)

    def _entries(self, path: Path, skipped: list[Skipped]) -> Iterator[dict[str, Any]]:
        tar_name, items = path.relative_to(self.root).as_posix(), dict[str, dict[str, Any]]()
        try:
            with tarfile.open(path, "r:") as tar:
                for member in tar:
                    folder, _, base = member.name.removeprefix("./").rpartition("/")
                    name, _, ending = base.partition(".")
                    key = (
                        f"{folder}/{name}" if folder else name
                    )  # cat/1.jpg and dog/1.jpg are two items
                    entry = items.setdefault(
                        key, {"item": f"{tar_name.removesuffix('.tar')}/{key}"}
                    )
                    if (
                        f".{ending.lower()}" == ".txt"
                        and (file := tar.extractfile(member)) is not None
                    ):
                        entry["text"] = file.read().decode("utf-8", errors="replace").strip()
                    if f".{ending.lower()}" in SUFFIXES[self.modality]:
                        entry["path"] = f"{tar_name}:{member.offset_data}:{member.size}"
        except (tarfile.TarError, OSError) as error:
            skipped.append(
                Skipped(
                    tar_name,
                    "",
                    tar_name,
                    f"not readable to its end as a tar file ({' '.join(str(error).split())})",
                )
            )
        yield from ({"row": entry["item"], **entry} for entry in items.values() if "path" in entry)

    def file(self, row: Mapping[str, Any]) -> Path | None:
        """The tar."""
        return None if self.modality == "text" else self.root / str(row["path"]).rsplit(":", 2)[0]

    def length(self, row: Mapping[str, Any]) -> int:
        """Characters of a text, bytes of a sound."""
        return (
            int(str(row["path"]).rsplit(":", 1)[1])
            if self.modality == "audio"
            else super().length(row)
        )

    def raw(self, row: Mapping[str, Any]) -> str | bytes:
        """The row's text, or its member's bytes."""
        if self.modality == "text":
            return str(row["text"])
        tar_name, offset, size = str(row["path"]).rsplit(":", 2)
        with open(self.root / tar_name, "rb") as file:
            file.seek(int(offset))
            return file.read(int(size))
