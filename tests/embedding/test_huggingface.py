from __future__ import annotations

import builtins
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from gera_lightning.embedding.huggingface import HuggingFaceDataset
from gera_lightning.embedding.reading import Unreadable, read_audio, read_image
from gera_lightning.utils.errors import UserError


def test_without_the_package_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "datasets":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match="pip install datasets"):
        HuggingFaceDataset(tmp_path, "text")


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    datasets = pytest.importorskip("datasets")
    wave, picture = io.BytesIO(), io.BytesIO()
    soundfile.write(wave, np.linspace(-0.5, 0.5, 800), 16_000, format="WAV", subtype="FLOAT")
    Image.new("RGB", (4, 5), "red").save(picture, "PNG")
    table = {
        "id": [7, 8, 9],
        "text": ["one", None, "three"],
        "kind": [0, 1, 0],
        "sound": [
            {"bytes": wave.getvalue(), "path": None},
            None,
            {"bytes": wave.getvalue(), "path": None},
        ],
        "image": [{"bytes": picture.getvalue(), "path": None}] * 3,
    }
    part = datasets.Dataset.from_dict(table).cast_column(
        "kind", datasets.ClassLabel(names=["dog", "cat"])
    )
    part = part.cast_column("sound", datasets.Audio()).cast_column("image", datasets.Image())
    datasets.DatasetDict({"train": part, "test": part, "validation": part}).save_to_disk(
        str(tmp_path / "dict")
    )
    part.save_to_disk(str(tmp_path / "one"))
    return tmp_path


def test_splits_items_and_class_names(saved: Path):
    corpus = HuggingFaceDataset(
        saved / "dict", "text", label="kind", splits={"train": "train", "validation": "test"}
    )
    found = corpus.listing()
    assert found.rows.to_dict("list") == {
        "row": ["train/0", "train/2", "validation/0", "validation/2"],
        "item": ["train/0", "train/2", "validation/0", "validation/2"],
        "path": ["train/0", "train/2", "validation/0", "validation/2"],
        "text": ["one", "three", "one", "three"],
        "label": ["dog", "dog", "dog", "dog"],
        "split": ["train", "train", "test", "test"],
    }
    assert [s.reason for s in found.skipped] == ["no text", "no text"]


def test_audio_and_images_come_as_bytes(saved: Path):
    sounds = HuggingFaceDataset(saved / "one", "audio", column="sound", item="id")
    rows = sounds.listing().rows
    assert rows["item"].tolist() == ["7", "8", "9"]
    np.testing.assert_allclose(
        read_audio(sounds.raw(rows.iloc[2]), 16_000), np.linspace(-0.5, 0.5, 800), atol=1e-6
    )
    assert [sounds.length(row) for row in rows.to_dict("records")] == [
        len(sounds.raw(rows.iloc[0])),
        0,
        len(sounds.raw(rows.iloc[2])),
    ]
    with pytest.raises(Unreadable, match="empty"):
        read_audio(sounds.raw(rows.iloc[1]), 16_000)
    pictures = HuggingFaceDataset(saved / "one", "image")
    assert read_image(pictures.raw(rows.iloc[0])).size == (4, 5)


def test_sounds_have_a_length_however_they_are_held(tmp_path: Path):
    """Batches are formed by it. A column of the feature `Audio` would take the files in when it is
    saved, so this one has none.
    """
    datasets = pytest.importorskip("datasets")
    for name in ("a.wav", "b.wav"):
        soundfile.write(tmp_path / name, np.zeros(300 + 50 * ord(name[0])), 16_000)
    file, packed = tmp_path / "a.wav", (tmp_path / "b.wav").read_bytes()
    values = [
        {"bytes": None, "path": str(file)},
        {"bytes": packed, "path": "b.wav"},
        None,
        {"bytes": None, "path": "gone.wav"},
    ]
    datasets.Dataset.from_dict({"audio": values}).select([3, 1, 2, 0]).save_to_disk(
        str(tmp_path / "set")
    )
    corpus = HuggingFaceDataset(tmp_path / "set", "audio")
    rows = corpus.listing().rows.to_dict("records")
    assert [corpus.length(row) for row in rows] == [0, len(packed), 0, file.stat().st_size]
    assert [corpus.file(row) for row in rows] == [Path("gone.wav"), None, None, file]
    assert [corpus.raw(row) for row in rows] == [Path("gone.wav"), packed, b"", file]


def test_an_item_without_a_name_is_left_out_and_named(saved: Path):
    listing = HuggingFaceDataset(saved / "one", "image", item="text").listing()
    assert listing.rows["item"].tolist() == ["one", "three"]
    assert [entry.reason for entry in listing.skipped] == ["no item"]


def test_another_column_is_another_source(saved: Path):
    one, other = (
        HuggingFaceDataset(saved / "one", "text", column=column) for column in ("text", "id")
    )
    assert {**one.describe(), "column": "id"} == other.describe() != one.describe()


@pytest.mark.parametrize(
    ("folder", "options", "key", "value"),
    [
        ("dict", {"column": "txt"}, "column", "txt"),
        ("dict", {"item": "ids"}, "column", "ids"),
        ("dict", {"splits": {"tset": "test"}}, "splits", ["tset"]),
        (".", {}, "path", ...),
    ],
)
def test_a_mistake_is_named(saved: Path, folder: str, options: dict, key: str, value: object):
    with pytest.raises(UserError) as caught:
        HuggingFaceDataset(saved / folder, "text", **options)
    assert caught.value.key == key
    assert caught.value.value == (str(saved) if value is ... else value)
