"""Image encoders: vision models of `transformers` (ViT, DINOv2, CLIP, SigLIP and their kin), pooled
over their patches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gera_lightning.encoders.base import Inputs, NetworkEncoder, check_batch_size
from gera_lightning.encoders.efficientnet_lite import on_white
from gera_lightning.encoders.layers import Layer, Layers
from gera_lightning.encoders.loading import Checkpoint, guarded, load_model, located, revision_of
from gera_lightning.utils.errors import UserError, check_one_of
from gera_lightning.utils.instantiate import register

if TYPE_CHECKING:
    from PIL.Image import Image

POOLINGS = ("cls", "mean", "cls+mean", "pooler")


def pool_patches(states: Tensor, pooling: str, first_patch: int) -> Tensor:
    """Pool states `[n, T, D]` to `[n, D]`, or `[n, 2 D]` for `cls+mean`.

    Args:
        states: a class token (where `first_patch` is at least 1), registers, then patches.
        pooling: `cls`, the class token; `mean`, of the patches; `cls+mean`, both side by side.
        first_patch: tokens before the patches.
    """
    parts = {"cls": states[:, 0], "mean": states[:, first_patch:].mean(1)}
    return torch.cat([parts[part] for part in pooling.split("+")], dim=-1)


@register("image")
class ImageEncoder(NetworkEncoder):
    """A `transformers` vision model as a frozen image encoder.

    Args:
        checkpoint: hub name, local folder or `package:MODULE/FOLDER`; of a two-tower checkpoint
            (CLIP, SigLIP) the vision tower is used.
        name: how the store's manifest names it; the checkpoint's own name by default.
        layer: whose states are pooled: a number, -1, several `[6, 9, 12]` or `all`, see
            `encoders.layers`; `pooler` has only -1.
        pooling: `cls`, `mean` (of the patches), `cls+mean` (twice the width), or `pooler`, the
            network's own pooled output. By default `cls`, or `pooler` for a network without a class
            token.
        normalize: L2-normalise the rows.
        batch_size: images a forward pass.
        revision: hub revision.
        trust_remote_code: run code that the checkpoint brings.
        device: torch device.

    Raises:
        UserError: a checkpoint that cannot be loaded or is no vision model, or a pooling or layer
            that it cannot give.
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

        named, checkpoint = str(checkpoint), located(checkpoint)
        if pooling is not None:
            check_one_of("pooling", pooling, POOLINGS)
        whole: Any = load_model(
            checkpoint,
            revision=revision,
            trust_remote_code=trust_remote_code,
            needs_pooler=pooling == "pooler",
        )
        # the same pixels on every machine, whether torchvision is there or not
        self.processor: Any = guarded(
            "its image processor",
            checkpoint,
            lambda: AutoImageProcessor.from_pretrained(
                checkpoint, revision=revision, trust_remote_code=trust_remote_code, backend="pil"
            ),
        )
        model = getattr(whole, "vision_model", whole)
        embeddings = getattr(model, "embeddings", None)
        if (
            getattr(embeddings, "patch_embeddings", getattr(embeddings, "patch_embedding", None))
            is None
        ):
            raise UserError(
                f"checkpoint={str(checkpoint)!r} is a {type(whole).__name__}, not a vision"
                " transformer of patches"
            )
        self._class_token = any(
            getattr(embeddings, key, None) is not None for key in ("cls_token", "class_embedding")
        )
        self._first_patch = int(self._class_token) + int(
            getattr(model.config, "num_register_tokens", 0) or 0
        )
        self.pooling = pooling or ("cls" if self._class_token else "pooler")
        if "cls" in self.pooling and not self._class_token:
            raise UserError(
                f"pooling={pooling!r}: {checkpoint} has no class token; use mean or pooler"
            )
        self.layers = Layers.of(layer, int(model.config.num_hidden_layers))
        if self.pooling == "pooler" and self.layers.inner:
            raise UserError(
                f"layer={layer}: pooling=pooler is of the last layer alone; use cls or mean, or"
                " leave out layer"
            )
        self.model = model.to(device)
        self.name = name or named
        self.revision = revision_of(checkpoint, whole.config, revision)
        self.dim = int(model.config.hidden_size) * (2 if self.pooling == "cls+mean" else 1)
        self.normalize, self.batch_size = normalize, check_batch_size(batch_size)
        self.preprocessing = f"on white, {type(self.processor).__name__} {_sizes(self.processor)}"

    def settings(self) -> Mapping[str, Any]:
        """What else changes the rows."""
        return {"layer": self.layers.record, "normalize": self.normalize}

    def size(self, item: Image) -> int:  # noqa: ARG002
        """All alike: the processor brings images to one size."""
        return 0

    def prepare(self, items: Sequence[Image]) -> Inputs:
        """Pixels `[n, 3, H, W]`."""
        pixels = [
            self.processor(on_white(image), return_tensors="pt")["pixel_values"] for image in items
        ]
        return {"pixel_values": torch.cat(pixels)}

    def pooled(self, inputs: Inputs) -> Tensor:
        """Rows `[n, dim]`, or `[n, L, dim]`, of prepared images."""
        out = self.model(**inputs, output_hidden_states=self.layers.inner)
        if self.pooling == "pooler":
            rows = self.layers.joined([out.pooler_output])
        else:
            states = self.layers.states(out)
            post_norm = getattr(self.model, "post_layernorm", None)
            if (
                post_norm is not None
                and self._class_token
                and self.layers.chosen[-1] == self.layers.last
            ):
                states[-1] = post_norm(
                    states[-1]
                )  # CLIP's norm comes after the states it returns, SigLIP's before
            rows = self.layers.joined(
                [pool_patches(each, self.pooling, self._first_patch) for each in states]
            )
        rows = rows.float()
        return torch.nn.functional.normalize(rows, dim=-1) if self.normalize else rows


def _sizes(processor: Any) -> str:
    return ", ".join(
        f"{key} {dict(value)}"
        for key in ("size", "crop_size")
        if (value := getattr(processor, key, None))
    )
