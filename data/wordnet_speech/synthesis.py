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
from gera_lightning.utils.errors import UserError

VOICES = {voice.name: voice for voice in [*SEEN, *UNSEEN]}
FRAMES_DIFFER = 0.5
"""Two voices are taken as one where no number of their mean frames differs by this much (numbers
lie in about -50 to 70).
"""


def _read_wave(data: bytes) -> np.ndarray:
    """FitData in [-1, 1] at 16 kHz of a mono 16-bit WAV; a wrong length in its header (espeak-ng's
    pipe) does no harm.
    """
    with wave.open(io.BytesIO(data)) as file:
        rate, width, channels = file.getframerate(), file.getsampwidth(), file.getnchannels()
    if (width, channels) != (2, 1):
        raise UserError(
            f"synthesised audio has {channels} channels of {width} bytes: expected one of two"
        )
    start = data.index(b"data") + 8
    samples = (
        np.frombuffer(data[start : start + (len(data) - start) // 2 * 2], dtype="<i2").astype(
            np.float64
        )
        / 32768
    )
    common = gcd(rate, SAMPLE_RATE)
    return (
        samples
        if rate == SAMPLE_RATE
        else resample_poly(samples, SAMPLE_RATE // common, rate // common)
    )


def speak(text: str, voice: Voice) -> np.ndarray:
    """Audio `[n]` of a text, float32 at 16 kHz in [-1, 1].

    Raises:
        UserError: the synthesiser is missing or fails.
    """
    try:
        if voice.engine == "espeak-ng":
            data = subprocess.run(
                ["espeak-ng", *voice.arguments, "--stdout", text], check=True, capture_output=True
            ).stdout
        else:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "speech.wav"
                subprocess.run(
                    ["flite", *voice.arguments, "-t", text, "-o", str(path)],
                    check=True,
                    capture_output=True,
                )
                data = path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(
            f"{voice.engine} is not installed: apt-get install espeak-ng flite wordnet-base"
        ) from error
    except subprocess.CalledProcessError as error:
        raise UserError(
            f"{voice.engine} failed on {text!r}: {error.stderr.decode(errors='replace').strip()}"
        ) from error
    return _read_wave(data).astype(np.float32)


def stand_ins(voice: Voice) -> list[Voice]:
    """What espeak-ng answers with, silently, when it lacks a voice's variant or its accent: same
    pitch and speed, default otherwise.
    """
    if voice.engine != "espeak-ng":
        return []
    accent, variant = voice.arguments[1].split("+")
    names = [accent] + ([f"en+{variant}"] if accent != "en" else [])
    return [
        Voice(f"{voice.name} as {name}", "espeak-ng", ("-v", name, *voice.arguments[2:]))
        for name in names
    ]


def check_voices(frames: SpeechEmbeddingFrames) -> None:
    """Each voice differs, in samples and in frames, from every other and from what a synthesiser
    that lacks it would say instead.

    Pitch and speed alone would make two voices differ: a voice is therefore compared with its
        `stand_ins` as well.

    Raises:
        UserError: naming two voices that speak alike.
    """
    probe = "a quick brown fox jumps over the lazy dog"
    spoken = {
        v.name: speak(probe, v) for voice in VOICES.values() for v in (voice, *stand_ins(voice))
    }
    heard = {
        name: (audio.tobytes(), frames.frames(audio).mean(0)) for name, audio in spoken.items()
    }
    for name, voice in VOICES.items():
        for other in [*VOICES, *(v.name for v in stand_ins(voice))]:
            same_audio, same_frames = (
                heard[name][0] == heard[other][0],
                np.abs(heard[name][1] - heard[other][1]).max() < FRAMES_DIFFER,
            )
            if name != other and (same_audio or same_frames):
                raise UserError(
                    f"voices {name!r} and {other!r} speak alike: this espeak-ng or flite lacks one"
                    " of them"
                )
