"""Cross-modal retrieval: ranks of the right answers, and the measures made from them.

Legend: `n` queries, `N` gallery rows, `P` (query, positive) pairs, `D` width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.stats import hypergeom, skew
from torch import Tensor
from torchmetrics import Metric

from gera_lightning.geometry.neighbors import search

TOP = (1, 5, 10)
FEW_POSITIVES = 8
"""Up to so many positives per query, each is compared with the whole row of scores; beyond, sorting
the row once is faster.
"""
MAX_SCORES = 2**26
"""Scores held in memory at once: with a large gallery fewer queries are scored at a time."""


def count_true(mask: Tensor) -> Tensor:
    """True entries of each row, `[n, N] -> [n]`; summing in 32 bits takes a third of the time."""
    return mask.sum(1, dtype=torch.int32)


class RetrievalRanks(Metric):
    """Retrieval measures from ranks: `r@1`, `r@5`, `r@10`, `mrr`, `median_rank`.

    `update(ranks)` takes the ranks of some queries (NaN: the query has no positive and does not
    count); `compute` is over all.
    """

    full_state_update = False
    higher_is_better = True
    ranks: list[Tensor]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("ranks", default=[], dist_reduce_fx="cat")

    def update(self, ranks: Tensor) -> None:
        """Add queries."""
        self.ranks.append(ranks[~ranks.isnan()])

    def compute(self) -> dict[str, Tensor]:
        """The measures over all queries."""
        ranks = torch.cat(list(self.ranks)) if isinstance(self.ranks, list) else self.ranks
        out = {f"r@{k}": (ranks <= k).double().mean() for k in TOP}
        return {**out, "mrr": (1 / ranks).mean(), "median_rank": ranks.quantile(0.5)}


def chance(item_q: np.ndarray, item_g: np.ndarray, top: int) -> float:
    """Expected R@top of a random order: `mean_i 1 - C(N - p_i, top) / C(N, top)`.

    `p_i` is the number of positives of query i; queries without one do not count.

    >>> round(chance(np.arange(40), np.arange(40), top=10), 6)  # 10 of 40 rows are looked at
    0.25
    """
    items, counts = np.unique(item_g, return_counts=True)
    place = np.searchsorted(items, item_q).clip(max=len(items) - 1)
    positives = np.where(items[place] == item_q, counts[place], 0)
    positives = positives[positives > 0]
    return float(np.mean(1 - hypergeom.pmf(0, len(item_g), positives, min(top, len(item_g)))))


@dataclass(frozen=True)
class Ranking:
    """Ranks of the positives of some queries, float64: best 1, ties at the mean rank.

    Attributes:
        best: rank of each query's best positive among the negatives, `1 + #{negatives above it} +
            #{negatives equal to it} / 2`, NaN for a query without a positive, `[n]`.
        query: number of the query of each (query, positive) pair `[P]`.
        rank: rank of the pair's positive in the gallery `[P]`.
        among: rank of the pair's positive among the query's positives `[P]`.
        size: rows of the gallery.
    """

    best: Tensor
    query: Tensor
    rank: Tensor
    among: Tensor
    size: int

    def of(self, chosen: Tensor) -> Ranking:
        """The ranking of some queries alone, given as a mask `[n]`."""
        kept = chosen[self.query]
        new_number = chosen.cumsum(0) - 1
        return Ranking(
            self.best[chosen],
            new_number[self.query[kept]],
            self.rank[kept],
            self.among[kept],
            self.size,
        )


def rank_positives(
    z_q: Tensor, z_g: Tensor, item_q: Tensor, item_g: Tensor, *, chunk: int = 4096
) -> Ranking:
    """Rank all positives of each query in the gallery.

    In a collapsed space, where all scores are equal, every positive ranks in the middle. NaN scores
    (of a map that diverged) count as the lowest. Queries without a positive are not scored.

    Args:
        z_q, z_g: rows whose dot product is the score `[n, D]`, `[N, D]`.
        item_q, item_g: item numbers `[n]`, `[N]`; equal numbers are positives.
        chunk: queries scored at once; changes memory, not the result.

    >>> z_q, z_g = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.9, 0.1], [0.5, 0.5], [1.0, 0.0]])
    >>> rank_positives(z_q, z_g, torch.tensor([7]), torch.tensor([7, 7, 3])).best
    tensor([2.], dtype=torch.float64)
    """
    best = torch.full((len(z_q),), torch.nan, dtype=torch.float64)
    query, rank, among = [torch.empty(0, dtype=torch.int64)], [best[:0]], [best[:0]]
    for rows in _query_parts(item_q, item_g, chunk):
        scores = z_q[rows] @ z_g.T
        scores.nan_to_num_(nan=torch.finfo(scores.dtype).min)
        positive = item_q[rows].unsqueeze(1) == item_g.unsqueeze(0)
        n_positives = count_true(positive)
        # The scores of each query's positives, best first. Queries have different numbers of
        # positives: shorter rows are padded with -inf, and `real` says what is no padding.
        own = scores.masked_fill(~positive, -torch.inf).topk(int(n_positives.max()), dim=1).values
        real = torch.arange(own.shape[1], device=own.device) < n_positives.unsqueeze(1)
        in_gallery, in_positives = _mean_ranks(scores, own), _mean_ranks(own, own)
        # No positive ranks above the best one, but some may tie with it. Less its rank among the
        # positives, its rank in the gallery counts negatives alone.
        best[rows.cpu()] = (in_gallery[:, 0] - in_positives[:, 0] + 1).cpu()
        query.append(rows[real.nonzero()[:, 0]].cpu())
        rank.append(in_gallery[real].cpu())
        among.append(in_positives[real].cpu())
    return Ranking(best, torch.cat(query), torch.cat(rank), torch.cat(among), len(z_g))


def _query_parts(item_q: Tensor, item_g: Tensor, chunk: int) -> Sequence[Tensor]:
    """Numbers of the queries that have a positive, as many at a time as memory allows."""
    numbers = torch.isin(item_q, item_g).nonzero()[:, 0]
    if not len(numbers):
        return ()
    return numbers.split(max(1, min(chunk, MAX_SCORES // max(len(item_g), 1))))


def _mean_ranks(scores: Tensor, values: Tensor) -> Tensor:
    """Ranks of `values [n, p]`, each of them one of its row's `scores [n, N]`.

    The largest ranks 1, ties get the mean of their ranks; `[n, p]`.
    """
    if values.shape[1] > FEW_POSITIVES:
        ascending = scores.sort(1).values
        not_above = torch.searchsorted(ascending, values, right=True)
        below = torch.searchsorted(ascending, values, right=False)
        above, equal = scores.shape[1] - not_above, not_above - below
    else:
        columns = values.split(1, dim=1)
        above = torch.stack([count_true(scores > value) for value in columns], dim=1)
        equal = torch.stack([count_true(scores == value) for value in columns], dim=1)
    return above.double() + (equal.double() + 1) / 2


def retrieval(ranking: Ranking, item_q: Tensor, item_g: Tensor) -> dict[str, float]:
    """All measures of one direction: those of `RetrievalRanks`, `map`, and `chance@10`.

    Args:
        ranking: of these queries in this gallery.
        item_q, item_g: their item numbers.
    """
    # One process evaluates: synchronizing would wait for the others for ever.
    metric = RetrievalRanks(sync_on_compute=False)
    metric.update(ranking.best)
    out = {name: float(value) for name, value in metric.compute().items()}
    out["map"] = mean_average_precision(ranking)
    return {**out, "chance@10": chance(item_q.cpu().numpy(), item_g.cpu().numpy(), 10)}


def mean_average_precision(ranking: Ranking) -> float:
    """Mean over queries of the average precision.

    A query's is the mean over its positives of `(rank among the positives) / (rank in the
    gallery)`. With ties both are mean ranks (our definition), so a query with one positive has one
    over its mean rank. Queries without a positive do not count.
    """
    total = torch.zeros(len(ranking.best), dtype=torch.float64).index_add_(
        0, ranking.query, ranking.among / ranking.rank
    )
    count = torch.bincount(ranking.query, minlength=len(total))
    return float((total / count)[count > 0].mean())


def foscttm(ranking: Ranking) -> float:
    """Fraction of gallery rows closer than the true match, mean over (query, positive) pairs.

    Best 0, chance 0.5. Results have the mean of both directions.

    Source:
        Liu et al., Jointly embedding multiple single-cell omics measurements, WABI 2019.
    """
    return float((ranking.rank - 1).sum()) / max(len(ranking.rank), 1) / max(ranking.size - 1, 1)


def hubness(z_q: Tensor, z_g: Tensor, k: int = 10) -> float:
    """Skewness of how often each gallery row is among the k best of a query (0: no hubs).

    Source:
        Radovanovic, Nanopoulos, Ivanovic, Hubs in space, JMLR 2010.
    """
    _, nearest = search(z_q, z_g, k, metric="ip")
    occurrence = np.bincount(nearest.cpu().numpy().ravel(), minlength=len(z_g))
    # In a gallery of k rows or fewer all are found by every query.
    return float(skew(occurrence)) if occurrence.std() > 0 else 0.0
