"""What became of each modality's own neighbourhoods under its map.

Legend: `n` rows, `N` rows of a gallery, `D` width, `k` neighbours.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn import manifold
from torch import Tensor

from gera_lightning.evaluation.retrieval import _count
from gera_lightning.geometry.neighbors import NeighborGraph, search


def knn_overlap(x: Tensor, z: Tensor, k: int = 10) -> float:
    """Mean share of each point's k nearest neighbours that it keeps: `mean_i |N_k(x_i) & N_k(z_i)|
    / k`, self left out.

    Args:
        x, z: unit rows before and after the map, `[n, D_in]`, `[n, D]`.
        k: neighbours, cut to n - 1.
    """
    k = min(k, len(x) - 1)
    return overlap(nearest_others(x, k), nearest_others(z, k))


def nearest_others(x: Tensor, k: int) -> Tensor:
    """Numbers `[n, k]` of each row's k nearest others, on the CPU; the row itself is taken out
    (among exact copies, the last found).
    """
    return NeighborGraph.of_search(*search(x, x, k + 1)).indices.cpu()


def overlap(near: Tensor, other: Tensor) -> float:
    """Mean share of the numbers in a list that the other list of the same row has: lists `[n, k]`
    without repeats.
    """
    shared = (near.unsqueeze(2) == other.unsqueeze(1)).any(2).sum(1)
    return float(shared.double().mean() / near.shape[1])


def evenly_spaced_indices(count: int, most: int) -> NDArray[np.int64]:
    """Row numbers, all of `count` or `most` of them spread evenly."""
    return np.unique(np.linspace(0, count - 1, min(most, count)).astype(np.int64))


def trustworthiness(x: Tensor, z: Tensor, k: int = 10, *, most: int = 2000) -> float:
    """How far new neighbours were away before: `1 - 2/(n k (2n - 3k - 1)) sum_i sum_(j in N_k(z_i)
    - N_k(x_i)) (r_x(i, j) - k)`.

    `r_x(i, j)` is j's rank by distance from i before the map. 1: no point came near that was not;
    0.5 or so: a random map. Continuity, how far old neighbours have gone, is the same with `x` and
        `z` exchanged.

    Args:
        x, z: unit rows before and after the map, `[n, D_in]`, `[n, D]`.
        k: neighbours, cut to below n / 2.
        most: rows compared at most, spread evenly over all: time and memory grow with n^2.

    Returns:
        the share; 1 for fewer than three rows.

    Source:
        Venna & Kaski, Neighborhood preservation in nonlinear projection methods, ICANN 2001;
        computed by scikit-learn.
    """
    kept = evenly_spaced_indices(len(x), most)
    k = min(k, (len(kept) - 1) // 2)
    return (
        float(manifold.trustworthiness(x.cpu().numpy()[kept], z.cpu().numpy()[kept], n_neighbors=k))
        if k > 0
        else 1.0
    )


def _best_ranks(scores: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """Rank of the best positive among the negatives, ties at the mean rank: `[n, N]` each `-> [n]`
    float64.
    """
    best = scores.masked_fill(~positive, -torch.inf).amax(1, keepdim=True)
    above, equal = _count((scores > best) & negative), _count((scores == best) & negative)
    return 1 + above.double() + equal.double() / 2


def label_precision(
    z: Tensor, item: Tensor, label: Tensor, k: int = 10, *, chunk: int = 4096
) -> float:
    """Share of each row's k nearest rows of other items that have its label; where scores tie at
    the k-th place, the expected share.

    Args:
        z: unit rows of one modality `[n, D]`.
        item, label: numbers of items and labels `[n]`; a negative label is none, and the row does
            not take part.
        k: neighbours, cut to what there is.

    Returns:
        the mean over rows that share their label with another item's row; NaN where none does.
    """
    kept = label >= 0
    z, item, label = z[kept], item[kept], label[kept]
    shares = [torch.empty(0, dtype=torch.float64)]
    for start in range(0, len(z), chunk):
        own = slice(start, start + chunk)
        other = item[own].unsqueeze(1) != item.unsqueeze(0)
        same = (label[own].unsqueeze(1) == label.unsqueeze(0)) & other
        scores = (z[own] @ z.T).masked_fill(~other, -torch.inf)
        cut = other.sum(1).clamp(max=k)
        last = scores.topk(min(k, len(z)), dim=1).values.gather(
            1, (cut - 1).clamp(min=0).unsqueeze(1)
        )
        above, level = scores > last, (scores == last) & other
        free = (cut - _count(above)) / _count(level)  # places left for the rows that tie, a row
        found = _count(above & same) + _count(level & same) * free.double()
        shares.append((found / cut)[same.any(1)].cpu())
    return float(torch.cat(shares).mean())


def group_recall(
    z: Tensor, item: Tensor, group: Tensor, top: int = 10, *, chunk: int = 4096
) -> float:
    """Share of rows that have a row of the same item and another group among their `top` nearest;
    ties at the mean rank.

    Rows of the same item and group are left out of the gallery; all other items' rows, of the row's
    own group too, are in it.

    Args:
        z: unit rows of one modality `[n, D]`.
        item, group: numbers of items and groups `[n]`; a negative group is none: such a row is no
            query and no positive.
        top: neighbours.

    Returns:
        the mean over rows that have such a row; NaN where there is none.
    """
    hits = [torch.empty(0, dtype=torch.bool)]
    for start in range(0, len(z), chunk):
        own = slice(start, start + chunk)
        same = item[own].unsqueeze(1) == item.unsqueeze(0)
        positive = (
            same
            & (group[own].unsqueeze(1) != group.unsqueeze(0))
            & (group[own] >= 0).unsqueeze(1)
            & (group >= 0).unsqueeze(0)
        )
        hits.append((_best_ranks(z[own] @ z.T, positive, ~same) <= top)[positive.any(1)].cpu())
    return float(torch.cat(hits).double().mean())
