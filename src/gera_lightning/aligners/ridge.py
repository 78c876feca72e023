"""Ridge regression between two frozen spaces: the closed-form yardstick.

Legend: `n` pairs, `D_in`, `D_out` widths.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gera_lightning.aligners.base import (
    FitData,
    Maps,
    Setting,
    check_direction,
    check_range,
    grid,
    log_spaced,
    regression_maps,
)
from gera_lightning.models.maps import Linear
from gera_lightning.utils.instantiate import register


def ridge_path(x: Tensor, y: Tensor, penalties: Sequence[float]) -> Iterator[Tensor]:
    """Ridge maps for several penalties from one singular value decomposition.

    `W = argmin |x W - y|_F^2 + lam |W|_F^2`, `lam = penalty * |x|_F^2 / min(n, D_in)` (a multiple
    of the mean squared singular value, so that a penalty means the same at any n and width); `W = V
    diag(s / (s^2 + lam)) U' y`.

    Args:
        x: inputs `[n, D_in]`.
        y: targets `[n, D_out]`.
        penalties: relative penalties, above 0.

    Yields:
        `W` `[D_in, D_out]`, one a penalty.
    """
    u, s, vh = torch.linalg.svd(x, full_matrices=False)
    uy = u.T @ y
    mean = s.square().mean()
    for penalty in penalties:
        yield vh.T @ ((s / (s.square() + penalty * mean)).unsqueeze(1) * uy)


@register("ridge")
@dataclass(frozen=True)
class Ridge:
    """Ridge regression a->b, b->a, or both with their cosines averaged; the penalty is tuned.

    Attributes:
        direction: `both`, `a_to_b` or `b_to_a`, see `base.regression_maps`.
        smallest, largest: range of relative penalties, see `ridge_path`; evenly spaced in
            logarithm.
    """

    direction: str = "both"
    smallest: float = 1e-2
    largest: float = 1e2

    def __post_init__(self) -> None:
        check_direction(self.direction)
        check_range(self.smallest, self.largest)

    def settings(self, count: int, pairs: int) -> Sequence[Setting]:  # noqa: ARG002
        """`count` penalties, the strongest first."""
        return grid(count, penalty=log_spaced(self.largest, self.smallest, count))

    def candidates(self, samples: FitData, settings: Sequence[Setting]) -> Iterator[Maps]:
        """The maps of each setting, from one decomposition a direction."""
        x_a, x_b = samples.x_a, samples.x_b
        penalties = [setting["penalty"] for setting in settings]
        forward = (
            ridge_path(x_a, x_b, penalties)
            if self.direction != "b_to_a"
            else [None] * len(penalties)
        )
        backward = (
            ridge_path(x_b, x_a, penalties)
            if self.direction != "a_to_b"
            else [None] * len(penalties)
        )
        dim_a, dim_b = x_a.shape[1], x_b.shape[1]
        for a, b in zip(forward, backward, strict=True):
            a_to_b = None if a is None else Linear(dim_a, dim_b, weight=a)
            b_to_a = None if b is None else Linear(dim_b, dim_a, weight=b)
            yield regression_maps(dim_a, dim_b, a_to_b, b_to_a)
