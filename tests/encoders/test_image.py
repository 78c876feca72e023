"""Tiny random vision checkpoints in the real formats; every row against the network itself run on
one image.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from gera_lightning.encoders.image import ImageEncoder, pool_patches
from gera_lightning.utils.errors import UserError

SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
VIT = {**SMALL, "intermediate_size": 32, "initializer_range": 0.3}
SIZE = {"height": 32, "width": 32}
NAMES = ("vit", "dinov2", "registers", "clip", "clip-whole", "siglip", "siglip-whole")


def build(name: str) -> tuple[transformers.PreTrainedModel, object]:
    text = {
        "vocab_size": 16,
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
    }
    clip = {**SMALL, "intermediate_size": 32, "initializer_factor": 10.0}
    processors = {
        "vit": transformers.ViTImageProcessor(size=SIZE),
        "clip": transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=SIZE),
        "siglip": transformers.SiglipImageProcessor(size=SIZE),
    }
    if name == "vit":
        return transformers.ViTModel(transformers.ViTConfig(**VIT)), processors["vit"]
    if name == "dinov2":
        return (
            transformers.Dinov2Model(
                transformers.Dinov2Config(**SMALL, mlp_ratio=2, initializer_range=0.3)
            ),
            processors["clip"],
        )
    if name == "registers":
        config = transformers.Dinov2WithRegistersConfig(
            **SMALL, mlp_ratio=2, num_register_tokens=3, initializer_range=0.3
        )
        return transformers.Dinov2WithRegistersModel(config), processors["clip"]
    if name == "clip":
        return (
            transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**clip)),
            processors["clip"],
        )
    if name == "clip-whole":
        return (
            transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=clip)),
            processors["clip"],
        )
    vision = {**SMALL, "intermediate_size": 32}
    if name == "siglip":
        return (
            transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**vision)),
            processors["siglip"],
        )
    return (
        transformers.SiglipModel(transformers.SiglipConfig(text_config=text, vision_config=vision)),
        processors["siglip"],
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    out = {}
    for name in NAMES:
        torch.manual_seed(0)
        model, processor = build(name)
        out[name] = tmp_path_factory.mktemp(name)
        model.save_pretrained(out[name])
        processor.save_pretrained(out[name])
    return out


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
def test_rows_are_the_networks_own_in_any_company(folders, name: str, pooling: str):
    encoder = ImageEncoder(folders[name], pooling=pooling, batch_size=3)
    rows = encoder.encode(pictures())
    assert rows.shape == (5, encoder.dim)
    first = 0 if "siglip" in name else 4 if name == "registers" else 1
    for image, row in zip(pictures(), rows, strict=True):
        states, pooled = tokens(folders[name], image)
        mean = sum(states[first:]) / len(states[first:])
        expected = {
            "cls": states[0],
            "mean": mean,
            "cls+mean": np.concatenate([states[0], mean]),
            "pooler": pooled,
        }[pooling]
        np.testing.assert_allclose(row, expected, atol=1e-5)
        np.testing.assert_allclose(row, encoder.encode([image])[0], atol=1e-5)
    assert np.abs(rows[0] - rows[1]).max() > 1e-3, (
        "random images must differ, or nothing here is tested"
    )


@pytest.mark.parametrize("name", ["vit", "registers", "clip", "siglip"])
def test_several_layers_are_those_of_one_each_in_one_pass(folders, name: str):
    """The last is the network's own (tested above), those before it are what a hook on the layer
    sees.
    """
    pooling = "mean" if name == "siglip" else "cls+mean"
    encoder = ImageEncoder(folders[name], layer="all", pooling=pooling, batch_size=3)
    seen: list[torch.Tensor] = []
    layers = next(
        module
        for module in encoder.model.modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) == 2
    )
    layers[1].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    rows = encoder.encode(pictures())
    assert (rows.shape, len(seen)) == ((5, 3, encoder.dim), 2)
    first = {"siglip": 0, "registers": 4}.get(name, 1)
    np.testing.assert_allclose(
        rows[:, 1], pool_patches(torch.cat(seen), pooling, first).numpy(), atol=1e-6
    )
    np.testing.assert_allclose(
        rows[:, 2], ImageEncoder(folders[name], pooling=pooling).encode(pictures()), atol=1e-5
    )
    alone = ImageEncoder(folders[name], layer=1, pooling=pooling).encode(pictures())
    np.testing.assert_allclose(rows[:, 1], alone, atol=1e-5)
    assert np.abs(rows[:, 1] - rows[:, 2]).max() > 1e-2


def test_the_networks_own_pooling_is_of_the_last_layer(folders):
    with pytest.raises(UserError, match="layer=1: pooling=pooler is of the last layer alone"):
        ImageEncoder(folders["vit"], layer=1, pooling="pooler")
    assert ImageEncoder(folders["vit"], layer=[2], pooling="pooler").encode(pictures()).shape == (
        5,
        1,
        16,
    )


def test_clip_class_token_is_its_pooled_output(folders):
    rows = [
        ImageEncoder(folders["clip"], pooling=pooling).encode(pictures())
        for pooling in ("cls", "pooler")
    ]
    np.testing.assert_allclose(*rows, atol=1e-6)


def test_the_text_tower_is_left_out(folders):
    names = [name for name, _ in ImageEncoder(folders["clip-whole"]).model.named_parameters()]
    assert names
    assert not any("text" in name for name in names)


@pytest.mark.parametrize(("name", "pooling"), [("vit", "cls"), ("siglip", "pooler")])
def test_default_pooling_suits_the_network(folders, name: str, pooling: str):
    assert ImageEncoder(folders[name]).pooling == pooling


def test_registers_are_no_patches():
    states = torch.arange(10.0).view(1, 5, 2)
    assert pool_patches(states, "cls+mean", 3).tolist() == [[0.0, 1.0, 7.0, 8.0]]


def test_transparency_and_grey_are_read(folders):
    encoder = ImageEncoder(folders["vit"])
    clear, white = Image.new("RGBA", (40, 40), (255, 0, 0, 0)), Image.new("L", (40, 40), 255)
    np.testing.assert_allclose(encoder.encode([clear]), encoder.encode([white]), atol=1e-6)


def test_description_names_what_changes_the_vectors(folders):
    about = ImageEncoder(
        folders["dinov2"], name="tiny", pooling="cls+mean", normalize=True
    ).describe()
    assert about.pop("revision").startswith("sha256:")
    assert "shortest_edge" in about.pop("preprocessing")
    assert about == {
        "name": "tiny",
        "dim": 32,
        "pooling": "cls+mean",
        "layer": 2,
        "normalize": True,
    }


def test_a_pooling_without_a_class_token_is_refused(folders):
    with pytest.raises(UserError, match="no class token; use mean or pooler"):
        ImageEncoder(folders["siglip"], pooling="cls")
    with pytest.raises(UserError, match="pooling='patches' is not one of"):
        ImageEncoder(folders["vit"], pooling="patches")


def test_another_kind_of_network_is_refused(folders, tmp_path: Path):
    config = transformers.BertConfig(
        vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    transformers.BertModel(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="image processor"):
        ImageEncoder(tmp_path)
    transformers.ViTImageProcessor(size=SIZE).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="not a vision transformer"):
        ImageEncoder(tmp_path)
