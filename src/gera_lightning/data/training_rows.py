"""The rows that a run may see: each modality's paired and unpaired rows, preprocessed.

Legend: `n` pairs, `N` pool rows, `D` width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from gera_lightning.data.splits import Sample
from gera_lightning.data.store import EmbeddingStore
from gera_lightning.models.preprocessing import CHUNK, Preprocessing


@dataclass(frozen=True)
class Modality:
    """One modality's training rows, preprocessed.

    Attributes:
        pairs: paired rows `[n, D]`.
        pool: unpaired rows `[N, D]`.
        preprocess: the preprocessing fitted on both.
        key: what identifies the rows, for caches: checksums, row subset, preprocessing.
        pool_items: item of each pool row `[N]`.
    """

    pairs: Tensor
    pool: Tensor
    preprocess: Preprocessing
    key: dict[str, str]
    pool_items: np.ndarray

    def to(self, device: torch.device) -> Modality:
        """The same rows on another device; the preprocessing stays where it is."""
        return replace(self, pairs=self.pairs.to(device), pool=self.pool.to(device))

    def pool_subset(self, kept: np.ndarray) -> Modality:
        """The same with some of the pool's rows, `kept` a mask `[N]`."""
        subset = f"{self.key.get('pool', '')}/{digest(kept)}"  # of a subset, too
        return replace(
            self,
            pool=self.pool[torch.from_numpy(kept)],
            pool_items=self.pool_items[kept],
            key={**self.key, "pool": subset},
        )


@dataclass(frozen=True)
class TrainingRows:
    """What a run may see: both modalities and the item of each pair."""

    a: Modality
    b: Modality
    items: np.ndarray

    @property
    def item_numbers(self) -> Tensor:
        """A number for each pair, equal where the item is: `[n]`."""
        return torch.from_numpy(np.unique(self.items, return_inverse=True)[1])

    def to(self, device: torch.device) -> TrainingRows:
        """The same on another device."""
        return replace(self, a=self.a.to(device), b=self.b.to(device))


def digest(array: np.ndarray) -> str:
    """Hash of an array's bytes, 16 hex digits."""
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]


def modality_of(
    x: Tensor, count: int, pool_items: np.ndarray, key: Mapping[str, str], *, center: bool = True
) -> Modality:
    """One modality of frozen rows, the preprocessing fitted on them.

    Args:
        x: `[n + N, D]`, the `count` paired rows first; overwritten by what the preprocessing makes
            of them.
        count: n.
        pool_items: item of each unpaired row `[N]`.
        key: what identifies the rows.
        center: see `Preprocessing`.
    """
    preprocess = Preprocessing.fit(x, center)
    for rows in x.split(CHUNK):  # in place: a copy of a large pool may not fit
        rows.copy_(preprocess(rows))
    mean = "none" if preprocess.mean is None else digest(preprocess.mean.numpy())
    return Modality(x[:count], x[count:], preprocess, {**key, "mean": mean}, pool_items)


def load_modality(
    store: EmbeddingStore, pairs: np.ndarray, pool: np.ndarray, *, center: bool = True
) -> Modality:
    """Read one modality's paired and unpaired rows and fit its preprocessing on them, and on
    nothing else.
    """
    x = torch.from_numpy(store.read(np.concatenate([pairs, pool])))
    key = {"data": store.data_hash, "rows": digest(np.concatenate([pairs, [-1], pool]))}
    return modality_of(
        x, len(pairs), store.rows["item"].to_numpy(dtype=str)[pool], key, center=center
    )


def load_rows(
    store_a: EmbeddingStore, store_b: EmbeddingStore, draw: Sample, *, center: bool = True
) -> TrainingRows:
    """The training rows of one draw."""
    return TrainingRows(
        a=load_modality(store_a, draw.pairs_a, draw.pool_a, center=center),
        b=load_modality(store_b, draw.pairs_b, draw.pool_b, center=center),
        items=draw.items,
    )
