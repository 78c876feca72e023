"""Audio networks: every row against the network itself, run on one unpadded utterance."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from gera_lightning.encoders.speech import SpeechEncoder
from gera_lightning.utils.errors import UserError

RATE = 16_000
Checkpoints = Callable[[str], Path]
WAVE_MODELS = ["hubert", "hubert-stable", "wavlm"]
WAVE_MODELS += ["wav2vec2", "wav2vec2-stable", "wav2vec2-adapter"]


def sounds(lengths: tuple[int, ...], rate: int = RATE) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [
        (
            np.sin(np.arange(n) * 2 * np.pi * rng.uniform(100, 900) / rate) * rng.uniform(0.05, 0.5)
            + rng.normal(scale=0.02, size=n)
        ).astype(np.float32)
        for n in lengths
    ]


PADDED, UNPADDED = sounds((1600, 4000, 900, 2577, 4000)), sounds((2400, 2400, 2400))


def reference(folder: Path, wave: np.ndarray, layer: int) -> np.ndarray:
    """Mean of the frames of one layer of one utterance, seen by hooks on the network."""
    model = transformers.AutoModel.from_pretrained(folder).eval()
    seen: dict[int, torch.Tensor] = {}
    for number, block in enumerate(model.encoder.layers):
        block.register_forward_pre_hook(
            lambda _, args, n=number: seen.__setitem__(n, args[0].clone())
        )
    model.encoder.register_forward_hook(
        lambda _, args, out: seen.__setitem__(3, out.last_hidden_state)
    )
    wave = (wave - wave.mean()) / np.sqrt(wave.var() + 1e-7)
    with torch.inference_mode():
        model(torch.from_numpy(wave)[None])
    return seen[layer][0].numpy().mean(0)


@pytest.mark.parametrize("layer", [-1, 0, 2])
@pytest.mark.parametrize("name", WAVE_MODELS)
def test_rows_are_the_networks_own(checkpoints: Checkpoints, name: str, layer: int):
    encoder = SpeechEncoder(checkpoints(name), layer=layer, batch_size=4)
    for waves in (PADDED, UNPADDED):
        expected = [reference(checkpoints(name), wave, layer % 4) for wave in waves]
        np.testing.assert_allclose(encoder.encode(waves), expected, atol=1e-5)


def test_long_audio_is_cut(checkpoints: Checkpoints):
    encoder = SpeechEncoder(checkpoints("hubert"), max_seconds=0.1)
    np.testing.assert_allclose(
        encoder.encode([PADDED[1]]), encoder.encode([PADDED[1][:1600]]), atol=1e-6
    )


def test_description_names_what_changes_the_vectors(checkpoints: Checkpoints):
    about = SpeechEncoder(checkpoints("hubert"), name="tiny", layer=2).describe()
    assert about.pop("revision").startswith("sha256:")
    assert "mono" in about.pop("preprocessing")
    assert about == {
        "class": "speech",
        "name": "tiny",
        "dim": 16,
        "pooling": "mean of the frames",
        "layer": 2,
        "normalize": False,
        "sample_rate": RATE,
        "max_seconds": 30.0,
    }


@pytest.mark.parametrize("layer", [-1, 1])
def test_whisper_pools_an_utterances_own_frames(checkpoints: Checkpoints, layer: int):
    encoder = SpeechEncoder(checkpoints("whisper"), layer=layer)
    assert not any("decoder" in name for name, _ in encoder.model.named_parameters())
    model = transformers.WhisperModel.from_pretrained(checkpoints("whisper")).eval().encoder
    extractor = transformers.WhisperFeatureExtractor.from_pretrained(checkpoints("whisper"))
    for wave, row in zip(PADDED, encoder.encode(PADDED), strict=True):
        with torch.inference_mode():
            mel = extractor(wave, sampling_rate=RATE, return_tensors="pt")["input_features"]
            out = model(mel, output_hidden_states=True)
        states = out.last_hidden_state if layer == -1 else out.hidden_states[layer]
        own_frames = states[0].numpy()[: -(-len(wave) // 320)]  # 20 ms each
        np.testing.assert_allclose(row, own_frames.mean(0), atol=1e-5)


def test_whisper_hears_30_seconds(checkpoints: Checkpoints):
    assert SpeechEncoder(checkpoints("whisper"), max_seconds=None).max_seconds == 30
    assert SpeechEncoder(checkpoints("whisper"), max_seconds=5).max_seconds == 5


@pytest.mark.parametrize("name", ["clap", "clap-fused"])
def test_clap_rows_are_its_audio_towers(checkpoints: Checkpoints, name: str):
    waves = sounds((9_600, 48_000, 30_000), rate=48_000)
    encoder = SpeechEncoder(checkpoints(name))
    assert (encoder.sample_rate, encoder.max_seconds, encoder.dim) == (48_000, 10, 64)
    extractor = transformers.ClapFeatureExtractor.from_pretrained(checkpoints(name))
    tower = transformers.ClapModel.from_pretrained(checkpoints(name)).eval().audio_model
    rows, not_longer = encoder.encode(waves), torch.tensor([[False]])
    for wave, row in zip(waves, rows, strict=True):
        mel = extractor(wave, sampling_rate=48_000, return_tensors="pt")["input_features"].float()
        with torch.inference_mode():
            expected = tower(input_features=mel, is_longer=not_longer).pooler_output[0]
        np.testing.assert_allclose(row, expected.numpy(), atol=1e-5)


@pytest.mark.parametrize("name", ["clap", "clap-fused"])
def test_clap_cuts_long_sounds_the_same_way_each_time(checkpoints: Checkpoints, name: str):
    """The extractor would crop at random, or mark a sound at random as longer."""
    encoder = SpeechEncoder(checkpoints(name))
    long = sounds((11 * 48_000,), rate=48_000)
    assert np.array_equal(encoder.encode(long), encoder.encode(long))
    assert np.array_equal(encoder.encode(long), encoder.encode([long[0][:480_000]]))


def test_another_kind_of_network_is_refused(checkpoints: Checkpoints, tmp_path: Path):
    transformers.BertModel.from_pretrained(checkpoints("bert")).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="feature extractor"):
        SpeechEncoder(tmp_path)
    transformers.Wav2Vec2FeatureExtractor().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="BertModel") as caught:
        SpeechEncoder(tmp_path)
    assert caught.value.key == "checkpoint"


# ---- Whisper at the length of the sound ----


def test_a_context_of_thirty_seconds_is_the_network_itself(checkpoints: Checkpoints):
    whole = SpeechEncoder(checkpoints("whisper"), layer="all")
    long = SpeechEncoder(checkpoints("whisper"), layer="all", context=30.0)
    np.testing.assert_allclose(long.encode(PADDED), whole.encode(PADDED), atol=1e-5)
    assert whole.describe()["preprocessing"] != long.describe()["preprocessing"]


@pytest.mark.parametrize("context", [0.0, 1.2])
def test_the_row_of_a_context_is_that_of_the_network_with_fewer_positions(
    checkpoints: Checkpoints, context: float
):
    """Whatever else is in the batch: sounds of .1 to 3.2 s are read to multiples of .5 s."""
    waves = sounds((1600, 51_200, 9000, 25_000, 8000))
    encoder = SpeechEncoder(checkpoints("whisper"), context=context)
    rows = encoder.encode(waves)
    extractor = transformers.WhisperFeatureExtractor.from_pretrained(checkpoints("whisper"))
    for wave, row in zip(waves, rows, strict=True):
        read = int(np.ceil((len(wave) / RATE + context) / 0.5) * 25)  # frames of 20 ms
        model = transformers.WhisperModel.from_pretrained(checkpoints("whisper")).encoder.eval()
        model.config.max_source_positions = read
        weight = model.embed_positions.weight[:read]
        model.embed_positions = torch.nn.Embedding.from_pretrained(weight)
        mels = extractor([wave], sampling_rate=RATE, return_tensors="pt")["input_features"]
        with torch.inference_mode():
            states = model(mels[:, :, : 2 * read]).last_hidden_state[0]
        own = -(-len(wave) // 320)
        np.testing.assert_allclose(row, states[:own].mean(0), atol=1e-5)
        np.testing.assert_allclose(row, encoder.encode([wave])[0], atol=1e-5)
    assert encoder.model.embed_positions.num_embeddings == 1500  # as it was


@pytest.mark.parametrize(("name", "context"), [("whisper", -1.0), ("hubert", 1.0)])
def test_a_context_is_whispers_and_no_less_than_nothing(
    checkpoints: Checkpoints, name: str, context: float
):
    with pytest.raises(UserError) as error:
        SpeechEncoder(checkpoints(name), context=context)
    assert (error.value.key, error.value.value) == ("context", context)
