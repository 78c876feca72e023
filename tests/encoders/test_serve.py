"""The page to try an aligner: what it answers, and that it stays on this machine."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from starlette.testclient import TestClient

from gera_lightning.commands.serve import serve
from gera_lightning.commands.serve.app import make_app
from gera_lightning.commands.serve.gallery import Gallery
from gera_lightning.data.store import write_store
from gera_lightning.experiment.load_run import load_run
from gera_lightning.utils.errors import UserError


def client(target: str) -> TestClient:
    app = make_app(Gallery(load_run(target), {"a": "", "b": ""}))
    return TestClient(app, base_url="http://localhost")


def test_words_a_sound_and_a_row_are_answered(project):
    page = client("with_speech")
    assert "Drop a sound" in page.get("/").text
    about = page.get("/about").json()
    assert about["modalities"] == ["speech", "text"]
    assert about["takes"] == ["text", "audio"]
    found = page.post("/search", data={"words": "the small red cat runs", "k": 3}).json()
    assert (found["modality"], found["searched"], len(found["results"])) == ("text", "speech", 3)
    assert len(found["before"]) == len(found["after"]) == 6
    with open("sounds/3.wav", "rb") as file:
        sound = page.post("/search", files={"file": ("3.wav", file)}, data={"k": "4"}).json()
    row = page.get("/row/a/3?k=4").json()
    assert [r["name"] for r in sound["results"]] == [r["name"] for r in row["results"]]
    assert sound["query"]["text"] == "3.wav"
    assert not any(r["same"] for r in sound["results"])
    assert "speech3" not in [r["name"] for r in row["before"]]  # not its own neighbour


def test_the_text_of_a_row_is_that_row_and_its_partner_is_marked(project):
    found = client("with_speech").post("/search", data={"words": "a red dog", "k": 50}).json()
    assert found["query"]["name"] == "text0"
    assert [r["name"] for r in found["results"] if r["same"]] == ["speech0"]
    scores = [r["score"] for r in found["results"]]
    assert scores == sorted(scores, reverse=True)
    assert len(scores) == 24


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        ({"data": {"words": "  "}}, "type words, or drop a file"),
        ({"files": {"file": ("x.exe", b"x")}}, "'x.exe' is no sound, picture or text"),
        ({"files": {"file": ("x.wav", b"no sound")}}, "cannot be read"),
        ({"files": {"file": ("x.png", b"no picture")}}, "no encoder takes image"),
        ({"files": {"file": ("../../up.wav", b"no sound")}}, "cannot be read"),
        ({"data": {"words": "a", "k": "many"}}, "many"),
    ],
)
def test_what_cannot_be_answered_is_said(project, sent, words):
    answer = client("with_speech").post("/search", **sent)
    assert answer.status_code == 400
    assert words in answer.json()["error"]


def test_files_below_the_corpus_alone_are_played(project, tmp_path):
    Path("raw").mkdir()
    shutil.copy("sounds/3.wav", "raw/0.wav")
    Path("raw/notes.txt").write_text("private")
    Path("raw/link.wav").symlink_to(tmp_path / "outside.wav")
    shutil.copy("sounds/3.wav", "outside.wav")
    outside = ["../outside.wav", str(tmp_path / "outside.wav"), "link.wav", "notes.txt", "none.wav"]
    rows = pd.DataFrame({"row": list("abcdef"), "path": ["0.wav", *outside]})
    rows["item"] = rows["row"]
    source = {"name": "mine", "root": str(tmp_path / "raw")}
    store = write_store("played", np.ones((6, 2)), rows, encoder={"name": "x"}, source=source)
    gallery = Gallery.__new__(Gallery)
    gallery.stores = {"a": store}
    found = [gallery.media("a", number) for number in range(6)]
    assert found == [tmp_path / "raw" / "0.wav", *[None] * 5]


def test_another_site_cannot_ask_it_and_rows_that_are_not_there_are_404(project):
    page = client("with_speech")
    assert page.get("/about", headers={"host": "evil.example"}).status_code == 400
    for place in ("/row/a/24", "/row/c/0", "/media/a/0", "/media/a/99"):
        assert page.get(place).status_code == 404


def test_a_port_that_is_taken_is_said(project):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UserError, match="is taken"):
            serve("with_speech", port=taken.getsockname()[1])


def test_the_command_serves_to_this_machine_and_ends(project):
    words = [sys.executable, "-m", "gera_lightning", "serve", "with_speech", "port=0"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as command:
        line = command.stdout.readline()
        url = re.match(r"http://127\.0\.0\.1:\d+", line)
        assert url, line
        if shutil.which("chromium"):
            shown = dump(f"{url[0]}/?q=a+red+dog")
            assert "Rows of speech found with the text" in shown
            assert shown.count('class="row') == 5 + 12
        command.terminate()
        command.wait(20)


def dump(url: str) -> str:
    """The page as a browser shows it, once its script has run."""
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=20000"]
    words = ["chromium", *options, "--dump-dom", url]
    return subprocess.run(words, capture_output=True, text=True, timeout=120).stdout
