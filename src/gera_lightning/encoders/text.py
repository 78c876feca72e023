"""Text encoders: any `transformers` AutoModel checkpoint, pooled over its tokens."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gera_lightning.errors import UserError

POOLINGS = ("mean", "cls", "last")


def pool_tokens(states: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """Pool token states `[n, T, D]` to `[n, D]`, padding (`mask` 0, `[n, T]`) left out.

    `mean` averages the real tokens, `cls` takes the first, `last` the last real one.
    """
    if pooling == "mean":
        weight = mask.unsqueeze(-1).to(states.dtype)
        return (states * weight).sum(1) / weight.sum(1).clamp(min=1)
    if pooling == "cls":
        return states[:, 0]
    if pooling == "last":
        last = (mask * torch.arange(mask.shape[1], device=mask.device)).argmax(1)
        return states[torch.arange(len(states), device=states.device), last]
    raise UserError(f"pooling={pooling!r} is not one of {', '.join(POOLINGS)}")


class TextEncoder:
    """A `transformers` checkpoint as a frozen text encoder.

    Args:
        checkpoint: hub name or local folder.
        name: how the store's manifest names it; the checkpoint's own name by default.
        pooling: `mean`, `cls` or `last`.
        normalize: L2-normalise the rows.
        max_tokens: longer texts are cut.
        batch_size: texts a forward pass.
        revision: hub revision.
        device: torch device.
    """

    def __init__(
        self,
        checkpoint: str | os.PathLike[str],
        *,
        name: str | None = None,
        pooling: str = "mean",
        normalize: bool = True,
        max_tokens: int = 256,
        batch_size: int = 64,
        revision: str | None = None,
        device: str = "cpu",
    ) -> None:
        from transformers import AutoModel, AutoTokenizer

        if pooling not in POOLINGS:
            raise UserError(f"pooling={pooling!r} is not one of {', '.join(POOLINGS)}")
        self.tokenizer = AutoTokenizer.from_pretrained(checkpoint, revision=revision)
        self.model = AutoModel.from_pretrained(checkpoint, revision=revision).eval().to(device)
        self.name = name or str(checkpoint)
        self.revision = revision
        self.dim = int(self.model.config.hidden_size)
        self.pooling, self.normalize, self.max_tokens = pooling, normalize, max_tokens
        self.batch_size, self.device = batch_size, device

    def describe(self) -> dict[str, Any]:
        """What a store's manifest records of this encoder."""
        return {
            "name": self.name,
            "revision": self.revision,
            "dim": self.dim,
            "pooling": self.pooling,
            "normalize": self.normalize,
            "max_tokens": self.max_tokens,
        }

    @torch.inference_mode()
    def encode(self, items: Sequence[str]) -> np.ndarray:
        """Rows `[len(items), dim]` of texts, float32; batches are formed by length, rows keep the given order."""
        order = np.argsort([len(text) for text in items], kind="stable")
        out = np.empty((len(items), self.dim), dtype=np.float32)
        for start in range(0, len(order), self.batch_size):
            chosen = order[start : start + self.batch_size]
            tokens = self.tokenizer(
                [items[i] for i in chosen], padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
            ).to(self.device)
            pooled = pool_tokens(self.model(**tokens).last_hidden_state.float(), tokens["attention_mask"], self.pooling)
            if self.normalize:
                pooled = torch.nn.functional.normalize(pooled, dim=-1)
            out[chosen] = pooled.cpu().numpy()
        return out
