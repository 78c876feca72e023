"""Text to audio to frames, by the speech synthesisers of Debian; frames are kept, audio is not."""

from __future__ import annotations

import io
import subprocess
import tempfile
import wave
from math import gcd
from pathlib import Path

import numpy as np
from corpus import SEEN, UNSEEN, Voice
from scipy.signal import resample_poly

from gera_lightning.encoders.speech_embedding import SAMPLE_RATE, SpeechEmbeddingFrames
from gera_lightning.errors import UserError

VOICES = {voice.name: voice for voice in [*SEEN, *UNSEEN]}


def _read_wave(data: bytes) -> np.ndarray:
    """Samples in [-1, 1] at 16 kHz of a mono 16-bit WAV; a wrong length in its header (espeak-ng's pipe) does no harm."""
    with wave.open(io.BytesIO(data)) as file:
        rate, width, channels = file.getframerate(), file.getsampwidth(), file.getnchannels()
    if (width, channels) != (2, 1):
        raise UserError(f"synthesised audio has {channels} channels of {width} bytes: expected one of two")
    start = data.index(b"data") + 8
    samples = np.frombuffer(data[start : start + (len(data) - start) // 2 * 2], dtype="<i2").astype(np.float64) / 32768
    common = gcd(rate, SAMPLE_RATE)
    return samples if rate == SAMPLE_RATE else resample_poly(samples, SAMPLE_RATE // common, rate // common)


def speak(text: str, voice: Voice) -> np.ndarray:
    """Audio `[n]` of a text, float32 at 16 kHz in [-1, 1].

    Raises:
        UserError: the synthesiser is missing or fails.
    """
    try:
        if voice.engine == "espeak-ng":
            data = subprocess.run(["espeak-ng", *voice.arguments, "--stdout", text], check=True, capture_output=True).stdout
        else:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "speech.wav"
                subprocess.run(["flite", *voice.arguments, "-t", text, "-o", str(path)], check=True, capture_output=True)
                data = path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"{voice.engine} is not installed: apt-get install espeak-ng flite wordnet-base") from error
    except subprocess.CalledProcessError as error:
        raise UserError(f"{voice.engine} failed on {text!r}: {error.stderr.decode(errors='replace').strip()}") from error
    return _read_wave(data).astype(np.float32)


def check_voices(frames: SpeechEmbeddingFrames) -> None:
    """Each voice's audio differs from every other's: espeak-ng answers an unknown variant with its default voice, silently.

    Raises:
        UserError: naming two voices that speak alike.
    """
    probe = "a quick brown fox jumps over the lazy dog"
    spoken = {name: frames.frames(speak(probe, voice)).mean(0) for name, voice in VOICES.items()}
    names = list(spoken)
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            if np.allclose(spoken[first], spoken[second], atol=1e-2):
                raise UserError(f"voices {first} and {second} sound alike: a variant is missing from this espeak-ng or flite")
