"""FuseMix: the frozen rows of two pairs are mixed alike in both modalities, before the maps.

Legend: `B` pairs of a joined batch, `D_a`, `D_b` frozen widths.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gera_lightning.utils.errors import UserError
from gera_lightning.utils.instantiate import register


def mix(x: Tensor, partner: Tensor, share: float) -> Tensor:
    """`share x_i + (1 - share) x_partner(i)` of rows `[B, D]`, partners `[B]`; not normalised."""
    return torch.lerp(x[partner], x, share)


def mixed_items(item: Tensor, partner: Tensor) -> Tensor:
    """A number for each mixed pair, equal where both its items are: `[B]`, so that mixtures of the
    same two items stay positives.
    """
    pairs = torch.stack([item, item[partner]], dim=1)
    return torch.unique(pairs, dim=0, return_inverse=True)[1]


@register("fusemix")
@dataclass(frozen=True)
class FuseMix:
    """Mixes a batch's pairs: one lambda ~ Beta(alpha, alpha) and one permutation for both
    modalities.

    `x~_i = lambda x_i + (1 - lambda) x_p(i)`, `y~_i = lambda y_i + (1 - lambda) y_p(i)`: what is
    mixed alike is still a pair. The paper mixes two batches, here p permutes the one batch.

    Attributes:
        alpha: of the Beta distribution; 1 is uniform (the paper's).

    Source:
        Vouitsis et al., Data-efficient multimodal fusion on a single GPU, arXiv 2312.10144.
    """

    alpha: float = 1.0

    def __post_init__(self) -> None:
        if not self.alpha > 0:
            raise UserError(f"alpha={self.alpha} must be above 0")

    def __call__(
        self, x_a: Tensor, x_b: Tensor, item: Tensor, seed: int, step: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Mixed rows of the **joined** batch; lambda and permutation depend on (seed, step) alone.

        Args:
            x_a, x_b: paired rows `[B, D_a]`, `[B, D_b]`.
            item: item number of each pair `[B]`.
            seed, step: fix the draw.

        Returns:
            Mixed rows of a and of b, and a number for each mixed pair.
        """
        rng = np.random.default_rng([seed, step, 0xF0])
        share = float(rng.beta(self.alpha, self.alpha))
        partner = torch.from_numpy(rng.permutation(len(item))).to(item.device)
        return mix(x_a, partner, share), mix(x_b, partner, share), mixed_items(item, partner)
