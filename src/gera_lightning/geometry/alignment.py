"""How far two spaces agree on which rows are alike.

Legend: `n` pairs, `D_x`, `D_y` widths.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

MOST = 4096
"""Pairs that are compared at most, the first ones: `n^2` similarities are held in memory."""


def kernel_alignment(x: Tensor, y: Tensor) -> float:
    """Debiased CKA of paired rows under the cosine kernel: near 0 for unrelated spaces however few the pairs, 1 for the same similarities.

    `<K_x, K_y> / (|K_x| |K_y|)` of both matrices of cosines, U-centred: without their diagonals, and less their rows' and columns' means. It sees
    `n^2 / 2` relations between pairs where a ranking sees n, so few pairs say much; but it is led by the coarse structure that both
    spaces share, and does not see whether a pair can be told from its neighbours.

    Args:
        x, y: paired rows `[n, D_x]`, `[n, D_y]`.

    Returns:
        In [-1, 1]; 0 of fewer than four pairs, or where all rows of a side are equally alike.

    Source:
        Kornblith, Norouzi, Lee, Hinton, arXiv 1905.00414; the unbiased estimator: Song, Smola, Gretton, Bedo, Borgwardt, JMLR 13, 2012.
    """
    k_x, k_y = (_u_centered(rows[:MOST]) for rows in (x, y))
    scale = k_x.norm() * k_y.norm()
    return float((k_x * k_y).sum() / scale) if scale > 0 else 0.0


def _u_centered(x: Tensor) -> Tensor:
    """Cosines of rows `[n, D]` without the diagonal, less rows' and columns' means, `[n, n]` float64."""
    n, unit = len(x), normalize(x.double(), dim=1)
    if n < 4:
        return torch.zeros(n, n, dtype=torch.float64, device=x.device)
    k = (unit @ unit.T).fill_diagonal_(0)
    sums = k.sum(1) / (n - 2)
    return (k - sums - sums.unsqueeze(1) + sums.sum() / (n - 1)).fill_diagonal_(0)
