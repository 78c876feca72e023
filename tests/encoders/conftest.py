"""Tiny random checkpoints in the real formats, made once: `checkpoints("hubert")` is a folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
import transformers as tf
from PIL import Image

from gera_lightning.aligners import Ridge
from gera_lightning.data.store import EmbeddingStore, write_store
from gera_lightning.encoders.base import Encoder
from gera_lightning.encoders.image import ImageEncoder
from gera_lightning.encoders.speech import SpeechEncoder
from gera_lightning.encoders.text import TextEncoder
from gera_lightning.experiment.paired_stores import store_metadata

WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] a small dog cat runs over the red house ##s"
SIDE = {"height": 32, "width": 32}
HEADS = {"num_hidden_layers": 2, "num_attention_heads": 2}
VISION = {**HEADS, "hidden_size": 16, "image_size": 32, "patch_size": 8}
SMALL_TEXT = {"vocab_size": 16, "hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2}
WAVES = {
    "conv_dim": (8, 8, 8),
    "conv_kernel": (10, 8, 4),
    "conv_stride": (5, 4, 4),
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
WAVLM = {"num_buckets": 16, "max_bucket_distance": 40}
WAVE_MODELS = {
    "wav2vec2": ("Wav2Vec2", "group", {}),
    "wav2vec2-stable": ("Wav2Vec2", "layer", {"do_stable_layer_norm": True, "conv_bias": True}),
    "wav2vec2-adapter": ("Wav2Vec2", "group", {"add_adapter": True, "num_adapter_layers": 1}),
    "hubert": ("Hubert", "group", {}),
    "hubert-stable": ("Hubert", "layer", {"do_stable_layer_norm": True}),
    "wavlm": ("WavLM", "group", WAVLM),
}
BUNDLES = ("HUBERT_BASE", "WAV2VEC2_LARGE_LV60K", "WAVLM_BASE")


def bert() -> list[object]:
    config = tf.BertConfig(
        **HEADS,
        vocab_size=len(WORDS.split()),
        hidden_size=16,
        intermediate_size=32,
        max_position_embeddings=32,
        initializer_range=0.5,
    )
    return [tf.BertModel(config), tokenizer()]


def t5() -> list[object]:
    config = tf.T5Config(
        vocab_size=len(WORDS.split()),
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=2,
        initializer_factor=2.0,
    )
    return [tf.T5Model(config), tokenizer()]


def tokenizer() -> object:
    return tf.BertTokenizerFast(vocab={word: n for n, word in enumerate(WORDS.split())})


def vision(name: str) -> list[object]:
    clip = {**VISION, "intermediate_size": 32, "initializer_factor": 10.0}
    siglip = {**VISION, "intermediate_size": 32}
    dino = {**VISION, "mlp_ratio": 2, "initializer_range": 0.3}
    text = {**SMALL_TEXT, "num_hidden_layers": 1}
    resize = {"size": {"shortest_edge": 32}, "crop_size": SIDE}
    models: dict[str, Callable[[], tf.PreTrainedModel]] = {
        "vit": lambda: tf.ViTModel(
            tf.ViTConfig(**VISION, intermediate_size=32, initializer_range=0.3)
        ),
        "dinov2": lambda: tf.Dinov2Model(tf.Dinov2Config(**dino)),
        "registers": lambda: tf.Dinov2WithRegistersModel(
            tf.Dinov2WithRegistersConfig(**dino, num_register_tokens=3)
        ),
        "clip": lambda: tf.CLIPVisionModel(tf.CLIPVisionConfig(**clip)),
        "clip-whole": lambda: tf.CLIPModel(tf.CLIPConfig(text_config=text, vision_config=clip)),
        "siglip": lambda: tf.SiglipVisionModel(tf.SiglipVisionConfig(**siglip)),
        "siglip-whole": lambda: tf.SiglipModel(
            tf.SiglipConfig(text_config=text, vision_config=siglip)
        ),
    }
    if name == "vit":
        processor: object = tf.ViTImageProcessor(size=SIDE)
    elif "siglip" in name:
        processor = tf.SiglipImageProcessor(size=SIDE)
    else:
        processor = tf.CLIPImageProcessor(**resize)
    return [models[name](), processor]


def waves(name: str) -> list[object]:
    kind, norm, options = WAVE_MODELS[name]
    config = getattr(tf, f"{kind}Config")(**WAVES, feat_extract_norm=norm, **options)
    extractor = tf.Wav2Vec2FeatureExtractor(
        do_normalize=True, return_attention_mask=norm == "layer" or "layer" in str(options)
    )
    return [getattr(tf, f"{kind}Model")(config), extractor]


def whisper() -> list[object]:
    config = tf.WhisperConfig(
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
    return [tf.WhisperModel(config), tf.WhisperFeatureExtractor()]


def clap(fused: bool) -> list[object]:
    audio = {
        "window_size": 8,
        "spec_size": 256,
        "patch_embeds_hidden_size": 16,
        "hidden_size": 64,
        "depths": [1, 1, 1],
        "num_hidden_layers": 3,
        "num_attention_heads": [2, 2, 2],
        "enable_fusion": fused,
        "projection_dim": 8,
        "aff_block_r": 2,
    }
    text = {**SMALL_TEXT, "num_hidden_layers": 1}
    model = tf.ClapModel(tf.ClapConfig(text_config=text, audio_config=audio))
    truncation = "fusion" if fused else "rand_trunc"
    return [model, tf.ClapFeatureExtractor(truncation=truncation)]


MAKERS: dict[str, Callable[[], list[object]]] = {
    "bert": bert,
    "t5": t5,
    **{
        name: (lambda name=name: vision(name))
        for name in ("vit", "dinov2", "registers", "clip", "clip-whole", "siglip", "siglip-whole")
    },
    **{name: (lambda name=name: waves(name)) for name in WAVE_MODELS},
    "whisper": whisper,
    "clap": lambda: clap(False),
    "clap-fused": lambda: clap(True),
}


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a checkpoint by name; a test must not write into it."""
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            torch.manual_seed(0)
            for part in MAKERS[name]():
                part.save_pretrained(made[name])  # type: ignore[attr-defined]
        return made[name]

    return folder


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """Bundles of torchaudio with small networks; their weights are where torch.hub puts them."""
    from torchaudio import pipelines
    from torchaudio.pipelines._wav2vec2 import utils

    small = {
        "extractor_conv_layer_config": [(8, 10, 5), (8, 8, 4), (8, 4, 4)],
        "encoder_embed_dim": 16,
        "encoder_num_layers": 3,
        "encoder_num_heads": 2,
        "encoder_ff_interm_features": 32,
        "encoder_pos_conv_kernel": 8,
        "encoder_pos_conv_groups": 2,
    }
    home, weights = tmp_path_factory.mktemp("hub"), {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_HOME", str(home))
        for name in BUNDLES:
            bundle = getattr(pipelines, name)
            params = {**bundle._params, **small}
            patch.setattr(pipelines, name, dataclasses.replace(bundle, _params=params))
            torch.manual_seed(0)
            network = utils._get_model(bundle._model_type, params)
            weights[name] = home / "hub" / "checkpoints" / Path(bundle._path).name
            weights[name].parent.mkdir(parents=True, exist_ok=True)
            torch.save(network.state_dict(), weights[name])
        yield weights


# ---- a project to search in ----

RATE = 16_000
TEXTS = [
    f"{size} {color} {animal}"
    for size in ("a", "small", "the")
    for color in ("red", "over")
    for animal in ("dog", "cat", "house", "runs")
]


def tone(number: int) -> np.ndarray:
    seconds = np.arange(RATE // 4) / RATE
    return np.sin(2 * np.pi * (200 + 60 * number) * seconds).astype(np.float32)


def picture(number: int) -> Image.Image:
    rng = np.random.default_rng(number)
    return Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8))


