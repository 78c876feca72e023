"""Speak every utterance, each kept as a FLAC file of 16 kHz: an interrupted run goes on with the
next one.

    python data/wordnet_speech/speak.py [FOLDER]
"""

from __future__ import annotations

import os
import signal
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # processes, not threads, share the cores

import numpy as np
import pandas as pd
import soundfile
from corpus import choose_sentences
from kokoro import SAMPLE_RATE, Kokoro
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from robots import speak as speak_robot
from scipy.signal import resample_poly
from voices import ROBOTS, turn, utterances

from gera_lightning.utils.errors import exit_code
from gera_lightning.utils.files import atomic_write

HERE = Path(__file__).resolve().parent
WORK = HERE.parent / ".build" / HERE.name
WORDNET = Path("/usr/share/wordnet")  # where Debian's wordnet-base puts it
RATE = 16_000


def audio_path(row: str, folder: Path = WORK) -> Path:
    """Where an utterance is kept."""
    return folder / "audio" / row.split("-")[1][:2] / f"{row}.flac"


@cache
def _network() -> Kokoro:
    return Kokoro(WORK)


def keep_utterance(path: Path, text: str, voice: str, speed: float = 1.0) -> None:
    """Speak a text into a FLAC file, unless it is there; robots have one speed."""
    assert SAMPLE_RATE * 2 == RATE * 3
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    robot = next((one for one in ROBOTS if one.name == voice), None)
    if robot is not None:
        audio = speak_robot(text, robot, RATE)
    else:
        audio = resample_poly(_network().speak(text, voice, speed), 2, 3)
    with atomic_write(path) as scratch:
        soundfile.write(scratch, np.clip(audio, -1, 1), RATE, subtype="PCM_16", format="FLAC")


def speak_rows(rows: pd.DataFrame, folder: Path) -> int:
    """Speak those that are not kept yet; how many there are."""
    for row, text, voice in zip(rows["row"], rows["text"], rows["group"], strict=True):
        keep_utterance(audio_path(row, folder), text, voice)
    return len(rows)


def speak_all(rows: pd.DataFrame, folder: Path = WORK) -> None:
    """Speak all rows, by as many processes as there are cores, in the order in which a larger
    `SPOKEN_SHARE` takes them in.
    """
    _network()  # its files are put in place once
    left = rows[[not audio_path(row, folder).exists() for row in rows["row"]]]
    left = left.assign(turn=left["item"].map(turn)).sort_values("turn")
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    hush = (signal.SIGINT, signal.SIG_DFL)  # on Ctrl-C the workers end without a word
    with (
        Progress(*columns, speed_estimate_period=600) as bar,
        ProcessPoolExecutor(os.cpu_count(), initializer=signal.signal, initargs=hush) as workers,
    ):
        task = bar.add_task("speaking", total=len(rows), completed=len(rows) - len(left))
        parts = [left.iloc[start : start + 8] for start in range(0, len(left), 8)]
        for done in as_completed([workers.submit(speak_rows, part, folder) for part in parts]):
            bar.advance(task, done.result())


def main() -> None:
    """Command line."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else WORK
    speak_all(utterances(choose_sentences(WORDNET)), folder)


if __name__ == "__main__":
    sys.exit(exit_code(main, "interrupted: the same command goes on with the next utterance"))
