"""The rows that an aligner is evaluated on: the test side of a split.

Legend: `n` rows, `D` width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from gera_lightning.data.splits import ItemSplit
from gera_lightning.data.store import EmbeddingStore


@dataclass(frozen=True)
class HeldOut:
    """The evaluated rows of one modality.

    Attributes:
        rows: their table; `family` is the family that the split uses.
        x: frozen embeddings `[n, D]`.
        unseen: rows whose `group` (voice, renderer) has no train row, bool `[n]`.
    """

    rows: pd.DataFrame
    x: Tensor
    unseen: np.ndarray

    @classmethod
    def load(
        cls, store: EmbeddingStore, test: np.ndarray, train: np.ndarray, families: pd.Series
    ) -> HeldOut:
        """Read the rows `test` of a store.

        Args:
            store: the store.
            test, train: row numbers of the two sides of the split.
            families: family of every item.
        """
        rows = store.rows.iloc[test].reset_index(drop=True)
        rows["family"] = families[rows["item"].to_numpy(dtype=str)].to_numpy()
        unseen = np.zeros(len(rows), dtype=bool)
        if "group" in rows:
            seen_groups = store.rows["group"].iloc[train].unique()
            new_group = rows["group"].notna() & ~rows["group"].isin(seen_groups)
            unseen = new_group.to_numpy(copy=True)
        return cls(rows, torch.from_numpy(store.read(test)), unseen)


@dataclass(frozen=True)
class HeldOutItems:
    """The evaluated rows of both modalities.

    Attributes:
        a, b: the rows.
        item_a, item_b: number of each row's item `[n]`; rows of one item have the same number in
            both.
    """

    a: HeldOut
    b: HeldOut
    item_a: Tensor
    item_b: Tensor

    @classmethod
    def load(
        cls, store_a: EmbeddingStore, store_b: EmbeddingStore, split: ItemSplit
    ) -> HeldOutItems:
        """Read the test side of a split."""
        a = HeldOut.load(store_a, split.test_a, split.train_a, split.families)
        b = HeldOut.load(store_b, split.test_b, split.train_b, split.families)
        names = np.concatenate([side.rows["item"].to_numpy(dtype=str) for side in (a, b)])
        numbers = torch.from_numpy(np.unique(names, return_inverse=True)[1])
        return cls(a, b, numbers[: len(a.rows)], numbers[len(a.rows) :])
