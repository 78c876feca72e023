"""The protocol of a frozen encoder, and the base class of those that are torch networks.

Legend: `n` items, `T` steps of a sequence, `L` layers, `D` width of a row.
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
from gera_lightning.utils.instantiate import short_name

Inputs = dict[str, Tensor]
"""Input tensors of a network by name, first axis n."""


class Encoder(Protocol):
    """A frozen encoder of one modality.

    A class of yours that has these four is named in a YAML file by its import path, such as
    `{class: my_module.MyEncoder, size: 3}`. It may also have `batch_size`, and for audio
    `sample_rate` and `max_seconds`.

    >>> class Letters:
    ...     name, dim = "letters", 3
    ...     def describe(self):
    ...         return {"name": self.name, "dim": self.dim}
    ...     def encode(self, items):
    ...         rows = [[item.count(letter) for letter in "abc"] for item in items]
    ...         return np.array(rows, dtype=np.float32).reshape(-1, 3)
    >>> Letters().encode(["a cab", "bee"])
    array([[2., 1., 1.],
           [0., 1., 0.]], dtype=float32)
    """

    name: str
    dim: int

    def describe(self) -> dict[str, Any]:
        """Everything that changes the rows, for a store's manifest: name, revision, width ..."""
        ...

    def encode(self, items: Sequence[Any]) -> np.ndarray:
        """Rows `[len(items), dim]`, float32, in the order of `items`."""
        ...


class NetworkEncoder(ABC):
    """A frozen torch network as an encoder.

    `prepare` turns items into input tensors, on the CPU (in loader processes where there are some).
    `pooled` turns those into rows, on the network's device and under the precision that the caller
    sets. A row must not depend on the other items of its batch.

    Attributes:
        name, revision: what the network is, and which version of it.
        dim: width of a row.
        pooling, preprocessing: descriptions for the manifest.
        model: the network, in eval mode.
        batch_size: items per forward pass of `encode`.
        layers: which of the network's layers make rows; None for a network without that choice.

    >>> class Characters(NetworkEncoder):
    ...     name, revision, pooling, preprocessing = "characters", "1", "mean", "code points"
    ...     dim, batch_size = 4, 2
    ...     def __init__(self):
    ...         self.model = nn.Embedding(128, self.dim, padding_idx=0)
    ...     def settings(self):
    ...         return {}
    ...     def size(self, item):
    ...         return len(item)
    ...     def prepare(self, items):
    ...         codes = [torch.tensor([ord(character) for character in item]) for item in items]
    ...         return {"codes": nn.utils.rnn.pad_sequence(codes, batch_first=True)}
    ...     def pooled(self, inputs):
    ...         return masked_mean(self.model(inputs["codes"]), inputs["codes"] > 0)
    >>> encoder = Characters()
    >>> rows = encoder.encode(["dog", "a cat", "owls"])
    >>> rows.shape, bool(np.allclose(rows[0], encoder.encode(["dog"])[0]))
    ((3, 4), True)
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
        """Rows, float32 `[n, dim]`, or `[n, L, dim]` of several layers.

        Args:
            inputs: what `prepare` gave, on the network's device.
        """

    @abstractmethod
    def size(self, item: Any) -> int:
        """Length of an item; batches hold items of similar length, so that little is padded."""

    @abstractmethod
    def settings(self) -> Mapping[str, Any]:
        """The other settings that change the rows, for the manifest."""

    def describe(self) -> dict[str, Any]:
        """What a store's manifest records of this encoder."""
        keys = ("name", "revision", "dim", "pooling", "preprocessing")
        about = {key: getattr(self, key) for key in keys}
        name = short_name(type(self))
        ours = {} if "." in name else {"class": name}  # an import path is not for a manifest
        return {**ours, **about, **self.settings()}

    @property
    def device(self) -> torch.device:
        """Device of the network."""
        return next(self.model.parameters()).device

    @torch.inference_mode()
    def encode(self, items: Sequence[Any]) -> np.ndarray:
        """Rows as `pooled` gives them, in the order of `items`; batches are formed by length."""
        by_length = np.argsort([self.size(item) for item in items], kind="stable")
        out = np.empty((len(items), *row_shape(self)), dtype=np.float32)
        for start in range(0, len(by_length), self.batch_size):
            batch = by_length[start : start + self.batch_size]
            inputs = self.prepare([items[number] for number in batch])
            on_device = {name: value.to(self.device) for name, value in inputs.items()}
            out[batch] = self.pooled(on_device).cpu().numpy()
        return out


def store_names(encoder: Encoder) -> list[str]:
    """Folders of an encoder's stores inside the one that a user names: one per layer where there
    are several, else `[""]`, the folder itself.
    """
    layers = getattr(encoder, "layers", None)
    return layers.store_names if isinstance(layers, Layers) else [""]


def row_shape(encoder: Encoder) -> tuple[int, ...]:
    """Shape of an item's row: `(dim,)`, or `(L, dim)` of several layers."""
    layers = getattr(encoder, "layers", None)
    if isinstance(layers, Layers) and layers.several:
        return len(layers.chosen), encoder.dim
    return (encoder.dim,)


def masked_mean(states: Tensor, mask: Tensor) -> Tensor:
    """Mean of `states` `[n, T, D]` over the steps where `mask` `[n, T]` is 1: float32 `[n, D]`.

    >>> masked_mean(torch.tensor([[[1.0], [3.0], [9.0]]]), torch.tensor([[1, 1, 0]]))
    tensor([[2.]])
    """
    weight = mask.unsqueeze(-1).float()
    return (states.float() * weight).sum(1) / weight.sum(1).clamp(min=1)


def check_batch_size(batch_size: int) -> int:
    """Refuse a batch size below 1.

    Raises:
        UserError: naming it.
    """
    if batch_size < 1:
        raise UserError("must be at least 1", key="batch_size", value=batch_size)
    return batch_size
