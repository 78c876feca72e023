"""Ridge regression between two frozen spaces: the closed-form yardstick.

Legend: `n` pairs, `D_a`, `D_b` frozen widths.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gera_lightning.errors import UserError, did_you_mean
from gera_lightning.heads import Concat, Identity, Linear

DIRECTIONS = ("both", "a_to_b", "b_to_a")


def ridge_path(x: Tensor, y: Tensor, penalties: Sequence[float]) -> Iterator[Tensor]:
    """Ridge maps for several penalties from one singular value decomposition.

    `W = argmin |x W - y|_F^2 + lam |W|_F^2`, `lam = penalty * |x|_F^2 / min(n, D_in)` (a multiple of the mean squared singular
    value, so that a penalty means the same at any n and width); `W = V diag(s / (s^2 + lam)) U' y`.

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


@dataclass(frozen=True)
class Ridge:
    """Ridge regression a->b, b->a, or both with their cosines averaged.

    With `direction="both"`, `z_a = [n(x_a A); n(x_a)] / sqrt 2` and `z_b = [n(x_b); n(x_b B)] / sqrt 2`, A fitted a->b and B b->a.

    Attributes:
        direction: `both`, `a_to_b` or `b_to_a`.
        smallest, largest: range of relative penalties, see `ridge_path`; evenly spaced in logarithm.
    """

    direction: str = "both"
    smallest: float = 1e-2
    largest: float = 1e2

    def __post_init__(self) -> None:
        if self.direction not in DIRECTIONS:
            raise UserError(f"direction={self.direction!r} is not one{did_you_mean(self.direction, DIRECTIONS)}")
        if not 0 < self.smallest <= self.largest:
            raise UserError(f"smallest={self.smallest} must be above 0 and at most largest={self.largest}")

    def settings(self, count: int) -> list[dict[str, float]]:
        """`count` settings, the simplest (strongest penalty) first."""
        low, high = torch.tensor([self.smallest, self.largest], dtype=torch.float64).log10().tolist()
        return [{"penalty": float(p)} for p in torch.logspace(high, low, count, dtype=torch.float64)]

    def candidates(self, x_a: Tensor, x_b: Tensor, settings: Sequence[dict[str, float]]) -> Iterator[tuple[nn.Module, nn.Module]]:
        """Maps of both modalities for each setting.

        Args:
            x_a, x_b: paired rows `[n, D_a]`, `[n, D_b]`, preprocessed.
            settings: as from `settings`.
        """
        penalties = [setting["penalty"] for setting in settings]
        dim_a, dim_b = x_a.shape[1], x_b.shape[1]
        forward = ridge_path(x_a, x_b, penalties) if self.direction != "b_to_a" else [None] * len(penalties)
        backward = ridge_path(x_b, x_a, penalties) if self.direction != "a_to_b" else [None] * len(penalties)
        for a, b in zip(forward, backward, strict=True):
            map_a = [] if a is None else [Linear(dim_a, dim_b, weight=a)]
            map_b = [] if a is None else [Identity(dim_b)]
            map_a += [] if b is None else [Identity(dim_a)]
            map_b += [] if b is None else [Linear(dim_b, dim_a, weight=b)]
            yield (Concat(*map_a), Concat(*map_b)) if self.direction == "both" else (map_a[0], map_b[0])
