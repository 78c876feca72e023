"""Voices of Debian's speech synthesisers: text to audio."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

import numpy as np
from voices import Voice

from gera_lightning.embedding.reading import read_audio
from gera_lightning.utils.errors import UserError


def speak(text: str, voice: Voice, rate: int) -> np.ndarray:
    """Audio `[n]` of a text, float32 at `rate` Hz in [-1, 1].

    Raises:
        UserError: the synthesiser is missing or fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "speech.wav"
        said = (
            ["-w", str(path), text]
            if voice.engine == "espeak-ng"
            else ["-t", text, "-o", str(path)]
        )
        try:
            subprocess.run([voice.engine, *voice.arguments, *said], check=True, capture_output=True)
        except FileNotFoundError as error:
            raise UserError(
                f"{voice.engine} is not installed", remedy="apt-get install espeak-ng flite"
            ) from error
        except subprocess.CalledProcessError as error:
            words = error.stderr.decode(errors="replace").strip()
            raise UserError(f"{voice.engine} fails on {text!r}: {words}") from error
        return read_audio(path, rate)
