"""Searching with words, a sound, a picture or a folder that no store holds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gera_lightning.commands.evaluate import evaluate
from gera_lightning.commands.search import search
from gera_lightning.data.store import EmbeddingStore, write_store
from gera_lightning.embedding.query import new_items
from gera_lightning.encoders.rebuild import rebuild_encoder
from gera_lightning.utils.errors import UserError

TEXTS = [
    f"{size} {color} {animal}"
    for size in ("a", "small", "the")
    for color in ("red", "over")
    for animal in ("dog", "cat", "house", "runs")
]


def best(found: str) -> list[str]:
    """The row that stands first below each query."""
    blocks = found.split("\n", 1)[1].split("\n\n")
    return [block.splitlines()[1].split("[")[-1].rstrip("]").split()[-1] for block in blocks]


def test_a_sound_a_picture_and_a_folder_find_what_their_rows_find(project):
    rows = {n: best(search("with_speech", f"speech{n}"))[0] for n in (3, 5)}
    assert best(search("with_speech", "sounds/3.wav")) == [rows[3]]
    assert best(search("with_image", "4.png")) == best(search("with_image", "image4"))
    found = search("with_speech", "sounds/")
    assert best(found) == [rows[3], rows[5]]
    assert "more/5.wav" in found
    assert "*" not in found  # nothing new is of an item


def test_words_that_no_row_has_are_encoded(project):
    [row] = best(search("with_image", "the small red cat runs over"))
    assert row.startswith("image")
    assert best(search("with_image", "words.txt")) == best(search("with_image", "small over cat"))
    found = search("with_image", TEXTS[7])  # a row's own text is that row
    assert "(*: of the same item)" in found


def test_an_aligner_without_its_stores_searches_the_gallery_that_is_named(project):
    [expected] = best(search("with_speech", "speech5"))
    Path("elsewhere").mkdir()
    for name in ("speech", "text"):
        Path(name).rename(f"elsewhere/{name}")
    assert best(search("with_speech", "sounds/more/5.wav", gallery="elsewhere/text")) == [expected]
    [row] = best(search("with_speech", "a small house", gallery="elsewhere/speech"))
    assert row.startswith("speech")
    with pytest.raises(UserError, match="no embedding store"):
        search("with_speech", "sounds/more/5.wav")


def test_the_command_says_what_it_finds(project):
    words = [sys.executable, "-m", "gera_lightning", "search", "with_speech", "sounds/3.wav", "k=2"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[1].split() == ["speech", "sounds/3.wav"]
    assert len(done.stdout.splitlines()) == 4


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("sounds/9.wav", "is no file"),
        ("4.png", "no encoder takes image"),
        ("text/", "holds no sound, picture or text"),
        ("noise.wav", "cannot be read: not audio"),
    ],
)
def test_what_cannot_be_searched_with_is_said(project, query, message):
    Path("noise.wav").write_bytes(b"no sound")
    with pytest.raises(UserError, match=message):
        search("with_speech", query)


def test_weights_that_are_not_there_are_named_and_rows_that_hold_the_words_serve(project):
    describe("text", name="nobody/such-a-model")
    with pytest.raises(UserError, match=r"nobody/such-a-model.*encoder=FOLDER"):
        search("with_speech", "a small house")
    found = search("with_speech", "house")
    assert found.startswith("this row holds the words, which are not encoded: ")
    assert best("\n".join(found.splitlines()[1:]))[0].startswith("speech")


def test_another_encoder_than_the_stores_is_refused(project, checkpoints):
    with pytest.raises(UserError, match="makes another row of 'a red dog'"):
        search("with_speech", "a small house", encoder=str(checkpoints("t5")))
    with pytest.raises(UserError, match="not a network of texts"):
        search("with_speech", "a small house", encoder=str(checkpoints("whisper")))


def test_an_encoder_of_another_class_is_no_code_to_run(project):
    describe("text", **{"class": "subprocess.Popen", "name": "touch"})
    with pytest.raises(UserError, match="no encoder takes text"):
        search("with_speech", "a small house")
    with pytest.raises(UserError, match="none of the package's own"):
        rebuild_encoder({"class": "subprocess.Popen", "name": "touch", "args": ["PWNED"]})


def describe(store: str, **changes: Any) -> None:
    path = Path(store) / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["encoder"] |= changes
    path.write_text(json.dumps(manifest))


def test_rows_are_classified_by_prompts(project):
    store = EmbeddingStore("image")
    rows = store.rows.assign(label=[text.split()[-1] for text in TEXTS])
    write_store("labelled", store.read(), rows, encoder=store.encoder, source={}, dtype="float32")
    Path("classes.txt").write_text("dog: a red dog\ndog: small dog\ncat\nhouse: the house\n")
    found = evaluate("with_image", "labelled", prompts="classes.txt")
    assert found.measures["accuracy_chance"] == pytest.approx(1 / 3)
    assert 0 <= found.measures["accuracy"] <= found.measures["accuracy@5"] == 1
    assert found.text.startswith("3 classes, 4 prompts, rows of labelled")
    Path("other.txt").write_text("one\ntwo")
    with pytest.raises(UserError, match="no row has one of the classes one, two"):
        evaluate("with_image", "labelled", prompts="other.txt")


def test_a_word_that_is_also_a_folder_is_a_word(project):
    Path("house").mkdir()
    assert new_items("house").modality == "text"
