"""What every frozen encoder offers, and what those of torch networks share.

Legend: `n` items, `D` width of a row.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from gera_lightning.encoders.layers import Layers
from gera_lightning.utils.errors import UserError

Inputs = dict[str, Tensor]
"""A network's input tensors by name, first axis n."""


class Encoder(Protocol):
    """A frozen encoder of one modality."""

    name: str
    dim: int

    def describe(self) -> dict[str, Any]:
        """Name, revision, width, pooling and preprocessing: what a store's manifest records."""
        ...

    def encode(self, items: Sequence[Any]) -> np.ndarray:
        """Rows `[len(items), dim]`, float32, in the order of `items`."""
        ...


class NetworkEncoder(ABC):
    """A frozen torch network: items become input tensors, those become rows.

    `prepare` runs on the CPU, in loader processes where there are some; `pooled` runs where the
    network lies, under whatever precision the caller sets. Rows do not depend on the other items of
    a batch.

    Attributes:
        name, revision: what the network is, and which one exactly.
        dim: width of a row.
        pooling, preprocessing: in words, for the manifest.
        model: the network, in eval mode.
        batch_size: items a forward pass of `encode`.
        layers: which of the network's layers make rows; None for a network without a choice.
    """

    name: str
    revision: str | None
    dim: int
    pooling: str
    preprocessing: str
    model: nn.Module
    batch_size: int
    layers: Layers | None = None

    @abstractmethod
    def prepare(self, items: Sequence[Any]) -> Inputs:
        """Input tensors of `items`, on the CPU."""

    @abstractmethod
    def pooled(self, inputs: Inputs) -> Tensor:
        """Rows `[n, dim]`, or `[n, L, dim]` of several layers, float32, of prepared inputs on the
        network's device.
        """

    @abstractmethod
    def size(self, item: Any) -> int:
        """Length of an item, by which batches are formed so that little is padded."""

    @abstractmethod
    def settings(self) -> Mapping[str, Any]:
        """What else changes the rows, for the manifest."""

    def describe(self) -> dict[str, Any]:
        """What a store's manifest records of this encoder."""
        fixed = {
            key: getattr(self, key)
            for key in ("name", "revision", "dim", "pooling", "preprocessing")
        }
        return {**fixed, **self.settings()}

    @property
    def device(self) -> torch.device:
        """Where the network lies."""
        return next(self.model.parameters()).device

    @torch.inference_mode()
    def encode(self, items: Sequence[Any]) -> np.ndarray:
        """Rows as `pooled` gives them, float32; batches are formed by length, rows keep the given
        order.
        """
        order = np.argsort([self.size(item) for item in items], kind="stable")
        out = np.empty((len(items), *row_shape(self)), dtype=np.float32)
        for start in range(0, len(order), self.batch_size):
            chosen = order[start : start + self.batch_size]
            inputs = {
                name: value.to(self.device)
                for name, value in self.prepare([items[i] for i in chosen]).items()
            }
            out[chosen] = self.pooled(inputs).cpu().numpy()
        return out


def store_names(encoder: Encoder) -> list[str]:
    """Folders of an encoder's stores below the one that is asked for: one a layer, or `[""]`, that
    folder itself.
    """
    layers = getattr(encoder, "layers", None)
    return layers.names if isinstance(layers, Layers) else [""]


def row_shape(encoder: Encoder) -> tuple[int, ...]:
    """Shape of an item's row: `(dim,)`, or `(L, dim)` of several layers."""
    layers = getattr(encoder, "layers", None)
    return (
        (len(layers.chosen), encoder.dim)
        if isinstance(layers, Layers) and layers.several
        else (encoder.dim,)
    )


def masked_mean(states: Tensor, mask: Tensor) -> Tensor:
    """Mean over the steps where `mask` `[n, T]` is 1 of `states` `[n, T, D] -> [n, D]`, float32."""
    weight = mask.unsqueeze(-1).float()
    return (states.float() * weight).sum(1) / weight.sum(1).clamp(min=1)


def check_batch_size(batch_size: int) -> int:
    """Refuse a batch of nothing.

    Raises:
        UserError: below 1.
    """
    if batch_size < 1:
        raise UserError(f"batch_size={batch_size} must be at least 1")
    return batch_size
