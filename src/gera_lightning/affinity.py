"""How alike two frozen spaces are, before anything is trained: mutual neighbours and linear CKA of paired rows.

Legend: `n` pairs, `D_a`, `D_b` widths.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from gera_lightning.data.splits import matched_items, split_items
from gera_lightning.data.store import EmbeddingStore
from gera_lightning.errors import UserError
from gera_lightning.heads import normalized
from gera_lightning.metrics import knn_overlap


def mutual_knn(x_a: Tensor, x_b: Tensor, k: int = 10) -> float:
    """Mean share of a pair's k nearest pairs that both spaces agree on: `mean_i |N_k(a_i) & N_k(b_i)| / k`, by cosine.

    Args:
        x_a, x_b: paired rows `[n, D_a]`, `[n, D_b]`, of any length.
        k: neighbours, cut to n - 1.

    Source:
        Huh, Cheung, Wang, Isola, The Platonic Representation Hypothesis, arXiv 2405.07987. By chance it is `k / (n - 1)`.
    """
    return knn_overlap(normalized(x_a), normalized(x_b), k)


def linear_cka(x_a: Tensor, x_b: Tensor) -> float:
    """`|A'B|_F^2 / (|A'A|_F |B'B|_F)` of the centred rows: 1 up to rotation and scale, and far above 0 by chance where n is below D.

    Args:
        x_a, x_b: paired rows `[n, D_a]`, `[n, D_b]`.

    Returns:
        In [0, 1]; 0 where all rows of a side are the same.

    Source:
        Kornblith, Norouzi, Lee, Hinton, Similarity of Neural Network Representations Revisited, arXiv 1905.00414.
    """
    a, b = (x.double() - x.double().mean(0) for x in (x_a, x_b))
    scale = (a.T @ a).norm() * (b.T @ b).norm()
    return float((a.T @ b).norm() ** 2 / scale) if scale > 0 else 0.0


@dataclass(frozen=True)
class Affinity:
    """Measures of two stores' pairs, and the same with the pairs shuffled.

    Attributes:
        pairs: how many.
        table: columns `measure`, `paired`, `shuffled`.
    """

    pairs: int
    table: pd.DataFrame


def affinity(a: EmbeddingStore, b: EmbeddingStore, *, k: int = 10, most: int = 5000, seed: int = 0, test_share: float = 0.15) -> Affinity:
    """Mutual kNN alignment and linear CKA of one row a store of each train item; test items are never read.

    Args:
        a, b: stores with common items.
        k: neighbours of the mutual kNN.
        most: pairs at most, drawn by `seed`.
        seed: also of the row of each item, and of the shuffled pairs.
        test_share: as `data.test_share`, where the stores give no split.

    Raises:
        UserError: fewer than three common items, or a value that is refused.
    """
    if k < 1 or most < 3:
        raise UserError(f"k={k} must be at least 1 and most={most} at least 3")
    split = split_items(a.rows, b.rows, test_share=test_share)
    items = matched_items(a.rows, b.rows, split)
    if len(items) < 3:
        raise UserError(f"{a.path} and {b.path} have {len(items)} train items in common: pairs are rows with the same `item`")
    rng = np.random.default_rng(seed)
    items = rng.permutation(items)[:most]
    sides = [_one_row_an_item(store, rows, items, rng) for store, rows in ((a, split.train_a), (b, split.train_b))]
    x_a, x_b = (torch.from_numpy(x) for x in sides)
    shuffled = x_b[torch.from_numpy(rng.permutation(len(items)))]
    measures = {f"mutual {min(k, len(items) - 1)}-NN": lambda x, y: mutual_knn(x, y, k), "linear CKA": linear_cka}
    table = [{"measure": name, "paired": measure(x_a, x_b), "shuffled": measure(x_a, shuffled)} for name, measure in measures.items()]
    return Affinity(len(items), pd.DataFrame(table))


def _one_row_an_item(store: EmbeddingStore, rows: np.ndarray, items: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Vectors `[n, D]` of one row drawn of each item."""
    shuffled = rng.permutation(rows)
    first = pd.Series(shuffled, index=store.rows["item"].to_numpy(dtype=str)[shuffled])
    return store.read(first[~first.index.duplicated()][items].to_numpy())


def affinity_table(a: EmbeddingStore, b: EmbeddingStore, *, k: int = 10, most: int = 5000, seed: int = 0) -> str:
    """The affinity of two stores in words."""
    found = affinity(a, b, k=k, most=most, seed=seed)
    lines = [f"{found.pairs:,} pairs of train items", f"{'':<16}{'paired':>8}{'shuffled':>10}"]
    lines += [f"{row['measure']:<16}{row['paired']:>8.3f}{row['shuffled']:>10.3f}" for _, row in found.table.iterrows()]
    return "\n".join(lines)
