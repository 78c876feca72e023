"""Build the shipped stores of spoken words and their names, from packages.

    python data/spoken_words/build.py [--force]

Every word is spoken by the voices of data/wordnet_speech, whose modules are used here. A row is a
word by a voice at a speed; each is kept as a FLAC file in data/.build/spoken_words, so that an
interrupted build goes on with the next one. They are embedded as `gera embed` does it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "wordnet_speech"))

import numpy as np
import pandas as pd
from rich.console import Console
from speak import RATE, keep_utterance
from voices import COLUMNS, ROBOTS, SEEN, UNSEEN

from encoders import speech_encoder, text_encoder
from gera_lightning.config.embed_schema import EmbedConfig
from gera_lightning.data.store import EmbeddingStore, is_whole
from gera_lightning.embedding.corpus import TableCorpus, shuffled
from gera_lightning.embedding.embed import embed_corpus
from gera_lightning.embedding.reading import read_audio
from gera_lightning.utils.errors import exit_code

HERE = Path(__file__).resolve().parent
BUILD = HERE.parent / ".build"
WORDS = """
    yes no up down left right on off stop go zero one two three four five six seven eight nine bed
    bird cat dog happy house marvin sheila tree wow backward forward follow learn visual
""".split()  # noqa: SIM905
"""The words of Google's Speech Commands, version 2; none of its recordings is used."""
SPEEDS = (0.85, 1.0, 1.15)
"""Of the natural voices; robots speak each word once."""
SETTINGS = EmbedConfig(shard_rows=4096, accelerator="cpu", strict=True)
SOURCE = {
    "name": "The 35 words of Speech Commands v2, synthesised",
    "licence": "Kokoro-82M Apache-2.0, see README.md",
    "speech": "Kokoro-82M, Debian espeak-ng and flite",
}


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


def build_speech(*, overwrite: bool) -> None:
    """The store of utterances, each spoken once and kept."""
    rows = speech_rows()
    speeds = dict(zip(rows["row"], rows["speed"], strict=True))

    def sound(row: Mapping[str, Any]) -> np.ndarray:
        path = BUILD / HERE.name / row["group"] / f"{row['row']}.flac"
        keep_utterance(path, row["text"], row["group"], speeds[row["row"]])
        return read_audio(path, RATE)

    corpus, console = TableCorpus(rows[COLUMNS], "audio", SOURCE, sound), Console()
    path = HERE / "speech"
    embed_corpus(corpus, speech_encoder(), path, SETTINGS, overwrite=overwrite, console=console)


def build_text(*, overwrite: bool) -> None:
    """The store of words."""
    corpus, console = TableCorpus(text_rows(), "text", SOURCE), Console()
    path = HERE / "text"
    embed_corpus(corpus, text_encoder(), path, SETTINGS, overwrite=overwrite, console=console)


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
