"""The rows that a run may see: the paired and unpaired rows of each modality, preprocessed.

Legend: `n` pairs, `N` pool rows, `D` width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gera_lightning.data.splits import Sample, split_units
from gera_lightning.data.store import EmbeddingStore
from gera_lightning.data.stored_rows import StoredRows, stay_on_disk
from gera_lightning.geometry.neighbors import SPARE_NEIGHBORS, NeighborGraph
from gera_lightning.models.preprocessing import Preprocessing
from gera_lightning.utils.arrays import Rows


@dataclass(frozen=True)
class Modality:
    """One modality's training rows, preprocessed.

    Attributes:
        pairs: paired rows `[n, D]`.
        pool: unpaired rows `[N, D]`: a tensor, or `StoredRows` that stay on disk.
        preprocess: the preprocessing fitted on both.
        key: what identifies the rows, for caches: checksums, row subset, preprocessing.
        pool_units: unit of each pool row, see `split_units`, `[N]`.
        pair_numbers: numbers of the pairs in the store, where the pool is `StoredRows`.
        whole: the modality whose pool this one's is a part of, and which rows of it, bool; None
            where it is no part.
    """

    pairs: Tensor
    pool: Rows
    preprocess: Preprocessing
    key: dict[str, str]
    pool_units: np.ndarray
    pair_numbers: np.ndarray | None = None
    whole: tuple[Modality, Tensor] | None = None

    def to(self, device: torch.device) -> Modality:
        """The rows on another device; the preprocessing stays where it is."""
        if self.pairs.device == device:
            return self
        pool = self.pool[:].to(device)
        return replace(self, pairs=self.pairs.to(device), pool=pool, whole=None)

    def in_memory(self) -> Modality:
        """The modality with its pool as a tensor."""
        if isinstance(self.pool, Tensor):
            return self
        whole = self.whole and (self.whole[0].in_memory(), self.whole[1])
        return replace(self, pool=self.pool[:], whole=whole)

    def points(self, positions: np.ndarray) -> Rows:
        """The pool, then the pairs at `positions`: `[N + n, D]`."""
        if isinstance(self.pool, StoredRows):
            assert self.pair_numbers is not None
            numbers = np.concatenate([self.pool.numbers, self.pair_numbers[positions]])
            return replace(self.pool, numbers=numbers)
        pairs = torch.from_numpy(positions).to(self.pairs.device)
        return torch.cat([self.pool[:], self.pairs[pairs]])

    def pool_graph(self, k: int, search: Callable[[Modality, int], NeighborGraph]) -> NeighborGraph:
        """The graph of the pool's k nearest neighbours, that of a part taken from the whole pool's.

        Args:
            k: neighbours.
            search: finds the graph of a modality's whole pool, with somewhat more neighbours, so
                that parts have enough without a search; it may know it already.
        """
        whole, kept = self.whole or (self, None)
        found = search(whole, max(k, min(k + SPARE_NEIGHBORS, len(whole.pool) - 1)))
        if kept is None:
            return found.nearest(k)
        return found.subset(kept, self.pool, min(k, len(self.pool) - 1))

    def pool_subset(self, mask: np.ndarray) -> Modality:
        """The modality with the rows of its pool that `mask` `[N]` marks."""
        subset = f"{self.key.get('pool', '')}/{digest(mask)}"  # a subset of a subset has both
        kept = torch.from_numpy(mask).to(self.pool.device)
        whole, of_whole = self, kept
        if self.whole is not None:
            whole, of_whole = self.whole[0], self.whole[1].clone()
            of_whole[self.whole[1]] = kept
        return replace(
            self,
            pool=self.pool.subset(mask) if isinstance(self.pool, StoredRows) else self.pool[kept],
            pool_units=self.pool_units[mask],
            key={**self.key, "pool": subset},
            whole=(whole, of_whole),
        )


@dataclass(frozen=True)
class TrainingRows:
    """The rows that a run may see.

    Attributes:
        a, b: the rows of each modality.
        items: item of each pair `[n]`.
        units: its unit: the item, or of a class the row of a, see `split_units`, `[n]`.
    """

    a: Modality
    b: Modality
    items: np.ndarray
    units: np.ndarray

    @property
    def item_numbers(self) -> Tensor:
        """A number for each pair, equal where the item is: `[n]`."""
        return torch.from_numpy(np.unique(self.items, return_inverse=True)[1])

    def to(self, device: torch.device) -> TrainingRows:
        """The rows on another device."""
        return replace(self, a=self.a.to(device), b=self.b.to(device))


def digest(array: np.ndarray) -> str:
    """Hash of an array's bytes, 16 hex digits."""
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]


