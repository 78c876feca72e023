"""Measures of a shared space: cross-modal retrieval, and what became of each modality's own
neighbourhoods.

Legend: `n` queries, `N` gallery rows, `D` width. Names of results: `<direction>/<measure>`,
direction `ab` (queries of a, gallery of b) or `ba`; `<modality>/<measure>` for measures within a
modality, `/before` and `/after` the map where both are measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.stats import hypergeom, skew
from torch import Tensor
from torchmetrics import Metric

from gera_lightning.geometry.neighbors import search

TOP = (1, 5, 10)
FEW = 8
"""Positives of a query up to which they are counted against one by one; sorting the row is faster
above.
"""
CELLS = 2**26
"""Scores that are held at once at most: of a large gallery fewer queries are scored at a time."""


def _count(found: Tensor) -> Tensor:
    """Of how many columns each row holds, `[n, N] -> [n]`; in 32 bits it takes a third of the time."""
    return found.sum(1, dtype=torch.int32)


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
    """Expected R@top of a random order of the gallery: `mean_i 1 - C(N - p_i, top) / C(N, top)`,
    `p_i` positives of query i.
    """
    items, counts = np.unique(item_g, return_counts=True)
    found = np.searchsorted(items, item_q).clip(max=len(items) - 1)
    positives = np.where(items[found] == item_q, counts[found], 0)
    positives = positives[positives > 0]
    return float(np.mean(1 - hypergeom.pmf(0, len(item_g), positives, min(top, len(item_g)))))


@dataclass(frozen=True)
class Ranking:
    """Where the positives of some queries rank in a gallery: best 1, ties at the mean rank,
    float64.

    Attributes:
        best: rank of each query's best positive among the negatives, `1 + #{negatives above it} +
            #{negatives equal to it} / 2`, NaN for a query without a positive, `[n]`.
        query: number of the query of each (query, positive) pair `[P]`.
        rank: rank of its positive in the gallery `[P]`.
        among: rank of its positive among the query's positives `[P]`.
        size: rows of the gallery.
    """

    best: Tensor
    query: Tensor
    rank: Tensor
    among: Tensor
    size: int

    def of(self, asked: Tensor) -> Ranking:
        """The same of some queries alone, a mask `[n]`."""
        kept = asked[self.query]
        return Ranking(
            self.best[asked],
            (asked.cumsum(0) - 1)[self.query[kept]],
            self.rank[kept],
            self.among[kept],
            self.size,
        )


def rank_positives(
    z_q: Tensor, z_g: Tensor, item_q: Tensor, item_g: Tensor, *, chunk: int = 4096
) -> Ranking:
    """Rank all positives of each query; a collapsed space, all scores equal, ranks in the middle.

    A score that is no number, of a row that a diverged map gave, is the lowest. Queries without a
    positive are not scored.

    Args:
        z_q, z_g: rows whose dot product is the score `[n, D]`, `[N, D]`.
        item_q, item_g: item numbers; equal numbers are positives.
        chunk: queries scored at once at most; the result does not depend on it.
    """
    best = torch.full((len(z_q),), torch.nan, dtype=torch.float64)
    query, rank, among = [torch.empty(0, dtype=torch.int64)], [best[:0]], [best[:0]]
    asked = torch.isin(item_q, item_g).nonzero()[:, 0]
    for rows in asked.split(max(1, min(chunk, CELLS // max(len(z_g), 1)))) if len(asked) else ():
        scores = z_q[rows] @ z_g.T
        scores.nan_to_num_(nan=torch.finfo(scores.dtype).min)
        positive = item_q[rows].unsqueeze(1) == item_g.unsqueeze(0)
        count = _count(positive)
        own = scores.masked_fill(~positive, -torch.inf).topk(int(count.max()), dim=1).values
        real = torch.arange(own.shape[1], device=own.device) < count.unsqueeze(1)
        in_all, in_own = _mean_ranks(scores, own), _mean_ranks(own, own)
        # no other positive stands above the best, but some may be level with it
        best[rows.cpu()] = (in_all[:, 0] - in_own[:, 0] + 1).cpu()
        query.append(rows[real.nonzero()[:, 0]].cpu())
        rank.append(in_all[real].cpu())
        among.append(in_own[real].cpu())
    return Ranking(best, torch.cat(query), torch.cat(rank), torch.cat(among), len(z_g))


def _mean_ranks(scores: Tensor, values: Tensor) -> Tensor:
    """Ranks of `values [n, p]` in their rows of `scores [n, N]`, where they stand too: largest 1,
    ties at the mean rank, `[n, p]`.
    """
    if values.shape[1] > FEW:
        ordered = scores.sort(1).values
        after, before = (
            torch.searchsorted(ordered, values, right=right) for right in (True, False)
        )
        above, equal = scores.shape[1] - after, after - before
    else:
        columns = values.split(1, dim=1)
        above, equal = (
            torch.stack([_count(compare(scores, value)) for value in columns], dim=1)
            for compare in (torch.gt, torch.eq)
        )
    return above.double() + (equal.double() + 1) / 2


def retrieval(ranking: Ranking, item_q: Tensor, item_g: Tensor) -> dict[str, float]:
    """All measures of one direction; see `RetrievalRanks`, `map` (`mean_average_precision`) and
    `chance@10`.
    """
    metric = RetrievalRanks(
        sync_on_compute=False
    )  # one process evaluates: a gather would wait for the others for ever
    metric.update(ranking.best)
    out = {name: float(value) for name, value in metric.compute().items()}
    out["map"] = mean_average_precision(ranking)
    return {**out, "chance@10": chance(item_q.cpu().numpy(), item_g.cpu().numpy(), 10)}


def mean_average_precision(ranking: Ranking) -> float:
    """Mean over queries of the average precision, `mean_p (rank of p among the positives) / (rank
    of p in the gallery)`.

    With ties both are mean ranks (ours), so a query with one positive scores one over its mean
    rank. Queries without a positive do not count.
    """
    total = torch.zeros(len(ranking.best), dtype=torch.float64).index_add_(
        0, ranking.query, ranking.among / ranking.rank
    )
    count = torch.bincount(ranking.query, minlength=len(total))
    return float((total / count)[count > 0].mean())


def foscttm(
    z_a: Tensor, z_b: Tensor, item_a: Tensor, item_b: Tensor, *, chunk: int = 4096
) -> float:
    """Fraction of gallery samples closer than the true match, averaged over positives, queries and
    both directions (best 0).

    Source:
        Liu et al., Jointly embedding multiple single-cell omics measurements, WABI 2019.
    """
    ways = ((z_a, z_b, item_a, item_b), (z_b, z_a, item_b, item_a))
    return float(np.mean([foscttm_one_way(rank_positives(*way, chunk=chunk)) for way in ways]))


def foscttm_one_way(ranking: Ranking) -> float:
    """`foscttm` of one direction: where scores are corrected, the two directions rank by other
    rows.
    """
    return float((ranking.rank - 1).sum()) / max(len(ranking.rank), 1) / max(ranking.size - 1, 1)


def hubness(z_q: Tensor, z_g: Tensor, k: int = 10) -> float:
    """Skewness of the k-occurrence: how often each gallery row is among the k nearest of a query
    (0: no hubs).

    Source:
        Radovanovic, Nanopoulos, Ivanovic, Hubs in space, JMLR 2010.
    """
    _, found = search(z_q, z_g, k, metric="ip")
    occurrence = np.bincount(found.cpu().numpy().ravel(), minlength=len(z_g))
    return (
        float(skew(occurrence)) if occurrence.std() > 0 else 0.0
    )  # a gallery of k rows or fewer has no hubs
