"""Corpora in the layouts that speech and captioning data sets come in."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gera_lightning.data.records import Skipped, csv_fields, one_line, read_lines, read_text
from gera_lightning.embedding.corpus import (
    SUFFIXES,
    Corpus,
    Folder,
    Listing,
    RowsAndFiles,
    check_modality,
    existing,
    files_below,
    paths_as_text,
    paths_by_split,
)
from gera_lightning.utils.errors import UserError, did_you_mean
from gera_lightning.utils.files import natural_order
from gera_lightning.utils.instantiate import register


@register("librispeech")
class LibriSpeech(RowsAndFiles):
    """LibriSpeech's layout: `SET/SPEAKER/CHAPTER/` with a flac file per utterance.

    The transcripts of a chapter are in `SPEAKER-CHAPTER.trans.txt` beside the flac files.
    `item` is the utterance, `group` the speaker, `family` the chapter. `split` is test for sets
    whose name begins with `test`, else train; there is none where all sets would get the same.

    Args:
        root: the folder of the sets.
        modality: `audio` or `text`.
        sets: which sets, such as `[train-clean-100, test-clean]`; all by default.

    Raises:
        UserError: no such folder or set.

    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> chapter = Path(folder.name, "test-clean", "61", "70968")
    >>> chapter.mkdir(parents=True)
    >>> _ = (chapter / "61-70968.trans.txt").write_text("61-70968-0000 HE BEGAN")
    >>> rows = LibriSpeech(folder.name, "text").listing().rows
    >>> rows[["item", "group", "family", "text"]].values.tolist()
    [['61-70968-0000', '61', '61-70968', 'HE BEGAN']]
    """

    def __init__(self, root: Folder, modality: str, *, sets: Sequence[str] | None = None) -> None:
        self.root = existing("root", root, "folder")
        self.modality, self.where = check_modality(modality), str(root)
        found = sorted(
            (path.name for path in self.root.iterdir() if path.is_dir() and path.name[0] != "."),
            key=natural_order,
        )
        self.sets = found if sets is None else list(sets)
        for name in self.sets:
            if name not in found:
                raise UserError(
                    f"is no folder in {self.root}{did_you_mean(name, found)}",
                    key="sets",
                    value=name,
                )

    def listing(self) -> Listing:
        """All utterances, sorted by set and name."""
        skipped = list[Skipped]()
        splits_differ = len({self._split(name) for name in self.sets}) > 1
        entries = (
            {**entry, "split": self._split(name) if splits_differ else None}
            for name in self.sets
            for transcripts in files_below(self.root / name, (".trans.txt",))
            for entry in self._chapter(transcripts, skipped)
        )
        return Listing.of(entries, self.modality, str(self.root), skipped)

    def _chapter(self, transcripts: Path, skipped: list[Skipped]) -> Iterator[dict[str, Any]]:
        """The utterances of one file of transcripts; one that has none is in `skipped`."""
        try:
            lines = [line for line in read_lines(transcripts) if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"cannot be read ({one_line(error)})", key=str(transcripts), remedy="repair it"
            ) from error
        texts = dict(line.partition(" ")[::2] for line in lines)
        folder = transcripts.parent
        for utterance in sorted({*texts, *(path.stem for path in folder.glob("*.flac"))}):
            path = (folder / f"{utterance}.flac").relative_to(self.root).as_posix()
            text = texts.get(utterance, "").strip()
            if not text:
                skipped.append(Skipped(utterance, utterance, path, "no transcript"))
                continue
            speaker, _, chapter_and_number = utterance.partition("-")
            yield {
                "row": utterance,
                "item": utterance,
                "path": path,
                "text": text,
                "group": speaker,
                "family": f"{speaker}-{chapter_and_number.partition('-')[0]}",
            }

    @staticmethod
    def _split(name: str) -> str:
        return "test" if name.startswith("test") else "train"


@register("coco")
class CocoCaptions(RowsAndFiles):
    """Images with captions in COCO's JSON (`images: id, file_name`; `annotations: id, image_id,
    caption`).

    Args:
        captions: the JSON file; or a mapping of split (`train`, `test`) to file.
        images: the folder of images; or a mapping of split to folder.
        modality: `image`, one row per image; or `text`, one row per caption.

    Raises:
        UserError: a path that is not there, or other splits in `images` than in `captions`.

    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> captions = {"images": [{"id": 9, "file_name": "9.jpg"}],
    ...             "annotations": [{"id": 1, "image_id": 9, "caption": "a cat"}]}
    >>> _ = Path(folder.name, "captions.json").write_text(json.dumps(captions))
    >>> corpus = CocoCaptions(f"{folder.name}/captions.json", folder.name, "text")
    >>> corpus.listing().rows.to_dict("records")
    [{'row': '1', 'item': '9', 'text': 'a cat'}]
    """

    def __init__(
        self,
        captions: Folder | Mapping[str, Folder],
        images: Folder | Mapping[str, Folder],
        modality: str,
    ) -> None:
        self.modality, self.where = check_modality(modality), paths_as_text(captions)
        self.captions = paths_by_split("captions", captions, "file")
        # captions alone need no images
        self.images = paths_by_split("images", images, "folder") if modality != "text" else {}
        self.root = Path()
        if modality != "text" and set(self.captions) != set(self.images):
            raise UserError(
                f"has other splits than captions={sorted(self.captions)}",
                key="images",
                value=sorted(self.images),
                remedy="name the same",
            )

    def listing(self) -> Listing:
        """All images or captions, in the order of the files."""
        skipped = list[Skipped]()
        list_entries = self._captions if self.modality == "text" else self._images
        entries = (
            {**entry, "split": split or None}
            for split, path in self.captions.items()
            for entry in list_entries(split, path, skipped)
        )
        return Listing.of(entries, self.modality, self.where, skipped)

    def _captions(self, split: str, path: Path, skipped: list[Skipped]) -> Iterator[dict[str, Any]]:  # noqa: ARG002
        images, annotations = _coco_lists(path)
        known = {image["id"] for image in images}
        for annotation in annotations:
            item, row = str(annotation.get("image_id")), str(annotation.get("id"))
            if annotation.get("image_id") not in known:
                skipped.append(Skipped(row, item, "", f"its image is not listed in {path.name}"))
                continue
            text = str(annotation.get("caption") or "").strip()
            yield {"row": row, "item": item, "text": text}

    def _images(
        self,
        split: str,
        path: Path,
        skipped: list[Skipped],  # noqa: ARG002
    ) -> Iterator[dict[str, Any]]:
        images, _ = _coco_lists(path)
        file_names = {image["id"]: image["file_name"] for image in images}
        for number, name in file_names.items():
            file = (self.images[split] / name).as_posix()
            yield {"row": str(number), "item": str(number), "path": file}


def _coco_lists(path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    try:
        content = json.loads(read_text(path))
        images, annotations = content["images"], content["annotations"]
        _ = [(image["id"], image["file_name"]) for image in images]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"is not in the format of COCO's captions ({error!r})",
            key=str(path),
            remedy="it needs the lists `images` (id, file_name) and `annotations`",
        ) from error
    return images, annotations


@register("flickr")
class FlickrCaptions(RowsAndFiles):
    """Images with captions in Flickr8k's or Flickr30k's text files.

    A line is `name.jpg#0<TAB>caption` (the token files), `name.jpg,caption` (captions.txt) or
    `name.jpg| 0| caption` (results.csv). A first line that names columns is ignored.

    Args:
        captions: the file of captions.
        images: the folder of images.
        modality: `image` or `text`.
        splits: split to a file that lists its images, one name per line; images in none of them are
            `unused`.

    Raises:
        UserError: a path that is not there, or a file without captions.

    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> captions = Path(folder.name, "captions.txt")
    >>> _ = captions.write_text("image,caption\\n7.jpg,a cat\\n7.jpg,the cat\\n")
    >>> FlickrCaptions(captions, folder.name, "text").listing().rows["text"].tolist()
    ['a cat', 'the cat']
    """

    def __init__(
        self,
        captions: Folder,
        images: Folder,
        modality: str,
        *,
        splits: Mapping[str, Folder] | None = None,
    ) -> None:
        self.captions = existing("captions", captions)
        self.modality, self.where = check_modality(modality), str(captions)
        self.root = Path(images) if modality == "text" else existing("images", images, "folder")
        self.splits = paths_by_split("splits", splits, "file") if splits else {}

    def listing(self) -> Listing:
        """All images or captions, in the order of the file."""
        skipped = list[Skipped]()
        return Listing.of(self._entries(skipped), self.modality, str(self.captions), skipped)

    def _entries(self, skipped: list[Skipped]) -> Iterator[dict[str, Any]]:
        split_of = {
            name.strip(): split
            for split, path in self.splits.items()
            for name in read_lines(path)
            if name.strip()
        }
        for number, name, caption in _flickr_captions(self.captions):
            if Path(name).suffix.lower() not in SUFFIXES["image"]:
                if number > 1:  # the first line may name the columns
                    reason = f"line {number} of {self.captions.name} names no image"
                    skipped.append(Skipped(f"line {number}", name, "", reason))
                continue
            split = split_of.get(name, "unused") if split_of else None
            yield {"item": Path(name).stem, "path": name, "text": caption, "split": split}


def _flickr_captions(path: Path) -> Iterator[tuple[int, str, str]]:
    """Line number, name of the image, and caption.

    Raises:
        UserError: not a text file, or `captions.txt` with a quote that is left open.
    """
    try:
        first_lines = [line for line, _ in zip(read_lines(path), range(2), strict=False)]
        if not any(mark in line for line in first_lines for mark in "\t|"):
            for number, fields in csv_fields(path):
                yield number, fields[0].strip(), ",".join(fields[1:]).strip()
            return
        for number, line in enumerate(read_lines(path), start=1):
            if line.strip():
                tabs = "\t" in line
                name, _, rest = line.partition("\t" if tabs else "|")
                caption = rest if tabs else rest.partition("|")[2]
                yield number, name.partition("#")[0].strip(), caption.strip()
    except UnicodeDecodeError as error:
        raise UserError(
            f"is no text in UTF-8 ({one_line(error)})", key=str(path), remedy="convert it"
        ) from error


@register("webdataset")
class WebDataset(Corpus):
    """Tar files as webdataset and img2dataset write them.

    Members of one name, `000000012.jpg` and `000000012.txt`, are an item. `item` is `TAR/NAME`; the
    name includes the folder inside the tar, as in webdataset's own key. `path` is
    `TAR.tar:OFFSET:SIZE` of the member that is embedded, so that nothing has to be unpacked. A
    sound or image beside a text keeps that text in its row. A tar that was cut off is listed as
    skipped; its whole members are rows.

    Args:
        root: the folder of uncompressed tar files, subfolders included.
        modality: `image`, `audio` or `text` (the `.txt` members).

    Raises:
        UserError: no such folder.

    >>> import io, tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> member = tarfile.TarInfo("000000012.txt")
    >>> member.size = 5
    >>> with tarfile.open(f"{folder.name}/00000.tar", "w") as tar:
    ...     tar.addfile(member, io.BytesIO(b"a cat"))
    >>> WebDataset(folder.name, "text").listing().rows[["item", "text"]].values.tolist()
    [['00000/000000012', 'a cat']]
    """

    def __init__(self, root: Folder, modality: str) -> None:
        self.root = existing("root", root, "folder")
        self.modality, self.where = check_modality(modality), str(root)

    def listing(self) -> Listing:
        """All items: tars in the order of their names, members in the order of the tar."""
        skipped = list[Skipped]()
        entries = (
            entry
            for path in files_below(self.root, (".tar",))
            for entry in self._entries(path, skipped)
        )
        return Listing.of(entries, self.modality, self.where, skipped)

    def _entries(self, path: Path, skipped: list[Skipped]) -> Iterator[dict[str, Any]]:
        tar_name, items = path.relative_to(self.root).as_posix(), dict[str, dict[str, Any]]()
        try:
            with tarfile.open(path, "r:") as tar:
                for member in tar:
                    key, suffix = _key_and_suffix(member.name)
                    item = f"{tar_name.removesuffix('.tar')}/{key}"
                    if member.isdir():
                        continue
                    if not member.isreg() or member.issparse():  # its bytes lie elsewhere
                        reason = f"{member.name} is a link or a sparse file"
                        skipped.append(Skipped(item, item, tar_name, reason))
                        continue
                    entry = items.setdefault(key, {"row": item, "item": item})
                    file = tar.extractfile(member) if suffix == ".txt" else None
                    if file is not None:
                        entry["text"] = file.read().decode("utf-8-sig", "replace").strip()
                    if suffix in SUFFIXES[self.modality]:
                        entry["path"] = f"{tar_name}:{member.offset_data}:{member.size}"
        except (tarfile.TarError, OSError) as error:
            reason = f"not readable to its end as a tar file ({one_line(error)})"
            skipped.append(Skipped(tar_name, "", tar_name, reason))
        yield from (entry for entry in items.values() if "path" in entry)

    def file(self, row: Mapping[str, Any]) -> Path | None:
        """The tar."""
        return None if self.modality == "text" else self.root / str(row["path"]).rsplit(":", 2)[0]

    def length(self, row: Mapping[str, Any]) -> int:
        """Characters of a text, bytes of a sound."""
        if self.modality != "audio":
            return super().length(row)
        return int(str(row["path"]).rsplit(":", 1)[1])

    def raw(self, row: Mapping[str, Any]) -> str | bytes:
        """The row's text, or its member's bytes."""
        if self.modality == "text":
            return str(row["text"])
        tar_name, offset, size = str(row["path"]).rsplit(":", 2)
        with open(self.root / tar_name, "rb") as file:
            file.seek(int(offset))
            return file.read(int(size))


def _key_and_suffix(name: str) -> tuple[str, str]:
    """Key of a member, with its folder (cat/1.jpg and dog/1.jpg are two items), and its suffix."""
    folder, _, base = name.removeprefix("./").rpartition("/")
    stem, _, ending = base.partition(".")
    return f"{folder}/{stem}" if folder else stem, f".{ending.lower()}"
