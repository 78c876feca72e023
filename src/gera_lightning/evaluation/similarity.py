"""How alike frozen spaces are, before anything is trained: mutual neighbours and linear CKA of
paired rows, layer by layer.

Legend: `n` pairs, `D_a`, `D_b` widths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import normalize

from gera_lightning.data.splits import matched_items, split_items
from gera_lightning.data.store import EmbeddingStore
from gera_lightning.evaluation.neighborhoods import nearest_others, overlap
from gera_lightning.models.maps import normalized
from gera_lightning.utils.errors import UserError


@dataclass(frozen=True)
class Space:
    """What the measures read of one space's rows, computed once however many spaces it is compared
    with.

    Attributes:
        near: each row's k nearest others by cosine `[n, k]`.
        centred: rows less their mean `[n, D]`, float64.
        scale: `|A'A|_F` of the centred rows.
    """

    near: Tensor
    centred: Tensor
    scale: float

    @classmethod
    def of(cls, x: Tensor, k: int) -> Space:
        """Of rows `[n, D]` of any length; `k` is cut to n - 1."""
        centred = x.double() - x.double().mean(0)
        return cls(
            nearest_others(normalized(x), min(k, len(x) - 1)),
            centred,
            float((centred.T @ centred).norm()),
        )

    def reordered(self, order: Tensor) -> Space:
        """The space of the rows in another order `[n]`."""
        return Space(torch.argsort(order)[self.near[order]], self.centred[order], self.scale)


def mutual_knn(a: Space, b: Space) -> float:
    """Mean share of a pair's k nearest pairs that both spaces agree on: `mean_i |N_k(a_i) &
    N_k(b_i)| / k`, by cosine.

    Args:
        a, b: spaces of paired rows.

    Source:
        Huh, Cheung, Wang, Isola, The Platonic Representation Hypothesis, arXiv 2405.07987. By
        chance it is `k / (n - 1)`.
    """
    return overlap(a.near, b.near)


def linear_cka(a: Space, b: Space) -> float:
    """`|A'B|_F^2 / (|A'A|_F |B'B|_F)` of the centred rows: 1 up to rotation and scale, and far
    above 0 by chance where n is below D.

    Args:
        a, b: spaces of paired rows.

    Returns:
        In [0, 1]; 0 where all rows of a side are the same.

    Source:
        Kornblith, Norouzi, Lee, Hinton, Similarity of Neural Network Representations Revisited,
        arXiv 1905.00414.
    """
    scale = a.scale * b.scale
    return float((a.centred.T @ b.centred).norm() ** 2 / scale) if scale > 0 else 0.0


@dataclass(frozen=True)
class Affinity:
    """Measures of two sides' pairs, and the same with the pairs shuffled.

    Attributes:
        pairs: how many.
        k: neighbours of the mutual kNN.
        table: one line a store of a and of b, best mutual kNN first: columns `a`, `b`, `knn`,
            `knn_shuffled`, `cka`, `cka_shuffled`.
    """

    pairs: int
    k: int
    table: pd.DataFrame


def affinity(
    a: Sequence[EmbeddingStore],
    b: Sequence[EmbeddingStore],
    *,
    k: int = 10,
    most: int = 5000,
    seed: int = 0,
    test_share: float = 0.15,
) -> Affinity:
    """Mutual kNN alignment and linear CKA of one row a store of each train item; test items are
    never read.

    Args:
        a, b: stores with common items; several of a side are layers of one encoder, with the same
            rows.
        k: neighbours of the mutual kNN.
        most: pairs at most, drawn by `seed`.
        seed: also of the row of each item, and of the shuffled pairs.
        test_share: as `data.test_share`, where the stores give no split.

    Raises:
        UserError: fewer than three common items, stores of a side with other rows, or a value that
            is refused.
    """
    if k < 1 or most < 3:
        raise UserError(f"k={k} must be at least 1 and most={most} at least 3")
    rows_a, rows_b = _common_rows(a), _common_rows(b)
    split = split_items(rows_a, rows_b, test_share=test_share)
    items = matched_items(rows_a, rows_b, split)
    if len(items) < 3:
        raise UserError(
            f"{a[0].path} and {b[0].path} have {len(items)} train items in common: pairs are rows"
            " with the same `item`"
        )
    rng = np.random.default_rng(seed)
    items = rng.permutation(items)[:most]
    chosen_a, chosen_b = (
        _one_row_an_item(rows, train, items, rng)
        for rows, train in ((rows_a, split.train_a), (rows_b, split.train_b))
    )
    order = torch.from_numpy(rng.permutation(len(items)))
    spaces_a = [Space.of(torch.from_numpy(store.read(chosen_a)), k) for store in a]
    table = []
    for store_b in b:
        space_b = Space.of(torch.from_numpy(store_b.read(chosen_b)), k)
        shuffled = space_b.reordered(order)
        for store_a, space_a in zip(a, spaces_a, strict=True):
            found = {
                "knn": mutual_knn(space_a, space_b),
                "knn_shuffled": mutual_knn(space_a, shuffled),
            }
            found |= {
                "cka": linear_cka(space_a, space_b),
                "cka_shuffled": linear_cka(space_a, shuffled),
            }
            table.append({"a": store_a.path.name, "b": store_b.path.name, **found})
    best_first = pd.DataFrame(table).sort_values(
        "knn", ascending=False, kind="stable", ignore_index=True
    )
    return Affinity(len(items), min(k, len(items) - 1), best_first)


def _common_rows(stores: Sequence[EmbeddingStore]) -> pd.DataFrame:
    """The table of rows that all stores of a side have."""
    rows = stores[0].rows
    for other in stores[1:]:
        if not rows["row"].equals(other.rows["row"]):
            raise UserError(
                f"{stores[0].path} and {other.path} hold different rows: compare stores that `gera"
                " embed` made in one run"
            )
    return rows


def _one_row_an_item(
    table: pd.DataFrame, rows: np.ndarray, items: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Row numbers `[n]`, of each item one drawn of `rows`."""
    shuffled = rng.permutation(rows)
    first = pd.Series(shuffled, index=table["item"].to_numpy(dtype=str)[shuffled])
    return first[~first.index.duplicated()][items].to_numpy()


