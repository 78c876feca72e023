from __future__ import annotations

import io
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from PIL import Image

from gera_lightning.embedding.reading import (
    Unreadable,
    read_audio,
    read_image,
    read_sound,
    resampled,
)

RATE = 16_000


def tone(seconds: float = 0.5, rate: int = RATE, frequency: float = 440.0) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * frequency * np.arange(int(seconds * rate)) / rate)).astype(
        np.float32
    )


@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_audio_comes_back_as_written(tmp_path: Path, suffix: str):
    soundfile.write(tmp_path / f"x.{suffix}", tone(), RATE)
    audio = read_audio(tmp_path / f"x.{suffix}", RATE)
    assert audio.dtype == np.float32
    np.testing.assert_allclose(audio, tone(), atol=1 / 2**15)
    np.testing.assert_array_equal(read_audio((tmp_path / f"x.{suffix}").read_bytes(), RATE), audio)


def test_channels_are_averaged(tmp_path: Path):
    left, right = tone(), tone(frequency=300.0)
    soundfile.write(tmp_path / "x.wav", np.stack([left, right], 1), RATE, subtype="FLOAT")
    np.testing.assert_allclose(read_audio(tmp_path / "x.wav", RATE), (left + right) / 2, atol=1e-6)


@pytest.mark.parametrize("rate", [8_000, 22_050, 48_000])
def test_resampled_audio_is_the_same_tone(tmp_path: Path, rate: int):
    """Away from the ends, where the filter sees silence."""
    soundfile.write(tmp_path / "x.wav", tone(rate=rate), rate, subtype="FLOAT")
    audio = read_audio(tmp_path / "x.wav", RATE)
    assert len(audio) == len(tone())
    np.testing.assert_allclose(audio[800:-800], tone()[800:-800], atol=5e-3)
    np.testing.assert_array_equal(resampled(tone(), RATE, RATE), tone())


def test_long_audio_is_cut_before_it_is_read(tmp_path: Path):
    soundfile.write(tmp_path / "x.wav", tone(2.0), RATE, subtype="FLOAT")
    np.testing.assert_array_equal(
        read_audio(tmp_path / "x.wav", RATE, max_seconds=0.25), tone(0.25)
    )


def wav_bytes(samples: np.ndarray, suffix: str = "wav", **options: str) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, RATE, format=suffix.upper(), **options)
    return file.getvalue()


def cut(suffix: str) -> bytes:
    whole = wav_bytes(np.random.default_rng(0).normal(scale=0.1, size=RATE), suffix)
    return whole[: len(whole) // 2]


BAD_AUDIO: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "empty file"),
    "text": (lambda: b"this is not audio at all", "not audio that can be decoded"),
    "header only": (lambda: wav_bytes(tone())[:30], "not audio that can be decoded|no samples"),
    "no samples": (lambda: wav_bytes(np.empty(0)), "no samples"),
    "nan": (lambda: wav_bytes(np.array([0.0, np.nan, 0.0]), subtype="FLOAT"), "not finite"),
    "infinite": (lambda: wav_bytes(np.array([0.0, np.inf]), subtype="FLOAT"), "not finite"),
    **{
        f"cut {suffix}": ((lambda s=suffix: cut(s)), "truncated|decoded|no samples")
        for suffix in ("wav", "flac", "aiff", "ogg", "mp3")
    },
}


@pytest.mark.parametrize("name", BAD_AUDIO)
def test_audio_that_cannot_be_used_says_why(tmp_path: Path, name: str):
    content, reason = BAD_AUDIO[name]
    (tmp_path / "x.wav").write_bytes(content())
    with pytest.raises(Unreadable, match=reason):
        read_audio(tmp_path / "x.wav", RATE)


def test_a_header_written_to_a_pipe_is_no_truncation(tmp_path: Path):
    """ffmpeg leaves 0xFFFFFFFF as the size where it cannot go back."""
    whole = bytearray(wav_bytes(tone()))
    at = whole.index(b"data") + 4
    whole[at : at + 4] = b"\xff\xff\xff\xff"
    np.testing.assert_allclose(read_audio(bytes(whole), RATE), tone(), atol=1 / 2**15)


@pytest.mark.parametrize("read", [lambda path: read_audio(path, RATE), read_image])
def test_a_missing_file_and_a_folder_are_told_apart(tmp_path: Path, read: Callable[[Path], object]):
    with pytest.raises(Unreadable, match=r"^no such file$"):
        read(tmp_path / "nothing")
    with pytest.raises(Unreadable, match=r"^not a file$"):
        read(tmp_path)


def png(mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, len(mode)), dtype=np.uint8)
    Image.fromarray(pixels.squeeze(), mode).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_images_become_rgb(tmp_path: Path, mode: str):
    (tmp_path / "x.png").write_bytes(png(mode))
    image = read_image(tmp_path / "x.png")
    assert (image.mode, image.size) == ("RGB", (30, 40))
    assert image.tobytes() == read_image(png(mode)).tobytes()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photograph_is_turned_upright(orientation: int):
    """By the table of the EXIF standard: which corner of the stored pixels is the picture's upper
    left, and what runs along its top.
    """
    stored = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(file, "PNG", exif=exif)
    upright = {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.swapaxes(0, 1),
        6: stored[::-1].swapaxes(0, 1),
        7: stored[::-1, ::-1].swapaxes(0, 1),
        8: stored[:, ::-1].swapaxes(0, 1),
    }
    np.testing.assert_array_equal(np.asarray(read_image(file.getvalue())), upright[orientation])


