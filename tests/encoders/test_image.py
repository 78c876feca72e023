"""Pooling of vision networks: every row against the network itself, run on one image."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from gera_lightning.encoders.image import ImageEncoder, pool_patches
from gera_lightning.utils.errors import UserError

Checkpoints = Callable[[str], Path]


def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [
        Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8))
        for h, w in ((32, 32), (40, 70), (90, 33), (64, 64), (32, 32))
    ]


def tokens(folder: Path, image: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    """States of the network after its last norm `[T, D]` and its pooled output `[D]`, in the
    plainest way.
    """
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    model = transformers.AutoModel.from_pretrained(folder).eval()
    pixels = processor(image, return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        if hasattr(model, "vision_model"):
            model = model.vision_model
        out = model(pixel_values=pixels)
        states = (
            model.post_layernorm(out.last_hidden_state)
            if "CLIP" in type(model).__name__
            else out.last_hidden_state
        )
    return states[0].numpy(), out.pooler_output[0].numpy()


CASES = [
    *(
        (name, pooling)
        for name in ("vit", "dinov2", "registers", "clip", "clip-whole")
        for pooling in ("cls", "mean", "cls+mean")
    ),
    *((name, pooling) for name in ("siglip", "siglip-whole") for pooling in ("mean", "pooler")),
    ("vit", "pooler"),
    ("clip", "pooler"),
]


@pytest.mark.parametrize(("name", "pooling"), CASES)
def test_rows_are_the_networks_own_in_any_company(
    checkpoints: Checkpoints, name: str, pooling: str
):
    encoder = ImageEncoder(checkpoints(name), pooling=pooling, batch_size=3)
    rows = encoder.encode(pictures())
    assert rows.shape == (5, encoder.dim)
    first = 0 if "siglip" in name else 4 if name == "registers" else 1
    for image, row in zip(pictures(), rows, strict=True):
        states, pooled = tokens(checkpoints(name), image)
        mean = sum(states[first:]) / len(states[first:])
        expected = {
            "cls": states[0],
            "mean": mean,
            "cls+mean": np.concatenate([states[0], mean]),
            "pooler": pooled,
        }[pooling]
        np.testing.assert_allclose(row, expected, atol=1e-5)


@pytest.mark.parametrize("name", ["vit", "registers", "clip", "siglip"])
def test_a_layer_is_what_a_hook_on_it_sees(checkpoints: Checkpoints, name: str):
    pooling = "mean" if name == "siglip" else "cls+mean"
    encoder = ImageEncoder(checkpoints(name), layer=1, pooling=pooling)
    seen: list[torch.Tensor] = []
    layers = next(
        module
        for module in encoder.model.modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) == 2
    )
    layers[1].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    rows = encoder.encode(pictures())
    first_patch = {"siglip": 0, "registers": 4}.get(name, 1)
    np.testing.assert_allclose(rows, pool_patches(seen[0], pooling, first_patch), atol=1e-6)


def test_clip_class_token_is_its_pooled_output(checkpoints: Checkpoints):
    rows = [
        ImageEncoder(checkpoints("clip"), pooling=pooling).encode(pictures())
        for pooling in ("cls", "pooler")
    ]
    np.testing.assert_allclose(*rows, atol=1e-6)


def test_the_text_tower_is_left_out(checkpoints: Checkpoints):
    names = [name for name, _ in ImageEncoder(checkpoints("clip-whole")).model.named_parameters()]
    assert names
    assert not any("text" in name for name in names)


@pytest.mark.parametrize(("name", "pooling"), [("vit", "cls"), ("siglip", "pooler")])
def test_default_pooling_suits_the_network(checkpoints: Checkpoints, name: str, pooling: str):
    assert ImageEncoder(checkpoints(name)).pooling == pooling


def test_registers_are_no_patches():
    states = torch.arange(10.0).view(1, 5, 2)
    assert pool_patches(states, "cls+mean", 3).tolist() == [[0.0, 1.0, 7.0, 8.0]]


def test_transparency_and_grey_are_read(checkpoints: Checkpoints):
    encoder = ImageEncoder(checkpoints("vit"))
    clear, white = Image.new("RGBA", (40, 40), (255, 0, 0, 0)), Image.new("L", (40, 40), 255)
    np.testing.assert_allclose(encoder.encode([clear]), encoder.encode([white]), atol=1e-6)


def test_description_names_what_changes_the_vectors(checkpoints: Checkpoints):
    about = ImageEncoder(
        checkpoints("dinov2"), name="tiny", pooling="cls+mean", normalize=True
    ).describe()
    assert about.pop("revision").startswith("sha256:")
    assert "shortest_edge" in about.pop("preprocessing")
    assert about == {
        "class": "image",
        "name": "tiny",
        "dim": 32,
        "pooling": "cls+mean",
        "layer": 2,
        "normalize": True,
    }


@pytest.mark.parametrize(
    ("name", "options", "key"),
    [
        ("siglip", {"pooling": "cls"}, "pooling"),  # it has no class token
        ("vit", {"pooling": "patches"}, "pooling"),
        ("vit", {"pooling": "pooler", "layer": 1}, "layer"),  # the pooler sees the last layer
    ],
)
def test_what_a_network_cannot_give_is_named(
    checkpoints: Checkpoints, name: str, options: dict, key: str
):
    with pytest.raises(UserError) as caught:
        ImageEncoder(checkpoints(name), **options)
    assert (caught.value.key, caught.value.value) == (key, options[key])


def test_another_kind_of_network_is_refused(checkpoints: Checkpoints, tmp_path: Path):
    transformers.BertModel.from_pretrained(checkpoints("bert")).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="image processor"):
        ImageEncoder(tmp_path)
    transformers.ViTImageProcessor().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="BertModel") as caught:
        ImageEncoder(tmp_path)
    assert caught.value.key == "checkpoint"