MOST = 4096
"""Pairs that are compared at most, the first ones: `n^2` similarities are held in memory."""


def debiased_cka(x: Tensor, y: Tensor) -> float:
    """Debiased CKA of paired rows under the cosine kernel: near 0 for unrelated spaces however few
    the pairs, 1 for the same similarities.

    `<K_x, K_y> / (|K_x| |K_y|)` of both matrices of cosines, U-centred: without their diagonals,
    and less their rows' and columns' means. It sees `n^2 / 2` relations between pairs where a
    ranking sees n, so few pairs say much; but it is led by the coarse structure that both spaces
    share, and does not see whether a pair can be told from its neighbours.

    Args:
        x, y: paired rows `[n, D_x]`, `[n, D_y]`.

    Returns:
        In [-1, 1]; 0 of fewer than four pairs, or where all rows of a side are equally alike.

    Source:
        Kornblith, Norouzi, Lee, Hinton, arXiv 1905.00414; the unbiased estimator: Song, Smola,
        Gretton, Bedo, Borgwardt, JMLR 13, 2012.
    """
    k_x, k_y = (_u_centered(rows[:MOST]) for rows in (x, y))
    scale = k_x.norm() * k_y.norm()
    return float((k_x * k_y).sum() / scale) if scale > 0 else 0.0


def _u_centered(x: Tensor) -> Tensor:
    """Cosines of rows `[n, D]` without the diagonal, less rows' and columns' means, `[n, n]`
    float64.
    """
    n, unit = len(x), normalize(x.double(), dim=1)
    if n < 4:
        return torch.zeros(n, n, dtype=torch.float64, device=x.device)
    k = (unit @ unit.T).fill_diagonal_(0)
    sums = k.sum(1) / (n - 2)
    return (k - sums - sums.unsqueeze(1) + sums.sum() / (n - 1)).fill_diagonal_(0)
