"""What audio encoders share: padding waves, counting frames, and averaging the frames of each
utterance.

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
    """Samples that one frame of stacked convolutions sees: the shortest audio with a frame.

    >>> receptive_field([10, 3], [5, 2])
    20
    """
    field = 1
    for kernel, stride in zip(reversed(kernels), reversed(strides), strict=True):
        field = (field - 1) * stride + kernel
    return field


def frame_counts(lengths: Tensor, kernels: Sequence[int], strides: Sequence[int]) -> Tensor:
    """Frames `[n]` that stacked convolutions without padding make of `lengths` `[n]` samples.

    >>> frame_counts(torch.tensor([19, 20, 30]), [10, 3], [5, 2])
    tensor([0, 1, 2])
    """
    for kernel, stride in zip(kernels, strides, strict=True):
        lengths = torch.div(lengths - kernel, stride, rounding_mode="floor") + 1
    return lengths


def pad_waves(waves: Sequence[np.ndarray], shortest: int) -> Inputs:
    """Waves as one tensor: `waves` `[n, S]`, zeros at their ends, and `lengths` `[n]`.

    Args:
        waves: `[S]` each.
        shortest: least length in samples; a shorter wave is padded to it.
    """
    lengths = torch.tensor([max(len(wave), shortest) for wave in waves])
    out = torch.zeros(len(waves), int(lengths.max()))
    for row, wave in zip(out, waves, strict=True):
        row[: len(wave)] = torch.from_numpy(wave)
    return {"waves": out, "lengths": lengths}


class AudioEncoder(NetworkEncoder):
    """A network on waves: items are mono audio arrays, rows are means of its frames.

    Attributes:
        sample_rate: of the waves, in Hz.
        max_seconds: longer audio is cut; None for no limit.
        layers: whose frames are averaged.
        normalize: L2-normalise the rows.
    """

    sample_rate: int
    max_seconds: float | None
    layers: Layers
    normalize: bool

    def size(self, item: np.ndarray) -> int:
        """Number of samples."""
        return len(item)

    def settings(self) -> Mapping[str, Any]:
        """The other settings that change the rows."""
        return {
            "layer": self.layers.numbers,
            "normalize": self.normalize,
            "sample_rate": self.sample_rate,
            "max_seconds": self.max_seconds,
        }

    def truncate(self, items: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Waves `[S]` float32 of at most `max_seconds`."""
        longest = None if self.max_seconds is None else round(self.max_seconds * self.sample_rate)
        return [np.asarray(item, dtype=np.float32)[:longest] for item in items]

    def pool(self, states: Sequence[Tensor], mask: Tensor) -> Tensor:
        """Rows `[n, D]`, or `[n, L, D]` of several layers: means of an utterance's frames.

        Args:
            states: frames `[n, T, D]` of each chosen layer.
            mask: `[n, T]`, 1 for the utterance's own frames, 0 for padding.
        """
        rows = self.layers.stack([masked_mean(frames, mask) for frames in states])
        return nn.functional.normalize(rows, dim=-1) if self.normalize else rows
