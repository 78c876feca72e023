"""Read raw files for encoders: audio as mono float32 arrays, images as RGB."""

from __future__ import annotations

import io
import os
import re
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gera_lightning.encoders.efficientnet_lite import on_white

if TYPE_CHECKING:
    from PIL.Image import Image

Source = str | os.PathLike[str] | bytes
"""A file's path, or its bytes."""
UNKNOWN_SIZE = 0x7FFF0000
"""From here on a size in the header of a WAV file means "unknown": it was written to a pipe."""
STREAMS = {"MP3": "mp3", "OGG": "ogg"}
"""Formats of which several files can be joined to one, by libsndfile's names: its length is that of
the first. They are decoded to their end by FFmpeg, under its names.
"""
TRUNCATED = "truncated: its header promises more samples than it holds"
MANY_FILTERS = 1000
"""From here on torchaudio's filters, as many as the ratio of two rates has terms, take gigabytes:
of 22,051 Hz to 16,000 Hz there are 16,000.
"""
MP3_SLACK = 0.2
"""Seconds by which an MP3 may be shorter than its header says: encoders count their padding."""


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
    kind = "flac" if _has_no_length(raw) else ""
    if not kind:
        try:
            with soundfile.SoundFile(raw) as file:
                rate, count, header = int(file.samplerate), int(file.frames), str(file.extra_info)
                kind = STREAMS.get(file.format, "")
                most = count if max_seconds is None else int(np.ceil(max_seconds * rate))
                wanted = 0 if kind else min(count, most)
                audio = file.read(wanted, dtype="float32", always_2d=True)
        except (soundfile.LibsndfileError, RuntimeError) as error:
            raise Unreadable(f"not audio that can be decoded ({_one_line(error)})") from error
        if len(audio) < wanted or _cut_off(header):
            raise Unreadable(TRUNCATED)
    if kind:
        rate, audio, count = _decoded_to_its_end(raw, kind, max_seconds)
    if count < 1:
        raise Unreadable("no samples")
    mono = audio.mean(1)
    if not np.isfinite(mono).all():
        raise Unreadable("samples that are not finite")
    return resampled(mono, rate, sample_rate), (count / rate if len(audio) < count else None)


def _has_no_length(raw: str | io.BytesIO) -> bool:
    """Whether a FLAC file does not say how long it is, such as one that was written to a pipe."""
    head = _head(raw, 26)
    return head[:4] == b"fLaC" and len(head) == 26 and not head[21] & 15 and not any(head[22:])


def _decoded_to_its_end(
    raw: str | io.BytesIO, kind: str, max_seconds: float | None
) -> tuple[int, np.ndarray, int]:
    """Rate, samples `[n, channels]` up to `max_seconds`, and how many there are, by FFmpeg.

    The length in an MP3's header, where there is one, is that of its first part alone.

    Raises:
        Unreadable: nothing that decodes, or less than the header promises.
    """
    import av

    if isinstance(raw, io.BytesIO):
        raw.seek(0)
    parts, count, rate = list[np.ndarray](), 0, 0
    try:
        with av.open(raw, "r", format=kind) as container:
            stream = container.streams.audio[0]
            seconds = float((stream.duration or 0) * (stream.time_base or 0))
            promised = seconds if kind == "mp3" and _has_length(raw) else 0.0
            for packet in container.demux(stream):
                for frame in _frames(packet):
                    rate = rate or frame.sample_rate
                    if max_seconds is None or count < max_seconds * rate:
                        parts.append(_samples(frame))
                    count += frame.samples
    except av.FFmpegError as error:
        raise Unreadable(f"not audio that can be decoded ({_one_line(error)})") from error
    if not count:
        raise Unreadable("no samples")
    if count < (promised - MP3_SLACK) * rate:
        raise Unreadable(TRUNCATED)
    most = None if max_seconds is None else int(np.ceil(max_seconds * rate))
    return rate, np.concatenate(parts)[:most], count


def _samples(frame: Any) -> np.ndarray:
    """A decoded frame as float32 `[n, channels]` in [-1, 1]."""
    values: np.ndarray = frame.to_ndarray()
    if not frame.format.is_planar:  # [1, n * channels]
        values = values.reshape(-1, frame.layout.nb_channels).T
    if values.dtype.kind == "i":
        values = values / np.float32(2 ** (8 * values.dtype.itemsize - 1))
    return np.ascontiguousarray(values.T, dtype=np.float32)


def _frames(packet: Any) -> list[Any]:
    """The frames of a packet; none of a damaged one, such as the header of a second file."""
    import av

    try:
        frames: list[Any] = packet.decode()
    except av.InvalidDataError:
        return []
    return frames


def _has_length(raw: str | io.BytesIO) -> bool:
    """Whether an MP3 file says how long it is: in an `Xing` or `Info` frame behind its tag."""
    head, tag = _head(raw, 2**20), 0
    if head[:3] == b"ID3" and len(head) > 10:
        for byte in head[6:10]:
            tag = tag << 7 | byte & 127
    return any(mark in head[tag : tag + 4096] for mark in (b"Xing", b"Info"))


def _head(raw: str | io.BytesIO, size: int) -> bytes:
    """The first bytes of a file."""
    if isinstance(raw, io.BytesIO):
        return raw.getvalue()[:size]
    with open(raw, "rb") as file:
        return file.read(size)


def resampled(audio: np.ndarray, rate: int, sample_rate: int) -> np.ndarray:
    """Audio `[samples]` at `rate` Hz as `[samples * sample_rate / rate]` at `sample_rate` Hz."""
    audio = np.ascontiguousarray(audio, dtype=np.float32)
    if rate == sample_rate:
        return audio
    ratio = Fraction(sample_rate, rate)
    if max(ratio.numerator, ratio.denominator) > MANY_FILTERS:
        from scipy.signal import resample_poly

        return resample_poly(audio, ratio.numerator, ratio.denominator).astype(np.float32)
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
    except Unreadable:
        raise
    except Exception as error:  # Pillow has no one error for what a damaged file may hold
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
