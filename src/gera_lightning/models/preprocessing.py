"""What is done to frozen rows before a map: L2 normalisation and centring.

Legend: `n` rows, `D` width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gera_lightning.models.maps import normalized
from gera_lightning.utils.arrays import Rows, blocks

CHUNK = 16_384
"""Rows that are preprocessed, or mapped, at once."""


class Preprocessing(nn.Module):
    """`n(n(x) - mean)`: L2 normalisation, centring by the training rows' mean, normalisation again.

    Args:
        mean: `[D]` mean of the normalised training rows; None normalises only.

    >>> preprocess = Preprocessing.fit(torch.tensor([[2.0, 0.0], [0.0, 3.0]]))
    >>> preprocess.mean
    tensor([0.5000, 0.5000])
    >>> preprocess(torch.tensor([[7.0, 0.0]]))
    tensor([[ 0.7071, -0.7071]])
    """

    mean: Tensor | None

    def __init__(self, mean: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("mean", mean)

    @classmethod
    def fit(cls, x: Rows, center: bool = True) -> Preprocessing:
        """From training rows `[n, D]`, `CHUNK` of them at a time."""
        if not center:
            return cls(None)
        # sums in float64: those of many float32 rows would lose digits
        sums = [normalized(rows).sum(0, dtype=torch.float64) for rows in blocks(x, CHUNK)]
        return cls((torch.stack(sums).sum(0) / len(x)).to(x[:0].dtype))

    def forward(self, x: Tensor) -> Tensor:
        """`[n, D] -> [n, D]`."""
        x = normalized(x)
        return x if self.mean is None else normalized(x - self.mean)

    def overwrite(self, x: Tensor) -> Tensor:
        """The same in the place of `x`, `CHUNK` rows at a time: two copies may not fit."""
        for rows in x.split(CHUNK):
            rows.copy_(self(rows))
        return x
