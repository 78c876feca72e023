"""A shared space: two maps and the score between their images.

Legend: `n` rows, `N` pool rows, `D_a`, `D_b` frozen widths, `D` shared width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gera_lightning.models.maps import normalized
from gera_lightning.utils.errors import UserError
from gera_lightning.utils.instantiate import register


@register("csls")
class CSLS(nn.Module):
    """Cross-domain similarity local scaling against the pools: `cos(z_a, z_b) - weight (r_B(z_a) +
    r_A(z_b)) / 2`.

    `r_B(z_a)` is the mean cosine of `z_a` to its `k` nearest mapped pool rows of b, `r_A(z_b)`
    likewise: rows that are near to everything (hubs) are marked down. Against the pools, not the
        gallery, so a score never depends on what else is searched.

    Args:
        k: neighbours.
        weight: share of the correction; 1 is CSLS.
        pool_a, pool_b: mapped pool rows `[N, D]`, unit.

    Source:
        Conneau et al., Word translation without parallel data, arXiv 1710.04087; scaling by pools
        instead of queries is ours.
    """

    pool_a: Tensor
    pool_b: Tensor

    def __init__(self, k: int = 10, weight: float = 1.0, *, pool_a: Tensor, pool_b: Tensor) -> None:
        super().__init__()
        if k < 1:
            raise UserError(f"k={k} must be at least 1")
        if not weight >= 0:
            raise UserError(f"weight={weight} must be at least 0")
        self.k, self.weight = k, weight
        self.register_buffer("pool_a", pool_a)
        self.register_buffer("pool_b", pool_b)

    def nearness(self, z: Tensor, side: str) -> Tensor:
        """`r` of mapped rows of modality `side` `[n, D] -> [n]`: mean cosine to the nearest pool
        rows of the other modality.
        """
        pool = self.pool_b if side == "a" else self.pool_a
        k = min(self.k, len(pool))
        return (
            torch.cat([(rows @ pool.T).topk(k, dim=1).values.mean(1) for rows in z.split(4096)])
            if k
            else torch.zeros(len(z), device=z.device)
        )

    def penalty(self, z: Tensor, side: str) -> Tensor:
        """What the hubness of rows of modality `side` takes from their scores, `weight r / 2`,
        `[n]`.
        """
        return self.weight / 2 * self.nearness(z, side)


class SharedSpace(nn.Module):
    """Two maps into one space, and the score between their images: a cosine, or a corrected one.

    Args:
        map_a, map_b: maps of preprocessed rows.
        correction: local scaling of scores; None scores by cosine.
    """

    def __init__(self, map_a: nn.Module, map_b: nn.Module, correction: CSLS | None = None) -> None:
        super().__init__()
        self.map_a, self.map_b, self.correction = map_a, map_b, correction

    def embed(self, side: str, x: Tensor) -> Tensor:
        """Unit rows `[n, D]` of preprocessed rows of modality `side` (`a` or `b`)."""
        return normalized(self.map_a(x) if side == "a" else self.map_b(x))

    def queries(self, z: Tensor) -> Tensor:
        """Mapped rows as queries: their dot product with `gallery` rows ranks as the score does.
        `[n, D]`, or `[n, D + 1]`.
        """
        return z if self.correction is None else torch.cat([z, torch.ones_like(z[:, :1])], dim=1)

    def gallery(self, side: str, z: Tensor) -> Tensor:
        """Mapped rows as a gallery, see `queries`: `[z; -r/2]` under a correction, so one
        inner-product index serves.
        """
        return (
            z
            if self.correction is None
            else torch.cat([z, -self.correction.penalty(z, side).unsqueeze(1)], dim=1)
        )

    def offset(self, side: str, z: Tensor) -> Tensor | float:
        """What a query's own hubness takes from all its scores `[n, 1]`; it changes no ranking."""
        return 0.0 if self.correction is None else -self.correction.penalty(z, side).unsqueeze(1)
