"""The contract of a corpus, for every class.

Each maker below writes the same three items in a layout, and one entry that cannot be used.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import soundfile
from PIL import Image

from gera_lightning.config.embed_schema import EmbedConfig
from gera_lightning.data.store import EmbeddingStore, check_rows
from gera_lightning.embedding.corpus import Corpus, FolderOfFiles, Manifest, TableCorpus
from gera_lightning.embedding.embed import embed_corpus
from gera_lightning.embedding.huggingface import HuggingFaceDataset
from gera_lightning.embedding.layouts import CocoCaptions, FlickrCaptions, LibriSpeech, WebDataset
from gera_lightning.encoders.base import Encoder

TEXTS = ["a cat", "the dog", "an owl, asleep"]
NAMES = ["19-198-0000", "26-495-0000", "61-70968-0000"]  # good in every layout
BAD = "84-121123-0000"


def sound(number: int, suffix: str = "flac") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.full(100 + 50 * number, 0.1 * (number + 1)), 16_000, format=suffix)
    return file.getvalue()


def picture(number: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (10 * number, 20 * number, 30 * number)).save(file, "PNG")
    return file.getvalue()


def raw(modality: str, number: int) -> bytes:
    text = TEXTS[number].encode()
    return {"text": text, "audio": sound(number), "image": picture(number)}[modality]


def suffix(modality: str) -> str:
    return {"text": "txt", "audio": "flac", "image": "png"}[modality]


def put(path: Path, content: bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path.name


def files(folder: Path, modality: str) -> list[str]:
    """The three items as files, and their names."""
    return [
        put(folder / f"{name}.{suffix(modality)}", raw(modality, n)) for n, name in enumerate(NAMES)
    ]


def manifest(folder: Path, modality: str) -> Corpus:
    table = pd.DataFrame({"item": [*NAMES, None], "text": [*TEXTS, "nobody"]})
    if modality != "text":
        table["path"] = [*files(folder, modality), "nothing"]
    table.to_csv(folder / "table.csv", index=False)
    return Manifest(folder / "table.csv", modality)


def folder_of_files(folder: Path, modality: str) -> Corpus:
    files(folder, modality)
    put(folder / f"{BAD}.txt", b"\xff\xfe")  # not text
    return FolderOfFiles(folder, modality)


def librispeech(folder: Path, modality: str) -> Corpus:
    for n, name in enumerate([*NAMES, BAD]):
        chapter = folder / "train" / "/".join(name.split("-")[:2])
        put(chapter / f"{name}.flac", sound(n % 3))
        transcript = f"{name} {TEXTS[n]}" if name != BAD else ""
        put(chapter / f"{name.rpartition('-')[0]}.trans.txt", transcript.encode())
    return LibriSpeech(folder, modality)


def coco(folder: Path, modality: str) -> Corpus:
    names = files(folder, "image")
    images = [{"id": n, "file_name": name} for n, name in zip(NAMES, names, strict=True)]
    notes = [{"id": n, "image_id": n, "caption": t} for n, t in zip(NAMES, TEXTS, strict=True)]
    notes.append({"id": BAD, "image_id": BAD, "caption": "its image is not listed"})
    put(folder / "c.json", json.dumps({"images": images, "annotations": notes}).encode())
    return CocoCaptions(folder / "c.json", folder, modality)


def flickr(folder: Path, modality: str) -> Corpus:
    lines = [f"{n}#0\t{t}" for n, t in zip(files(folder, "image"), TEXTS, strict=True)]
    put(folder / "token", "\n".join([*lines, "nonsense"]).encode())
    return FlickrCaptions(folder / "token", folder, modality)


def webdataset(folder: Path, modality: str) -> Corpus:
    names = files(folder / "files", modality)
    with tarfile.open(folder / "0.tar", "w") as tar:
        for name in names:
            tar.add(folder / "files" / name, name)
    put(folder / "1.tar", b"no tar at all" * 100)
    return WebDataset(folder, modality)


def huggingface(folder: Path, modality: str) -> Corpus:
    datasets = pytest.importorskip("datasets")
    values: list[Any] = [*TEXTS, "nobody"]
    if modality != "text":
        values = [{"bytes": raw(modality, n % 3), "path": None} for n in range(4)]
    table = datasets.Dataset.from_dict({"id": [*NAMES, None], modality: values})
    if modality == "image":
        table = table.cast_column("image", datasets.Image())
    table.save_to_disk(str(folder / "saved"))
    return HuggingFaceDataset(folder / "saved", modality, item="id")


def table_corpus(folder: Path, modality: str) -> Corpus:
    rows = pd.DataFrame({"row": NAMES, "item": NAMES, "text": TEXTS})
    of_row: Callable[..., bytes] = lambda row: raw(modality, NAMES.index(row["item"]))  # noqa: E731
    return TableCorpus(rows, modality, {"name": "made"}, None if modality == "text" else of_row)


MAKERS: dict[str, tuple[Callable[[Path, str], Corpus], tuple[str, ...]]] = {
    "manifest": (manifest, ("text", "audio", "image")),
    "folder": (folder_of_files, ("text", "audio", "image")),
    "librispeech": (librispeech, ("text", "audio")),
    "coco": (coco, ("text", "image")),
    "flickr": (flickr, ("text", "image")),
    "webdataset": (webdataset, ("text", "audio", "image")),
    "huggingface": (huggingface, ("text", "audio", "image")),
    "table": (table_corpus, ("text", "audio", "image")),
}
NONE_SKIPPED = (("table", "text"), ("table", "audio"), ("table", "image"), ("coco", "image"))
NONE_SKIPPED += (("folder", "audio"), ("folder", "image"))  # a text beside nothing is no entry
CASES = [(name, modality) for name, (_, modalities) in MAKERS.items() for modality in modalities]


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def case(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Corpus, int]:
    """A corpus, and how many entries of it cannot be used."""
    name, modality = request.param
    (tmp_path / "raw").mkdir()
    corpus = MAKERS[name][0](tmp_path / "raw", modality)
    return corpus, int(request.param not in NONE_SKIPPED)


def test_rows_are_listed_in_order_and_what_is_skipped_is_named(case: tuple[Corpus, int]):
    corpus, skipped = case
    listing, again = corpus.listing(), corpus.listing()
    check_rows(listing.rows, "here")
    assert listing.rows.index.tolist() == [0, 1, 2]
    assert [item.rpartition("/")[2] for item in listing.rows["item"]] == NAMES
    pd.testing.assert_frame_equal(listing.rows, again.rows)
    assert len(listing.skipped) == skipped
    assert listing.skipped == again.skipped
    assert all(entry.reason and entry.row for entry in listing.skipped)


def test_a_row_gives_its_raw_item(case: tuple[Corpus, int]):
    corpus, _ = case
    for number, row in enumerate(corpus.listing().rows.to_dict("records")):
        found, file = corpus.raw(row), corpus.file(row)
        if corpus.modality == "text":
            assert (found, file, corpus.length(row)) == (TEXTS[number], None, len(TEXTS[number]))
            continue
        content = found.read_bytes() if isinstance(found, Path) else found
        assert content == raw(corpus.modality, number)
        assert file is None or file.is_file()
        if file is not None and corpus.modality == "audio":
            assert corpus.length(row) == len(content)


def test_a_description_is_json_and_tells_other_sources_apart(case: tuple[Corpus, int]):
    about = case[0].describe()
    assert json.loads(json.dumps(about)) == about == case[0].describe()
    assert "name" in about or about["corpus"] == type(case[0]).__name__


class Sizes:
    """Length of a text, samples of a sound, sum of an image's pixels; it may stop after a batch."""

    name, dim, batch_size = "sizes", 1, 1

    def __init__(self, stop_at: int | None = None) -> None:
        self.stop_at, self.seen = stop_at, 0

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "dim": self.dim}

    def encode(self, items: Sequence[Any]) -> np.ndarray:
        if self.seen == self.stop_at:
            raise RuntimeError("stopped here")
        self.seen += len(items)
        sizes = [np.asarray(i).sum() if isinstance(i, Image.Image) else len(i) for i in items]
        return np.array(sizes, dtype=np.float32).reshape(-1, 1)


def test_a_stopped_run_goes_on_and_ends_in_the_same_bytes(case: tuple[Corpus, int], tmp_path: Path):
    corpus, skipped = case
    settings = EmbedConfig(shard_rows=1, accelerator="cpu", dtype="float32", max_skipped=1.0)

    def run(name: str, encoder: Encoder) -> EmbeddingStore:
        [store] = embed_corpus(corpus, encoder, tmp_path / name, settings)
        return store

    whole = run("whole", Sizes())
    expected = {
        "text": [len(text) for text in TEXTS],
        "audio": [100, 150, 200],
        "image": [0, 16 * 60, 16 * 120],
    }[corpus.modality]
    assert whole.read()[:, 0].tolist() == expected
    assert whole.manifest["source"]["skipped"] == skipped
    with pytest.raises(RuntimeError, match="stopped here"):
        run("stopped", Sizes(stop_at=2))
    rest = Sizes()
    run("stopped", rest)
    assert rest.seen == 1, "two of three shards were kept"
    contents = [
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        for name in ("whole", "stopped")
    ]
    assert contents[0] == contents[1]
