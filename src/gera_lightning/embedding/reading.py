"""Read raw files for encoders: audio as mono float32 arrays, images as RGB."""

from __future__ import annotations

import io
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gera_lightning.encoders.efficientnet_lite import on_white

if TYPE_CHECKING:
    from PIL.Image import Image

Source = str | os.PathLike[str] | bytes
"""A file's path, or its bytes."""
UNKNOWN_SIZE = 2**31 - 1
"""From here on a size in the header of a WAV file means "unknown": it was written to a pipe."""


class Unreadable(Exception):
    """An item that cannot be used; the message is the reason that `skipped.jsonl` states."""


def read_audio(source: Source, sample_rate: int, max_seconds: float | None = None) -> np.ndarray:
    """Read mono audio `[samples]`, float32, as an encoder of that sample rate takes it.

    Args:
        source: a file's path, or its bytes.
        sample_rate: in Hz.
        max_seconds: longer audio is cut.

    Raises:
        Unreadable: as `read_sound`.

    >>> import soundfile
    >>> file = io.BytesIO()
    >>> soundfile.write(file, np.zeros((800, 2)), 8_000, format="WAV")
    >>> read_audio(file.getvalue(), sample_rate=16_000).shape
    (1600,)
    """
    return read_sound(source, sample_rate, max_seconds)[0]


def read_sound(
    source: Source, sample_rate: int, max_seconds: float | None = None
) -> tuple[np.ndarray, float | None]:
    """Read audio, average its channels, resample it and cut it.

    Args:
        source: a file's path, or its bytes.
        sample_rate: in Hz.
        max_seconds: longer audio is cut.

    Returns:
        Mono audio `[samples]`, float32; and its full length in seconds where it was cut, else None.

    Raises:
        Unreadable: no file, an empty or truncated one, no audio, no samples, or samples that are
            not finite.
    """
    import soundfile

    raw = _opened(source)
    try:
        with soundfile.SoundFile(raw) as file:
            rate, expected, header = int(file.samplerate), int(file.frames), str(file.extra_info)
            most = expected if max_seconds is None else int(np.ceil(max_seconds * rate))
            wanted = min(expected, most)
            audio = file.read(wanted, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise Unreadable(f"not audio that can be decoded ({_one_line(error)})") from error
    if expected < 1:
        raise Unreadable("no samples")
    if len(audio) < wanted or _cut_off(header):
        raise Unreadable("truncated: its header promises more samples than it holds")
    mono = audio.mean(1)
    if not np.isfinite(mono).all():
        raise Unreadable("samples that are not finite")
    return resampled(mono, rate, sample_rate), (expected / rate if wanted < expected else None)


def resampled(audio: np.ndarray, rate: int, sample_rate: int) -> np.ndarray:
    """Audio `[samples]` at `rate` Hz as `[samples * sample_rate / rate]` at `sample_rate` Hz."""
    audio = np.ascontiguousarray(audio, dtype=np.float32)
    if rate == sample_rate:
        return audio
    import torch
    from torchaudio.functional import resample

    return resample(torch.from_numpy(audio), rate, sample_rate).numpy()


def read_image(source: Source) -> Image:
    """Read an image as RGB, turned upright by its EXIF orientation; transparent parts become white.

    Raises:
        Unreadable: no file, an empty or truncated one, no image, or one of more than 8 bits per
            channel, which Pillow would clip to white.

    >>> from PIL import Image
    >>> file = io.BytesIO()
    >>> Image.new("RGBA", (2, 2), (255, 0, 0, 0)).save(file, "PNG")
    >>> read_image(file.getvalue()).getpixel((0, 0))
    (255, 255, 255)
    """
    from PIL import Image as images
    from PIL import ImageOps

    raw = _opened(source)
    try:
        with images.open(raw) as image:
            image.load()
            if image.mode.startswith("I") or image.mode == "F":
                raise Unreadable(f"pixels of mode {image.mode}, only 8 bits a channel are read")
            return on_white(ImageOps.exif_transpose(image))
    except (OSError, ValueError, SyntaxError, images.DecompressionBombError) as error:
        raise Unreadable(f"not an image that can be decoded ({_one_line(error)})") from error


def _opened(source: Source) -> str | io.BytesIO:
    if isinstance(source, bytes):
        if not source:
            raise Unreadable("empty")
        return io.BytesIO(source)
    path = Path(source)
    if not path.is_file():
        raise Unreadable("no such file" if not path.exists() else "not a file")
    if path.stat().st_size == 0:
        raise Unreadable("empty file")
    return str(path)


def _cut_off(header: str) -> bool:
    """Whether the file ends before its audio does, by libsndfile's log of a WAV or AIFF header."""
    sizes = re.findall(r"(?:data|SSND)\s*:\s*(\d+) \(should be (\d+)\)", header)
    return any(int(actual) < int(declared) < UNKNOWN_SIZE for declared, actual in sizes)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
