"""A shared space: two maps and the score between their images.

Legend: `n` rows, `N` pool rows, `D_a`, `D_b` frozen widths, `D` shared width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gera_lightning.models.maps import normalized
from gera_lightning.utils.errors import UserError
from gera_lightning.utils.instantiate import register


@register("csls")
class CSLS(nn.Module):
    """Cross-domain similarity local scaling against the pools.

    The score is `cos(z_a, z_b) - weight (r_B(z_a) + r_A(z_b)) / 2`.

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

    >>> pool = normalized(torch.eye(3))
    >>> CSLS(k=2, pool_a=pool, pool_b=pool).nearness(pool[:1], "a")
    tensor([0.5000])
    """

    pool_a: Tensor
    pool_b: Tensor

    def __init__(self, k: int = 10, weight: float = 1.0, *, pool_a: Tensor, pool_b: Tensor) -> None:
        super().__init__()
        if k < 1:
            raise UserError("must be at least 1", key="k", value=k)
        if not weight >= 0:
            raise UserError("must be at least 0", key="weight", value=weight)
        self.k, self.weight = k, weight
        self.register_buffer("pool_a", pool_a)
        self.register_buffer("pool_b", pool_b)

    def describe(self) -> dict[str, Any]:
        """Kind and settings, for `aligner.json`."""
        pools = [len(self.pool_a), len(self.pool_b)]
        return {"kind": "csls", "k": self.k, "weight": self.weight, "pool": pools}

    def extra_repr(self) -> str:
        """Its settings, as torch shows them."""
        return f"k={self.k}, weight={self.weight:g}"

    def nearness(self, z: Tensor, side: str) -> Tensor:
        """Mean cosine of rows of modality `side` to the other's nearest pool rows, `r` `[n]`."""
        pool = self.pool_b if side == "a" else self.pool_a
        k = min(self.k, len(pool))
        if not k:
            return torch.zeros(len(z), device=z.device)
        # in parts: all cosines to a large pool may not fit in memory
        return torch.cat([(rows @ pool.T).topk(k, dim=1).values.mean(1) for rows in z.split(4096)])

    def penalty(self, z: Tensor, side: str) -> Tensor:
        """Hubness of rows of modality `side`, `weight r / 2` `[n]`: subtracted from scores."""
        return self.weight / 2 * self.nearness(z, side)


class SharedSpace(nn.Module):
    """Two maps into one space, and the score between their images: a cosine, or a corrected one.

    Args:
        map_a, map_b: maps of preprocessed rows.
        correction: local scaling of scores; None scores by cosine.

    >>> space = SharedSpace(nn.Identity(), nn.Identity())
    >>> z_a, z_b = space.embed("a", torch.eye(2)), space.embed("b", torch.ones(1, 2))
    >>> space.queries(z_a) @ space.gallery("b", z_b).T
    tensor([[0.7071],
            [0.7071]])
    """

    def __init__(self, map_a: nn.Module, map_b: nn.Module, correction: CSLS | None = None) -> None:
        super().__init__()
        self.map_a, self.map_b, self.correction = map_a, map_b, correction

    def embed(self, side: str, x: Tensor) -> Tensor:
        """Unit rows `[n, D]` of preprocessed rows of modality `side` (`a` or `b`)."""
        return normalized(self.map_a(x) if side == "a" else self.map_b(x))

    def queries(self, z: Tensor) -> Tensor:
        """Mapped rows as queries, `[n, D]`, or `[n, D + 1]` under a correction.

        Their dot product with `gallery` rows ranks as the score does.
        """
        if self.correction is None:
            return z
        return torch.cat([z, torch.ones_like(z[:, :1])], dim=1)

    def gallery(self, side: str, z: Tensor) -> Tensor:
        """Mapped rows as a gallery, see `queries`: under a correction `[z; -r/2]`.

        So one inner-product index serves.
        """
        if self.correction is None:
            return z
        return torch.cat([z, -self.correction.penalty(z, side).unsqueeze(1)], dim=1)

    def offset(self, side: str, z: Tensor) -> Tensor | float:
        """Minus each query's hubness `[n, 1]`, for all its scores; it changes no ranking."""
        return 0.0 if self.correction is None else -self.correction.penalty(z, side).unsqueeze(1)