@pytest.fixture
def project(
    tmp_path: Path, checkpoints: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> Path:
    """Aligners of sounds and of pictures with words, and raw files of both."""
    monkeypatch.chdir(tmp_path)
    items = {
        "speech": (SpeechEncoder(checkpoints("hubert")), [tone(n) for n in range(len(TEXTS))]),
        "image": (ImageEncoder(checkpoints("vit")), [picture(n) for n in range(len(TEXTS))]),
        "text": (TextEncoder(checkpoints("bert")), TEXTS),
    }
    for name, (encoder, raw) in items.items():
        made(name, encoder, raw)
    for name in ("speech", "image"):
        a, b = EmbeddingStore(name), EmbeddingStore("text")
        aligner = Ridge().fit(a.read(), b.read()).aligner_
        aligner.about |= store_metadata(a, b)
        aligner.save(f"with_{name}")
    Path("sounds/more").mkdir(parents=True)
    soundfile.write("sounds/3.wav", tone(3), RATE)
    soundfile.write("sounds/more/5.wav", tone(5), RATE)
    picture(4).save("4.png")
    Path("words.txt").write_text("small over cat")
    return tmp_path


def made(name: str, encoder: Encoder, raw: list[Any]) -> EmbeddingStore:
    rows = pd.DataFrame({"row": [f"{name}{n}" for n in range(len(raw))]})
    rows["item"] = [f"i{n}" for n in range(len(raw))]
    if name == "text":
        rows["text"] = raw
    x = encoder.encode(raw)
    return write_store(name, x, rows, encoder=encoder.describe(), source={}, dtype="float32")
