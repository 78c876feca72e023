"""Image encoders: vision models of `transformers` (ViT, DINOv2, CLIP, SigLIP and the like).

Legend: `n` images, `T` tokens (class token, registers, patches), `L` layers, `D` width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gera_lightning.encoders.base import Inputs, NetworkEncoder, check_batch_size
from gera_lightning.encoders.efficientnet_lite import on_white
from gera_lightning.encoders.layers import Layer, Layers
from gera_lightning.encoders.loading import (
    Checkpoint,
    checkpoint_folder,
    load_model,
    load_or_explain,
    revision_of,
)
from gera_lightning.utils.errors import UserError, check_one_of
from gera_lightning.utils.instantiate import register

if TYPE_CHECKING:
    from PIL.Image import Image

POOLINGS = ("cls", "mean", "cls+mean", "pooler")


def pool_patches(states: Tensor, pooling: str, first_patch: int) -> Tensor:
    """Pool states `[n, T, D]` to `[n, D]`, or `[n, 2 D]` for `cls+mean`.

    Args:
        states: a class token (where `first_patch` is at least 1), registers, then patches.
        pooling: `cls`, the class token; `mean` of the patches; `cls+mean`, both side by side.
        first_patch: number of tokens before the patches.

    >>> states = torch.tensor([[[1.0], [3.0], [5.0]]])
    >>> pool_patches(states, "cls+mean", first_patch=1)
    tensor([[1., 4.]])
    """
    pooled = {"cls": states[:, 0], "mean": states[:, first_patch:].mean(1)}
    return torch.cat([pooled[part] for part in pooling.split("+")], dim=-1)


@register("image")
class ImageEncoder(NetworkEncoder):
    """A `transformers` vision model as a frozen image encoder.

    Args:
        checkpoint: hub name, local folder or `package:MODULE/FOLDER`; of a two-tower checkpoint
            (CLIP, SigLIP) the vision tower is used.
        name: name in the store's manifest; the checkpoint's own by default.
        layer: layer whose states are pooled: a number, -1, several `[6, 9, 12]` or `all`, see
            `encoders.layers`; `pooler` has only -1.
        pooling: `cls`, `mean` (of the patches), `cls+mean` (twice the width), or `pooler`, the
            network's own pooled output. By default `cls`, or `pooler` for a network without a class
            token.
        normalize: L2-normalise the rows.
        batch_size: images per forward pass.
        revision: hub revision.
        trust_remote_code: run code that the checkpoint brings.
        device: torch device.

    Raises:
        UserError: a checkpoint that cannot be loaded or is no vision model, or a pooling or layer
            that it does not have.

    Example::

        encoder = ImageEncoder("facebook/dinov2-base", pooling="cls+mean")
        rows = encoder.encode([read_image("7.jpg")])  # [1, 1536]
    """

    layers: Layers

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        name: str | None = None,
        layer: Layer = -1,
        pooling: str | None = None,
        normalize: bool = False,
        batch_size: int = 32,
        revision: str | None = None,
        trust_remote_code: bool = False,
        device: str = "cpu",
    ) -> None:
        from transformers import AutoImageProcessor

        given_name, checkpoint = str(checkpoint), checkpoint_folder(checkpoint)
        if pooling is not None:
            check_one_of("pooling", pooling, POOLINGS)
        whole: Any = load_model(
            checkpoint,
            revision=revision,
            trust_remote_code=trust_remote_code,
            needs_pooler=pooling == "pooler",
        )
        # the same pixels on every machine, whether torchvision is there or not
        self.processor: Any = load_or_explain(
            "its image processor",
            checkpoint,
            lambda: AutoImageProcessor.from_pretrained(
                checkpoint, revision=revision, trust_remote_code=trust_remote_code, backend="pil"
            ),
        )
        model = _vision_tower(whole, checkpoint)
        self._class_token = _has_one(model.embeddings, "cls_token", "class_embedding")
        registers = getattr(model.config, "num_register_tokens", 0) or 0
        self._first_patch = int(self._class_token) + int(registers)
        self.pooling = pooling or ("cls" if self._class_token else "pooler")
        self.layers = Layers.of(layer, int(model.config.num_hidden_layers))
        self._check_pooling(layer, checkpoint)
        self.model = model.to(device)
        self.name = name or given_name
        self.revision = revision_of(checkpoint, whole.config, revision)
        self.dim = int(model.config.hidden_size) * (2 if self.pooling == "cls+mean" else 1)
        self.normalize, self.batch_size = normalize, check_batch_size(batch_size)
        self.preprocessing = f"on white, {type(self.processor).__name__} {_sizes(self.processor)}"

    def _check_pooling(self, layer: Layer, checkpoint: Checkpoint) -> None:
        if "cls" in self.pooling and not self._class_token:
            raise UserError(
                f"is impossible: {checkpoint} has no class token",
                key="pooling",
                value=self.pooling,
                remedy="use mean or pooler",
            )
        if self.pooling == "pooler" and self.layers.needs_hidden_states:
            raise UserError(
                "is impossible: pooling=pooler pools the last layer only",
                key="layer",
                value=layer,
                remedy="use pooling=cls or mean, or the default layer",
            )

    def settings(self) -> Mapping[str, Any]:
        """The other settings that change the rows."""
        return {"layer": self.layers.numbers, "normalize": self.normalize}

    def size(self, item: Image) -> int:  # noqa: ARG002
        """The same for all: the processor resizes images to one size."""
        return 0

    def prepare(self, items: Sequence[Image]) -> Inputs:
        """Pixels `[n, 3, H, W]`."""
        pixels = [
            self.processor(on_white(image), return_tensors="pt")["pixel_values"] for image in items
        ]
        return {"pixel_values": torch.cat(pixels)}

    def pooled(self, inputs: Inputs) -> Tensor:
        """Rows `[n, dim]`, or `[n, L, dim]` of several layers."""
        out = self.model(**inputs, output_hidden_states=self.layers.needs_hidden_states)
        if self.pooling == "pooler":
            rows = self.layers.stack([out.pooler_output])
        else:
            states = self.layers.states(out)
            # CLIP returns its last states before its final norm, SigLIP after it
            final_norm = getattr(self.model, "post_layernorm", None)
            has_last = self.layers.chosen[-1] == self.layers.last
            if final_norm is not None and self._class_token and has_last:
                states[-1] = final_norm(states[-1])
            rows = self.layers.stack(
                [pool_patches(of_layer, self.pooling, self._first_patch) for of_layer in states]
            )
        rows = rows.float()
        return torch.nn.functional.normalize(rows, dim=-1) if self.normalize else rows


def _vision_tower(model: Any, checkpoint: Checkpoint) -> Any:
    """The vision transformer of a checkpoint; of CLIP and SigLIP without the text tower."""
    tower = getattr(model, "vision_model", model)
    embeddings = getattr(tower, "embeddings", None)
    if not _has_one(embeddings, "patch_embeddings", "patch_embedding"):
        raise UserError(
            f"is a {type(model).__name__}, not a vision transformer of patches",
            key="checkpoint",
            value=str(checkpoint),
        )
    return tower


def _has_one(module: Any, *names: str) -> bool:
    """Whether one of these attributes is there and not None."""
    return any(getattr(module, name, None) is not None for name in names)


def _sizes(processor: Any) -> str:
    return ", ".join(
        f"{key} {dict(value)}"
        for key in ("size", "crop_size")
        if (value := getattr(processor, key, None))
    )