@pytest.mark.parametrize(
    ("kind", "suffix"),
    [(np.uint16, "PNG"), (np.uint16, "TIFF"), (np.int32, "TIFF"), (np.float32, "TIFF")],
)
def test_more_than_8_bits_a_channel_are_refused(kind: type, suffix: str):
    file = io.BytesIO()
    Image.fromarray(np.arange(20, dtype=kind).reshape(4, 5) * 900).save(file, suffix)
    with pytest.raises(Unreadable, match=r"pixels of mode [IF].*only 8 bits a channel are read"):
        read_image(file.getvalue())


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty file"),
        (b"not an image", "not an image that can be decoded"),
        (png()[:600], "not an image that can be decoded"),
    ],
)
def test_an_image_that_cannot_be_used_says_why(tmp_path: Path, content: bytes, reason: str):
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(Unreadable, match=reason):
        read_image(tmp_path / "x.png")


# ---- sounds whose header says too little, or another length ----


def encoded(samples: np.ndarray, kind: str, codec: str, **options: str) -> bytes:
    """A compressed sound, as FFmpeg writes it to a pipe."""
    file = io.BytesIO()
    with av.open(file, "w", format=kind, options=options) as container:
        stream = container.add_stream(codec, rate=RATE)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
        frame.sample_rate = RATE
        converted = av.AudioResampler(stream.format, "mono", RATE, stream.frame_size or None)
        for piece in [*converted.resample(frame), *converted.resample(None)]:
            container.mux(stream.encode(piece))
        container.mux(stream.encode(None))
    return file.getvalue()


NO_LENGTH = {"write_xing": "0"}


@pytest.mark.parametrize("as_file", [True, False])
@pytest.mark.parametrize("quality", [{}, {"q": "4"}])
def test_an_mp3_without_a_length_is_read_whole(tmp_path: Path, as_file: bool, quality: dict):
    quiet = tone(6.0) * np.where(np.arange(6 * RATE) < 2 * RATE, 1e-3, 1).astype(np.float32)
    content = encoded(quiet, "mp3", "libmp3lame", **NO_LENGTH, **quality)
    (tmp_path / "x.mp3").write_bytes(content)
    audio, cut = read_sound(tmp_path / "x.mp3" if as_file else content, RATE)
    assert cut is None
    assert 6.0 <= len(audio) / RATE < 6.2
    loud = np.abs(audio) > 0.1
    assert 2.0 <= loud.argmax() / RATE < 2.2


@pytest.mark.parametrize("codec", ["libmp3lame", "libopus", "vorbis"])
def test_files_that_were_joined_are_read_to_the_last(codec: str):
    if codec == "vorbis":  # PyAV reads it, but cannot write it
        one = wav_bytes(tone(2.0), "ogg", subtype="VORBIS")
    else:
        one = encoded(tone(2.0), "mp3" if codec == "libmp3lame" else "ogg", codec)
    audio, cut = read_sound(one + one, RATE)
    assert len(audio) / RATE == pytest.approx(4.0, abs=0.2)
    start, full = read_sound(one + one, RATE, max_seconds=1.0)
    assert len(start) == RATE
    assert full == pytest.approx(4.0, abs=0.2)
    assert cut is None


def test_an_mp3_that_is_shorter_than_its_header_says_is_truncated():
    whole = encoded(tone(5.0), "mp3", "libmp3lame")
    with pytest.raises(Unreadable, match="truncated"):
        read_sound(whole[: len(whole) // 2], RATE)


def test_a_flac_that_was_written_to_a_pipe_is_read_whole():
    content = bytearray(wav_bytes(tone(3.0), "flac"))
    content[21] &= 0xF0
    content[22:26] = bytes(4)  # the number of samples: unknown
    audio, _ = read_sound(bytes(content), RATE)
    np.testing.assert_allclose(audio, tone(3.0), atol=1 / 2**15)


@pytest.mark.parametrize("size", [0x7FFFF000, 0x7FFFFFFF, 0xFFFFFFFF])
def test_a_wav_that_was_written_to_a_pipe_is_read_whole(size: int):
    content = bytearray(wav_bytes(tone()))
    content[4:8] = struct.pack("<I", size)
    content[40:44] = struct.pack("<I", size)
    np.testing.assert_allclose(read_sound(bytes(content), RATE)[0], tone(), atol=1 / 2**15)


@pytest.mark.parametrize("rate", [22_051, 44_099, 11_027, 15_999, 192_001])
def test_an_odd_rate_costs_no_more_than_another(rate: int):
    """22,051 Hz shares no factor with 16,000: filters for its exact ratio take gigabytes."""
    tracemalloc.start()
    audio = resampled(tone(1.0, rate), rate, RATE)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert abs(len(audio) - RATE) <= 1
    np.testing.assert_allclose(audio[800:-800], tone(1.0)[800 : len(audio) - 800], atol=5e-3)
    assert peak < 2**28


def test_an_image_with_broken_exif_is_named_and_ends_nothing():
    kind = struct.pack("<H", 2) + struct.pack("<HHI4s", 0x0100, 2, 4, b"abc\0")  # text for a width
    exif = b"Exif\0\0II*\0\x08\0\0\0" + kind
    exif += struct.pack("<HHI4s", 0x0112, 3, 1, struct.pack("<HH", 6, 0)) + bytes(4)
    file = io.BytesIO()
    Image.new("RGB", (40, 24)).save(file, "JPEG", exif=exif)
    with pytest.raises(Unreadable, match="not an image"):
        read_image(file.getvalue())
