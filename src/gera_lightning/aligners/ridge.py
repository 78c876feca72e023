"""Ridge regression between two frozen spaces: the closed-form yardstick.

Legend: `n` pairs, `N` pool rows, `D_in`, `D_out` widths.
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
    middle,
    regression_candidates,
)
from gera_lightning.aligners.estimator import Estimator
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
        `W` `[D_in, D_out]`, one per penalty.
    """
    u, s, vh = torch.linalg.svd(x, full_matrices=False)
    uy = u.T @ y
    mean = s.square().mean()
    for penalty in penalties:
        yield vh.T @ ((s / (s.square() + penalty * mean)).unsqueeze(1) * uy)


@register("ridge")
@dataclass(frozen=True, repr=False)
class Ridge(Estimator):
    """Ridge regression a->b, b->a, or both with their cosines averaged; the penalty is tuned.

    Attributes:
        direction: `both`, `a_to_b` or `b_to_a`, see `base.regression_maps`.
        smallest, largest: range of relative penalties, see `ridge_path`; evenly spaced in
            logarithm.

    >>> x_a = torch.randn(100, 8, generator=torch.Generator().manual_seed(0))
    >>> x_b = x_a[:, :6] + x_a[:, 2:]
    >>> form = Ridge().fit(x_a[:80], x_b[:80], penalty=0.1)
    >>> form
    Ridge(direction='both', smallest=0.01, largest=100.0) fitted with penalty=0.1
    >>> scores, rows = form.search(x_a[80:], x_b[80:], k=1)
    >>> rows[:, 0].tolist() == list(range(20))
    True
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

    def default_setting(self, pairs: int) -> Setting:  # noqa: ARG002
        """The middle penalty of the range."""
        return {"penalty": middle(self.smallest, self.largest)}

    def candidates(self, samples: FitData, settings: Sequence[Setting]) -> Iterator[Maps]:
        """The maps of each setting, from one decomposition per direction."""
        penalties = [setting["penalty"] for setting in settings]

        def fit(x: Tensor, y: Tensor, _pool: Tensor) -> Iterator[Linear]:
            return (Linear(*w.shape, weight=w) for w in ridge_path(x, y, penalties))

        return regression_candidates(samples, self.direction, fit)
