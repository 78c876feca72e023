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


def mutual_knn(x: Tensor, y: Tensor, k: int = 10) -> float:
    """Mean share of a pair's k nearest pairs that both spaces agree on.

    `mean_i |N_k(x_i) & N_k(y_i)| / k`, neighbours by cosine; by chance `k / (n - 1)`.

    Args:
        x, y: paired rows `[n, D_x]`, `[n, D_y]` of any length.
        k: neighbours, cut to n - 1.

    Source:
        Huh, Cheung, Wang, Isola, The Platonic Representation Hypothesis, arXiv 2405.07987.

    >>> x = torch.randn(100, 8)
    >>> mutual_knn(x, x @ torch.linalg.qr(torch.randn(8, 8))[0])  # a rotation
    1.0
    """
    return overlap(_nearest(x, k), _nearest(y, k))


def linear_cka(x: Tensor, y: Tensor) -> float:
    """`|X'Y|_F^2 / (|X'X|_F |Y'Y|_F)` of the centred rows: 1 up to rotation and scale.

    Far above 0 by chance where there are fewer pairs than dimensions: compare it with shuffled
    pairs, or take `debiased_cka`.

    Args:
        x, y: paired rows `[n, D_x]`, `[n, D_y]`.

    Returns:
        In [0, 1]; 0 where all rows of a side are the same.

    Source:
        Kornblith, Norouzi, Lee, Hinton, Similarity of Neural Network Representations Revisited,
        arXiv 1905.00414.

    >>> x = torch.randn(100, 8)
    >>> round(linear_cka(x, 3 * x + 1), 6)
    1.0
    """
    return _cka(_centered(x), _centered(y))


def _nearest(x: Tensor, k: int) -> Tensor:
    """Each row's k nearest other rows by cosine `[n, k]`."""
    return nearest_others(normalized(x), min(k, len(x) - 1))


def _centered(x: Tensor) -> tuple[Tensor, float]:
    """Rows less their mean, float64, and `|X'X|_F` of them."""
    centered = x.double() - x.double().mean(0)
    return centered, float((centered.T @ centered).norm())


def _cka(x: tuple[Tensor, float], y: tuple[Tensor, float]) -> float:
    """Linear CKA of two sides, each as `_centered` gives it."""
    scale = x[1] * y[1]
    return float((x[0].T @ y[0]).norm() ** 2 / scale) if scale > 0 else 0.0


@dataclass(frozen=True)
class _Layer:
    """What both measures read of one store, computed once for all stores it is compared with."""

    near: Tensor
    centered: tuple[Tensor, float]

    @classmethod
    def of(cls, x: Tensor, k: int) -> _Layer:
        return cls(_nearest(x, k), _centered(x))

    def reordered(self, order: Tensor) -> _Layer:
        """The same of the rows in another order `[n]`."""
        rows, scale = self.centered
        return _Layer(torch.argsort(order)[self.near[order]], (rows[order], scale))


@dataclass(frozen=True)
class Affinity:
    """Measures of two sides' pairs, and the same with the pairs shuffled.

    Attributes:
        pairs: how many.
        k: neighbours of the mutual kNN.
        table: one line per store of a and store of b, best mutual kNN first: columns `a`, `b`,
            `knn`, `knn_shuffled`, `cka`, `cka_shuffled`.
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
    """Mutual kNN and linear CKA of paired train items, one row per item and store.

    Test items are never read.

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
        key, value, least = ("k", k, 1) if k < 1 else ("most", most, 3)
        raise UserError(f"must be at least {least}", key=key, value=value)
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
        _one_row_per_item(rows, train, items, rng)
        for rows, train in ((rows_a, split.train_a), (rows_b, split.train_b))
    )
    order = torch.from_numpy(rng.permutation(len(items)))
    layers_a = [_Layer.of(torch.from_numpy(store.read(chosen_a)), k) for store in a]
    table = []
    for store_b in b:
        layer_b = _Layer.of(torch.from_numpy(store_b.read(chosen_b)), k)
        shuffled = layer_b.reordered(order)
        for store_a, layer_a in zip(a, layers_a, strict=True):
            table.append(
                {
                    "a": store_a.path.name,
                    "b": store_b.path.name,
                    "knn": overlap(layer_a.near, layer_b.near),
                    "knn_shuffled": overlap(layer_a.near, shuffled.near),
                    "cka": _cka(layer_a.centered, layer_b.centered),
                    "cka_shuffled": _cka(layer_a.centered, shuffled.centered),
                }
            )
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


def _one_row_per_item(
    table: pd.DataFrame, rows: np.ndarray, items: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Row numbers `[n]`: for each item one of its `rows`, drawn."""
    shuffled = rng.permutation(rows)
    first = pd.Series(shuffled, index=table["item"].to_numpy(dtype=str)[shuffled])
    return first[~first.index.duplicated()][items].to_numpy()


MAX_PAIRS = 4096
"""`debiased_cka` compares the first so many pairs: `n^2` similarities are held in memory."""


def debiased_cka(x: Tensor, y: Tensor) -> float:
    """Debiased CKA of paired rows under the cosine kernel: 1 for the same cosines, 0 by chance.

    `<K_x, K_y> / (|K_x| |K_y|)` of both matrices of cosines, U-centred (without the diagonal, rows
    and columns centred), so unrelated spaces have 0 on average however few the pairs. It uses all
    `n^2 / 2` relations between pairs, where a ranking uses n, so few pairs suffice. But it mostly
    sees the coarse structure that both spaces share, not whether a pair can be told from its
    neighbours.

    Args:
        x, y: paired rows `[n, D_x]`, `[n, D_y]`.

    Returns:
        In [-1, 1]; 0 of fewer than four pairs, or where all rows of a side are equally alike.

    Source:
        Kornblith, Norouzi, Lee, Hinton, arXiv 1905.00414; the unbiased estimator: Song, Smola,
        Gretton, Bedo, Borgwardt, JMLR 13, 2012.

    >>> _ = torch.manual_seed(0)
    >>> x = torch.randn(20, 200)
    >>> round(debiased_cka(x, 2 * x), 6)
    1.0
    >>> abs(debiased_cka(x, torch.randn(20, 200))) < 0.3  # `linear_cka` gives some 0.9
    True
    """
    k_x, k_y = (_u_centered(rows[:MAX_PAIRS]) for rows in (x, y))
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
