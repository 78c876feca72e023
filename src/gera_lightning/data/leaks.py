"""Test rows that are exact copies of train rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from gera_lightning.data.splits import ItemSplit, split_units


def row_codes(x: np.ndarray) -> np.ndarray:
    """A 64-bit hash of each row `[n, D]` of float32 values, the same for equal rows.

    >>> a, b, c = row_codes(np.array([[1, 0], [1, -0.0], [2, 0]], dtype=np.float32)).tolist()
    >>> a == b, a == c
    (True, False)
    """
    bits = np.ascontiguousarray(x + np.float32(0)).view(np.uint32).astype(np.uint64)  # -0 is 0
    rng = np.random.default_rng(0)
    odd = rng.integers(0, 2**63, bits.shape[1], dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    codes: np.ndarray = (bits * odd).sum(axis=1, dtype=np.uint64)  # modulo 2^64
    return codes


@dataclass(frozen=True)
class Leaks:
    """What of the test side stands on the train side too.

    Attributes:
        rows: by modality, `a` and `b`, test rows that are exact copies of train rows.
        items: test items of which that holds in both modalities: the pair itself was trained on.
            Of rows of classes, whose names are on both sides, one modality is enough.
    """

    rows: dict[str, np.ndarray]
    items: np.ndarray

    @classmethod
    def of(
        cls, tables: dict[str, pd.DataFrame], codes: dict[str, np.ndarray], split: ItemSplit
    ) -> Leaks:
        """Find them.

        Args:
            tables: rows of both stores.
            codes: `row_codes` of both stores.
            split: of these stores.
        """
        rows = {}
        for side in "ab":
            train, test = getattr(split, f"train_{side}"), getattr(split, f"test_{side}")
            alone = np.setdiff1d(test, train)  # rows of `split` both may be on either side
            rows[side] = alone[np.isin(codes[side][alone], codes[side][train])]
        items_b = tables["b"]["item"].to_numpy(dtype=str)
        items_a = tables["a"]["item"].to_numpy(dtype=str)[rows["a"]]
        names = np.intersect1d(items_b[split.train_b], items_b[split.test_b])
        seen_b = np.union1d(items_b[rows["b"]], names)
        units = split_units(tables["a"], tables["b"])[rows["a"]]
        return cls(rows, np.unique(units[np.isin(items_a, seen_b)]))
