"""What became of each modality's own neighbourhoods under its map.

Legend: `n` rows, `N` rows of a gallery, `D` width, `k` neighbours.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn import manifold
from torch import Tensor

from gera_lightning.evaluation.retrieval import count_true
from gera_lightning.geometry.neighbors import NeighborGraph, search


def knn_overlap(x: Tensor, z: Tensor, k: int = 10) -> float:
    """Mean share of each row's k nearest neighbours that the map keeps.

    `mean_i |N_k(x_i) & N_k(z_i)| / k`; a row is no neighbour of itself.

    Args:
        x, z: unit rows before and after the map, `[n, D_in]`, `[n, D]`.
        k: neighbours, cut to n - 1.

    >>> x = torch.nn.functional.normalize(torch.randn(50, 8), dim=1)
    >>> knn_overlap(x, -x, k=5)  # a reflection moves no neighbour
    1.0
    """
    k = min(k, len(x) - 1)
    return overlap(nearest_others(x, k), nearest_others(z, k))


def nearest_others(x: Tensor, k: int) -> Tensor:
    """Numbers `[n, k]` of each row's k nearest other rows, on the CPU.

    Where a row has exact copies, the last one found stands for the row itself and is dropped.
    """
    return NeighborGraph.of_search(*search(x, x, k + 1)).indices.cpu()


def overlap(near: Tensor, other: Tensor) -> float:
    """Mean share of common numbers in each pair of lists, both `[n, k]` and without repeats."""
    shared = (near.unsqueeze(2) == other.unsqueeze(1)).any(2).sum(1)
    return float(shared.double().mean() / near.shape[1])


def evenly_spaced_indices(count: int, most: int) -> NDArray[np.int64]:
    """Row numbers, all of `count` or `most` of them spread evenly."""
    return np.unique(np.linspace(0, count - 1, min(most, count)).astype(np.int64))


def trustworthiness(x: Tensor, z: Tensor, k: int = 10, *, most: int = 2000) -> float:
    """How far away new neighbours were before the map; 1: no row came near that was not.

    `1 - 2/(n k (2n - 3k - 1)) sum_i sum_(j in N_k(z_i) - N_k(x_i)) (r_x(i, j) - k)`, where `r_x(i,
    j)` is j's rank by distance from i before the map. A random map has about 0.5. Continuity, how
    far old neighbours have gone, is the same with `x` and `z` exchanged.

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
    above, equal = count_true((scores > best) & negative), count_true((scores == best) & negative)
    return 1 + above.double() + equal.double() / 2


def label_precision(
    z: Tensor, item: Tensor, label: Tensor, k: int = 10, *, chunk: int = 4096
) -> float:
    """Share of each row's k nearest rows of other items that have its label.

    Where scores tie at the k-th place, the expected share of a random choice among them.

    Args:
        z: unit rows of one modality `[n, D]`.
        item, label: numbers of items and labels `[n]`; rows with a negative label have none and
            are left out.
        k: neighbours, cut to the number of other items' rows.
        chunk: rows compared at once; changes memory, not the result.

    Returns:
        the mean over rows that share their label with another item's row; NaN where none does.

    >>> label = torch.tensor([0, 0, 1, 1])
    >>> label_precision(torch.eye(2)[label], torch.arange(4), label, k=1)
    1.0
    """
    labelled = label >= 0
    z, item, label = z[labelled], item[labelled], label[labelled]
    shares = [torch.empty(0, dtype=torch.float64)]
    for start in range(0, len(z), chunk):
        part = slice(start, start + chunk)
        candidate = item[part].unsqueeze(1) != item.unsqueeze(0)
        same_label = (label[part].unsqueeze(1) == label.unsqueeze(0)) & candidate
        scores = (z[part] @ z.T).masked_fill(~candidate, -torch.inf)
        n_neighbors = candidate.sum(1).clamp(max=k)
        share = _share_in_top(scores, candidate, same_label, n_neighbors)
        shares.append(share[same_label.any(1)].cpu())
    return float(torch.cat(shares).mean())


def _share_in_top(scores: Tensor, candidate: Tensor, wanted: Tensor, top: Tensor) -> Tensor:
    """Share of wanted columns among each row's `top` best candidates, `[n]` float64.

    Args:
        scores: `[n, N]`, -inf where no candidate.
        candidate, wanted: masks `[n, N]`, the second part of the first.
        top: places of each row `[n]`, at most its candidates.
    """
    best = scores.topk(max(1, int(top.max())), dim=1).values
    last = best.gather(1, (top - 1).clamp(min=0).unsqueeze(1))  # the score at the last place
    above, tied = scores > last, (scores == last) & candidate
    # Of the candidates that tie at the last place, only some have room. Each has the same chance.
    chance_of_tied = (top - count_true(above)) / count_true(tied)
    found = count_true(above & wanted) + count_true(tied & wanted) * chance_of_tied.double()
    return found / top


def group_recall(
    z: Tensor, item: Tensor, group: Tensor, top: int = 10, *, chunk: int = 4096
) -> float:
    """Share of rows that find their item in another group among their `top` nearest rows.

    Ties count at the mean rank. The gallery holds the rows of all other items, whatever their
    group, and the same item's rows of other groups.

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
