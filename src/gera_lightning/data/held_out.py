"""The rows that an aligner is evaluated on: the test side of a split.

Legend: `n` rows, `D` width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from gera_lightning.data.splits import ItemSplit, split_units
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
        cls, store: EmbeddingStore, test: np.ndarray, train: np.ndarray, families: np.ndarray
    ) -> HeldOut:
        """Read the rows `test` of a store.

        Args:
            store: the store.
            test, train: row numbers of the two sides of the split.
            families: family of every row of the store.
        """
        rows = store.rows.iloc[test].reset_index(drop=True)
        rows["family"] = families[test]
        unseen = np.zeros(len(rows), dtype=bool)
        if "group" in rows:
            seen_groups = store.rows["group"].iloc[train].unique()
            new_group = rows["group"].notna() & ~rows["group"].isin(seen_groups)
            unseen = new_group.to_numpy(copy=True)
        return cls(rows, torch.from_numpy(store.read(test)), unseen)

    def only(self, chosen: np.ndarray) -> HeldOut:
        """Those of a mask `[n]`."""
        rows = self.rows[chosen].reset_index(drop=True)
        return HeldOut(rows, self.x[torch.from_numpy(chosen)], self.unseen[chosen])


@dataclass(frozen=True)
class HeldOutItems:
    """The evaluated rows of both modalities.

    Attributes:
        a, b: the rows.
        item_a, item_b: number of each row's item `[n]`; rows of one item have the same number in
            both.
        conditions: rows with a `condition`, by its name: they search each other, or the other
            modality's rows without one where it has none of this condition.
    """

    a: HeldOut
    b: HeldOut
    item_a: Tensor
    item_b: Tensor
    conditions: Mapping[str, HeldOutItems] = field(default_factory=dict)

    @classmethod
    def load(
        cls, store_a: EmbeddingStore, store_b: EmbeddingStore, split: ItemSplit
    ) -> HeldOutItems:
        """Read the test side of a split."""
        units = split_units(store_a.rows, store_b.rows), store_b.rows["item"].to_numpy(dtype=str)
        families = [split.families[unit].to_numpy() for unit in units]
        a = HeldOut.load(store_a, split.test_a, split.train_a, families[0])
        b = HeldOut.load(store_b, split.test_b, split.train_b, families[1])
        names = np.concatenate([side.rows["item"].to_numpy(dtype=str) for side in (a, b)])
        numbers = torch.from_numpy(np.unique(names, return_inverse=True)[1])
        whole = cls(a, b, numbers[: len(a.rows)], numbers[len(a.rows) :])
        kinds = [_conditions(side.rows) for side in (a, b)]
        found = sorted({*kinds[0], *kinds[1]} - {""})
        if not found:
            return whole
        parts = {}
        for name in ("", *found):
            chosen = [kind == (name if (kind == name).any() else "") for kind in kinds]
            parts[name] = whole._only(*chosen)
        return replace(parts.pop(""), conditions=parts)

    def _only(self, of_a: np.ndarray, of_b: np.ndarray) -> HeldOutItems:
        return HeldOutItems(
            self.a.only(of_a),
            self.b.only(of_b),
            self.item_a[torch.from_numpy(of_a)],
            self.item_b[torch.from_numpy(of_b)],
        )


def _conditions(rows: pd.DataFrame) -> np.ndarray:
    """The condition of each row, "" for none."""
    if "condition" not in rows:
        return np.full(len(rows), "", dtype=object)
    found: np.ndarray = rows["condition"].fillna("").to_numpy(dtype=object)
    return found
