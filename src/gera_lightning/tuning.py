"""Choosing a method's free setting inside the budget: cross-validation over the budget's own pairs.

Each fold's held-out pairs are queries both ways; the gallery is the held-out partners plus rows of the target's unpaired pool as
distractors (a small gallery alone would be too easy to tell settings apart). The criterion is the reciprocal rank, averaged over
both directions. Of all settings the simplest is taken whose paired difference to the best is within one standard error.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from gera_lightning.heads import normalized
from gera_lightning.metrics import best_positive_ranks


def reciprocal_ranks(z_a: Tensor, z_b: Tensor, items: Tensor, distractors_a: Tensor, distractors_b: Tensor) -> Tensor:
    """Reciprocal rank of each held-out pair, the mean of both directions, `[n]`.

    Args:
        z_a, z_b: unit rows of held-out pairs `[n, D]`.
        items: their item numbers, not negative.
        distractors_a, distractors_b: unit rows of the pools that join the galleries.
    """
    both = []
    for z_q, z_g, more in ((z_a, z_b, distractors_b), (z_b, z_a, distractors_a)):
        gallery = torch.cat([z_g, more])
        item_g = torch.cat([items, torch.full((len(more),), -1, dtype=items.dtype, device=items.device)])
        both.append(1 / best_positive_ranks(z_q, gallery, items, item_g))
    return (both[0] + both[1]) / 2


def held_out_score(
    map_a: torch.nn.Module, map_b: torch.nn.Module, held_a: Tensor, held_b: Tensor, items: Tensor, pool_a: Tensor, pool_b: Tensor
) -> Tensor:
    """`reciprocal_ranks` of frozen rows under two maps."""
    with torch.inference_mode():
        rows = [normalized(mapping(x)) for mapping, x in ((map_a, held_a), (map_b, held_b), (map_a, pool_a), (map_b, pool_b))]
        return reciprocal_ranks(rows[0], rows[1], items, rows[2], rows[3])


def choose(scores: np.ndarray) -> int:
    """The simplest setting within one standard error of the best.

    Args:
        scores: `[settings, n]` reciprocal ranks of the same n held-out pairs under each setting, the simplest setting first.

    Returns:
        number of the chosen setting: the first s with `mean(best - s) <= se(best - s)`, the difference taken pair by pair.
    """
    best = int(scores.mean(1).argmax())
    for number in range(best):
        difference = scores[best] - scores[number]
        error = difference.std(ddof=1) / np.sqrt(len(difference)) if len(difference) > 1 else 0.0
        if difference.mean() <= error:
            return number
    return best
