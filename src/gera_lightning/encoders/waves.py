"""What audio encoders share: waves side by side, frames of convolutions, rows as means over an
utterance's own frames of a layer.

Legend: `n` utterances, `S` samples, `T` frames, `L` layers, `D` width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gera_lightning.encoders.base import Inputs, NetworkEncoder, masked_mean
from gera_lightning.encoders.layers import Layers


def receptive_field(kernels: Sequence[int], strides: Sequence[int]) -> int:
    """FitData that one frame of stacked convolutions sees: the shortest audio with a frame."""
    field = 1
    for kernel, stride in zip(reversed(kernels), reversed(strides), strict=True):
        field = (field - 1) * stride + kernel
    return field


def frames_of(lengths: Tensor, kernels: Sequence[int], strides: Sequence[int]) -> Tensor:
    """Frames `[n]` that stacked convolutions without padding make of `lengths` `[n]` samples."""
    for kernel, stride in zip(kernels, strides, strict=True):
        lengths = torch.div(lengths - kernel, stride, rounding_mode="floor") + 1
    return lengths


def padded(waves: Sequence[np.ndarray], shortest: int) -> Inputs:
    """Waves side by side: `waves` `[n, S]` with zeros behind, and `lengths` `[n]`, each at least
    `shortest` samples.
    """
    lengths = torch.tensor([max(len(wave), shortest) for wave in waves])
    out = torch.zeros(len(waves), int(lengths.max()))
    for row, wave in zip(out, waves, strict=True):
        row[: len(wave)] = torch.from_numpy(wave)
    return {"waves": out, "lengths": lengths}


class AudioEncoder(NetworkEncoder):
    """Waves as items, cut to a length; a network's frames pooled to rows."""

    sample_rate: int
    max_seconds: float | None
    layers: Layers
    normalize: bool

    def size(self, item: np.ndarray) -> int:
        """FitData."""
        return len(item)

    def settings(self) -> Mapping[str, Any]:
        """What else changes the rows."""
        return {
            "layer": self.layers.record,
            "normalize": self.normalize,
            "sample_rate": self.sample_rate,
            "max_seconds": self.max_seconds,
        }

    def cut(self, items: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Waves `[S]` float32 of at most `max_seconds`."""
        longest = None if self.max_seconds is None else round(self.max_seconds * self.sample_rate)
        return [np.asarray(item, dtype=np.float32)[:longest] for item in items]

    def pool(self, states: Sequence[Tensor], mask: Tensor) -> Tensor:
        """Rows `[n, D]`, or `[n, L, D]`, of the chosen layers' frames `[n, T, D]`: means where
        `mask` `[n, T]` holds.
        """
        rows = self.layers.joined([masked_mean(each, mask) for each in states])
        return nn.functional.normalize(rows, dim=-1) if self.normalize else rows