def modality_of(
    x: Tensor, count: int, pool_units: np.ndarray, key: Mapping[str, str], *, center: bool = True
) -> Modality:
    """One modality of frozen rows; its preprocessing is fitted on them.

    Args:
        x: `[n + N, D]`, the `count` paired rows first. The preprocessed rows overwrite them.
        count: n.
        pool_units: unit of each unpaired row `[N]`.
        key: what identifies the rows, for caches.
        center: see `Preprocessing`.

    >>> x = torch.tensor([[2.0, 0.0], [0.0, 2.0], [0.0, 4.0]])
    >>> modality = modality_of(x, 1, np.array(["y", "z"]), {"data": "mine"}, center=False)
    >>> modality.pairs, modality.pool
    (tensor([[1., 0.]]), tensor([[0., 1.],
            [0., 1.]]))
    """
    preprocess = Preprocessing.fit(x, center)
    x = preprocess.overwrite(x)
    key = {**key, "mean": _mean_key(preprocess)}
    return Modality(x[:count], x[count:], preprocess, key, pool_units)


def _mean_key(preprocess: Preprocessing) -> str:
    return "none" if preprocess.mean is None else digest(preprocess.mean.numpy())


def load_modality(
    store: EmbeddingStore,
    pairs: np.ndarray,
    pool: np.ndarray,
    *,
    center: bool = True,
    units: np.ndarray | None = None,
    on_disk: bool = False,
) -> Modality:
    """The paired and unpaired rows of one modality; its preprocessing sees no others.

    Args:
        store: the store.
        pairs, pool: row numbers.
        center: see `Preprocessing`.
        units: unit of every row of the store; by default its item.
        on_disk: the pool is `StoredRows`, whose values are the same to the bit.
    """
    rows = StoredRows(store, np.concatenate([pairs, pool]))
    key = {"data": store.data_hash, "rows": digest(np.concatenate([pairs, [-1], pool]))}
    units = store.rows["item"].to_numpy(dtype=str) if units is None else units
    if not on_disk:
        return modality_of(rows[:], len(pairs), units[pool], key, center=center)
    preprocess = Preprocessing.fit(rows, center)
    key["mean"] = _mean_key(preprocess)
    # their own: an aligner takes the other to its device
    rows = replace(rows, preprocess=Preprocessing(preprocess.mean))
    x, rows = rows[: len(pairs)], replace(rows, numbers=pool)
    return Modality(x, rows, preprocess, key, units[pool], pair_numbers=pairs)


def load_rows(
    store_a: EmbeddingStore,
    store_b: EmbeddingStore,
    sample: Sample,
    *,
    center: bool = True,
    residency: str = "auto",
) -> TrainingRows:
    """The training rows of a sample.

    Args:
        store_a, store_b: what it was drawn from.
        sample: their row numbers.
        center: see `Preprocessing`.
        residency: where the pools are kept, as `data.residency`.
    """
    units = split_units(store_a.rows, store_b.rows)
    cells = len(sample.pool_a) * store_a.dim + len(sample.pool_b) * store_b.dim
    how: Any = {"center": center, "on_disk": stay_on_disk(residency, cells)}
    return TrainingRows(
        a=load_modality(store_a, sample.pairs_a, sample.pool_a, units=units, **how),
        b=load_modality(store_b, sample.pairs_b, sample.pool_b, **how),
        items=sample.items,
        units=units[sample.pairs_a],
    )
