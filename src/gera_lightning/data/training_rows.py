"""The rows that a run may see: the paired and unpaired rows of each modality, preprocessed.

Legend: `n` pairs, `N` pool rows, `D` width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from gera_lightning.data.splits import Sample, split_units
from gera_lightning.data.store import EmbeddingStore
from gera_lightning.geometry.neighbors import SPARE_NEIGHBORS, NeighborGraph
from gera_lightning.models.preprocessing import CHUNK, Preprocessing


@dataclass(frozen=True)
class Modality:
    """One modality's training rows, preprocessed.

    Attributes:
        pairs: paired rows `[n, D]`.
        pool: unpaired rows `[N, D]`.
        preprocess: the preprocessing fitted on both.
        key: what identifies the rows, for caches: checksums, row subset, preprocessing.
        pool_units: unit of each pool row, see `split_units`, `[N]`.
        whole: the modality whose pool this one's is a part of, and which rows of it, bool; None
            where it is no part.
    """

    pairs: Tensor
    pool: Tensor
    preprocess: Preprocessing
    key: dict[str, str]
    pool_units: np.ndarray
    whole: tuple[Modality, Tensor] | None = None

    def to(self, device: torch.device) -> Modality:
        """The rows on another device; the preprocessing stays where it is."""
        if self.pairs.device == device:
            return self
        return replace(self, pairs=self.pairs.to(device), pool=self.pool.to(device), whole=None)

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
            pool=self.pool[kept],
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
    for rows in x.split(CHUNK):  # in place: a copy of a large pool may not fit
        rows.copy_(preprocess(rows))
    mean = "none" if preprocess.mean is None else digest(preprocess.mean.numpy())
    return Modality(x[:count], x[count:], preprocess, {**key, "mean": mean}, pool_units)


def load_modality(
    store: EmbeddingStore,
    pairs: np.ndarray,
    pool: np.ndarray,
    *,
    center: bool = True,
    units: np.ndarray | None = None,
) -> Modality:
    """Read the paired and unpaired rows of one modality; its preprocessing sees no others.

    Args:
        store: the store.
        pairs, pool: row numbers.
        center: see `Preprocessing`.
        units: unit of every row of the store; by default its item.
    """
    x = torch.from_numpy(store.read(np.concatenate([pairs, pool])))
    key = {"data": store.data_hash, "rows": digest(np.concatenate([pairs, [-1], pool]))}
    units = store.rows["item"].to_numpy(dtype=str) if units is None else units
    return modality_of(x, len(pairs), units[pool], key, center=center)


def load_rows(
    store_a: EmbeddingStore, store_b: EmbeddingStore, sample: Sample, *, center: bool = True
) -> TrainingRows:
    """Read the training rows of a sample."""
    units = split_units(store_a.rows, store_b.rows)
    return TrainingRows(
        a=load_modality(store_a, sample.pairs_a, sample.pool_a, center=center, units=units),
        b=load_modality(store_b, sample.pairs_b, sample.pool_b, center=center),
        items=sample.items,
        units=units[sample.pairs_a],
    )
