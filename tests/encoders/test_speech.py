"""Tiny random checkpoints in the real formats; every row against the network itself run on one
unpadded utterance.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from gera_lightning.encoders.speech import SpeechEncoder
from gera_lightning.utils.errors import UserError

RATE = 16_000
CONVOLUTIONS = {"conv_dim": (8, 8, 8), "conv_kernel": (10, 8, 4), "conv_stride": (5, 4, 4)}
SMALL = {
    **CONVOLUTIONS,
    "num_feat_extract_layers": 3,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "initializer_range": 0.3,
    "vocab_size": 8,
}
WAVES = {
    "wav2vec2": ("Wav2Vec2", {"feat_extract_norm": "group"}),
    "wav2vec2-stable": (
        "Wav2Vec2",
        {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True},
    ),
    "wav2vec2-adapter": (
        "Wav2Vec2",
        {"feat_extract_norm": "group", "add_adapter": True, "num_adapter_layers": 1},
    ),
    "hubert": ("Hubert", {"feat_extract_norm": "group"}),
    "hubert-stable": ("Hubert", {"feat_extract_norm": "layer", "do_stable_layer_norm": True}),
    "wavlm": (
        "WavLM",
        {"feat_extract_norm": "group", "num_buckets": 16, "max_bucket_distance": 40},
    ),
}


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


def make(name: str, folder: Path) -> Path:
    torch.manual_seed(0)
    kind, options = WAVES[name]
    getattr(transformers, f"{kind}Model")(
        getattr(transformers, f"{kind}Config")(**SMALL, **options)
    ).save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor(
        do_normalize=True, return_attention_mask="layer" in str(options)
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: make(name, tmp_path_factory.mktemp(name)) for name in WAVES}


def reference(folder: Path, wave: np.ndarray, layer: int) -> np.ndarray:
    """Mean of the frames of one layer, from the network alone; hooks on the layers, not
    `output_hidden_states`.
    """
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
@pytest.mark.parametrize("name", WAVES)
def test_rows_are_the_networks_own_in_any_company(folders, name: str, layer: int):
    encoder = SpeechEncoder(folders[name], layer=layer, batch_size=4)
    for waves in (PADDED, UNPADDED):
        together = encoder.encode(waves)
        assert together.shape == (len(waves), encoder.dim)
        expected = [reference(folders[name], wave, layer % 4) for wave in waves]
        np.testing.assert_allclose(together, expected, atol=1e-5)
        np.testing.assert_allclose(
            together, np.concatenate([encoder.encode([wave]) for wave in waves]), atol=1e-5
        )


@pytest.mark.parametrize("name", WAVES)
def test_several_layers_are_those_of_one_each_in_one_pass(folders, name: str):
    encoder = SpeechEncoder(folders[name], layer=[2, 0, -1], batch_size=4)
    passes: list[int] = []
    encoder.model.register_forward_hook(lambda *_: passes.append(1))
    rows = encoder.encode(PADDED)
    assert (rows.shape, len(passes)) == ((5, 3, 16), 2)
    for position, layer in enumerate((0, 2, 3)):
        np.testing.assert_allclose(
            rows[:, position],
            SpeechEncoder(folders[name], layer=layer, batch_size=4).encode(PADDED),
            atol=1e-6,
        )
    every = SpeechEncoder(folders[name], layer="all")
    assert every.describe()["layer"] == [0, 1, 2, 3]
    np.testing.assert_allclose(every.encode(PADDED)[:, [0, 2, 3]], rows, atol=1e-5)


def test_rows_differ_between_layers_and_sounds(folders):
    """Guards the tests here against constants."""
    rows = {layer: SpeechEncoder(folders["hubert"], layer=layer).encode(PADDED) for layer in (1, 2)}
    assert np.abs(rows[1] - rows[2]).max() > 1e-2
    assert np.abs(rows[1][0] - rows[1][1]).max() > 1e-2


@pytest.mark.parametrize("samples", [1, 100])
def test_audio_below_one_frame_has_a_row(folders, samples: int):
    encoder = SpeechEncoder(folders["wav2vec2-stable"])
    assert np.isfinite(encoder.encode([PADDED[0][:samples], PADDED[1]])).all()


def test_long_audio_is_cut(folders):
    encoder = SpeechEncoder(folders["hubert"], max_seconds=0.1)
    np.testing.assert_allclose(
        encoder.encode([PADDED[1]]), encoder.encode([PADDED[1][:1600]]), atol=1e-6
    )
    assert encoder.describe()["max_seconds"] == 0.1


def test_rows_are_normalised_on_request(folders):
    raw, unit = (
        SpeechEncoder(folders["hubert"], normalize=n).encode(PADDED) for n in (False, True)
    )
    np.testing.assert_allclose(raw / np.linalg.norm(raw, axis=1, keepdims=True), unit, atol=1e-5)


def test_description_names_what_changes_the_vectors(folders):
    about = SpeechEncoder(folders["hubert"], name="tiny", layer=2).describe()
    assert about.pop("revision").startswith("sha256:")
    assert "mono" in about.pop("preprocessing")
    assert about == {
        "name": "tiny",
        "dim": 16,
        "pooling": "mean of the frames",
        "layer": 2,
        "normalize": False,
        "sample_rate": RATE,
        "max_seconds": 30.0,
    }


@pytest.mark.parametrize("layer", [4, -5])
def test_a_layer_beyond_the_network_is_named(folders, layer: int):
    with pytest.raises(UserError, match=f"layer={layer} is not one of 0 to 3"):
        SpeechEncoder(folders["hubert"], layer=layer)


@pytest.fixture(scope="module")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whisper")
    torch.manual_seed(0)
    config = transformers.WhisperConfig(
        vocab_size=32,
        d_model=16,
        encoder_layers=2,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        init_std=0.2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    transformers.WhisperModel(config).save_pretrained(folder)
    transformers.WhisperFeatureExtractor().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("layer", [-1, 1])
def test_whisper_pools_an_utterances_own_frames(whisper: Path, layer: int):
    encoder = SpeechEncoder(whisper, layer=layer)
    assert not any("decoder" in name for name, _ in encoder.model.named_parameters())
    model = transformers.WhisperModel.from_pretrained(whisper).eval().encoder
    extractor = transformers.WhisperFeatureExtractor.from_pretrained(whisper)
    rows = encoder.encode(PADDED)
    for wave, row in zip(PADDED, rows, strict=True):
        with torch.inference_mode():
            mel = extractor(wave, sampling_rate=RATE, return_tensors="pt")["input_features"]
            states = model(mel, output_hidden_states=True)
            frames = (states.last_hidden_state if layer == -1 else states.hidden_states[layer])[
                0
            ].numpy()
        own = frames[: -(-len(wave) // 320)]  # 20 ms each
        np.testing.assert_allclose(row, own.mean(0), atol=1e-5)
        np.testing.assert_allclose(row, encoder.encode([wave])[0], atol=1e-5)


def test_whispers_layers_are_had_in_one_pass(whisper: Path):
    rows = SpeechEncoder(whisper, layer="all").encode(PADDED)
    for layer in range(3):
        np.testing.assert_allclose(
            rows[:, layer], SpeechEncoder(whisper, layer=layer).encode(PADDED), atol=1e-6
        )


def test_whisper_hears_30_seconds(whisper: Path):
    assert SpeechEncoder(whisper, max_seconds=None).max_seconds == 30
    assert SpeechEncoder(whisper, max_seconds=5).max_seconds == 5


@pytest.fixture(scope="module", params=[False, True], ids=["unfused", "fused"])
def clap(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    folder = tmp_path_factory.mktemp("clap")
    torch.manual_seed(0)
    audio = {
        "window_size": 8,
        "spec_size": 256,
        "patch_embeds_hidden_size": 16,
        "hidden_size": 64,
        "depths": [1, 1, 1],
        "num_hidden_layers": 3,
        "num_attention_heads": [2, 2, 2],
        "enable_fusion": request.param,
        "projection_dim": 8,
        "aff_block_r": 2,
    }
    text = {
        "vocab_size": 16,
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
    }
    model = transformers.ClapModel(transformers.ClapConfig(text_config=text, audio_config=audio))
    model.save_pretrained(folder)
    transformers.ClapFeatureExtractor(
        truncation="fusion" if request.param else "rand_trunc"
    ).save_pretrained(folder)
    return folder


def test_clap_rows_are_its_audio_towers(clap: Path):
    waves = sounds((9_600, 48_000, 30_000), rate=48_000)
    encoder = SpeechEncoder(clap)
    assert (encoder.sample_rate, encoder.max_seconds, encoder.dim) == (48_000, 10, 64)
    extractor = transformers.ClapFeatureExtractor.from_pretrained(clap)
    tower = transformers.ClapModel.from_pretrained(clap).eval().audio_model
    rows = encoder.encode(waves)
    for wave, row in zip(waves, rows, strict=True):
        mel = extractor(wave, sampling_rate=48_000, return_tensors="pt")["input_features"].float()
        with torch.inference_mode():
            expected = (
                tower(input_features=mel, is_longer=torch.tensor([[False]]))
                .pooler_output[0]
                .numpy()
            )
        np.testing.assert_allclose(row, expected, atol=1e-5)
        np.testing.assert_allclose(row, encoder.encode([wave])[0], atol=1e-5)


def test_clap_cuts_long_sounds_the_same_way_each_time(clap: Path):
    """The extractor would crop at random, or mark a sound at random as longer."""
    encoder = SpeechEncoder(clap)
    long = sounds((11 * 48_000,), rate=48_000)
    assert np.array_equal(encoder.encode(long), encoder.encode(long))
    assert np.array_equal(encoder.encode(long), encoder.encode([long[0][:480_000]]))
    with pytest.raises(UserError, match="layer=1"):
        SpeechEncoder(clap, layer=1)


def test_another_kind_of_network_is_refused(tmp_path: Path):
    config = transformers.BertConfig(
        vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    transformers.BertModel(config).save_pretrained(tmp_path)
    transformers.Wav2Vec2FeatureExtractor().save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"BertModel.*wav2vec 2.0, HuBERT"):
        SpeechEncoder(tmp_path)


def test_a_missing_feature_extractor_is_named(folders, tmp_path: Path):
    transformers.HubertModel.from_pretrained(folders["hubert"]).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="feature extractor"):
        SpeechEncoder(tmp_path)
