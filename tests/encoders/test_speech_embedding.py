from __future__ import annotations

import numpy as np
import pytest

from gera_lightning.encoders import speech_embedding
from gera_lightning.encoders.speech_embedding import SAMPLE_RATE, SpeechEmbeddingFrames
from gera_lightning.utils.errors import UserError


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    return (
        np.random.default_rng(seed)
        .normal(scale=0.1, size=int(seconds * SAMPLE_RATE))
        .astype(np.float32)
    )


@pytest.fixture(scope="module")
def network() -> SpeechEmbeddingFrames:
    pytest.importorskip("ai_edge_litert")
    pytest.importorskip("pyopen_wakeword")
    return SpeechEmbeddingFrames()


def test_one_frame_every_80_ms(network: SpeechEmbeddingFrames):
    short, long = network.frames(noise(1.0)), network.frames(noise(1.8))
    assert short.dtype == np.float32
    assert short.shape[1] == network.dim == 96
    assert len(long) - len(short) == 10


@pytest.mark.parametrize("samples", [1, 160, 5_000])
def test_short_audio_has_a_frame(network: SpeechEmbeddingFrames, samples: int):
    frames = network.frames(noise(1.0)[:samples])
    assert len(frames) >= 1
    assert np.isfinite(frames).all()


def test_windows_in_a_batch_equal_windows_one_by_one(network: SpeechEmbeddingFrames):
    audio = noise(1.3)
    np.testing.assert_allclose(
        network.frames(audio), SpeechEmbeddingFrames(batch=1).frames(audio), atol=1e-3
    )


def test_frames_do_not_depend_on_what_came_before(network: SpeechEmbeddingFrames):
    first = network.frames(noise(1.0))
    network.frames(noise(2.0, seed=1))
    assert np.array_equal(first, network.frames(noise(1.0)))


def test_a_later_start_shifts_the_frames(network: SpeechEmbeddingFrames):
    """80 ms of silence before the audio move its frames by one."""
    audio = noise(1.0)
    later = network.frames(np.concatenate([np.zeros(1280, dtype=np.float32), audio]))
    np.testing.assert_allclose(later[1:], network.frames(audio), atol=1e-3)


def test_frames_are_those_of_the_package(network: SpeechEmbeddingFrames):
    """pyopen-wakeword's streaming code, run by its own library, makes the same frames of noise
    (which has nothing to clip).

    It keeps 10 s, so our 4 s begin on its grid of frames; with 50 ms of silence more, our padding
    is a whole number of frames.
    """
    wakeword = pytest.importorskip("pyopen_wakeword")
    try:
        stream = wakeword.OpenWakeWordFeatures.from_builtin()
    except (OSError, ValueError) as error:
        pytest.skip(f"the package's own library does not load here: {error}")
    audio = (noise(4.0) * 32767).astype(np.int16)
    theirs = np.concatenate(
        [part.reshape(-1, 96) for part in stream.process_streaming(audio.tobytes())]
    )[-35:]
    ours = network.frames(
        np.concatenate([np.zeros(800, dtype=np.float32), audio.astype(np.float32) / 32767])
    )
    start = int(np.abs(ours - theirs[0]).max(1).argmin())
    np.testing.assert_allclose(ours[start : start + len(theirs)], theirs, atol=1e-2)


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        (np.empty(0, dtype=np.float32), "at least one sample"),
        (np.zeros((2, 800), dtype=np.float32), "one channel"),
        (np.array([0.0, np.nan], dtype=np.float32), "not finite"),
        (np.array([0.0, np.inf], dtype=np.float32), "not finite"),
    ],
)
def test_bad_audio_is_refused(network: SpeechEmbeddingFrames, audio: np.ndarray, message: str):
    with pytest.raises(UserError, match=message):
        network.frames(audio)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(speech_embedding.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install ai-edge-litert"):
        SpeechEmbeddingFrames()
