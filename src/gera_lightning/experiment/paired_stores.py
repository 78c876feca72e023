"""The two stores of an experiment: opened as its settings say, split, and drawn from."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from gera_lightning.config import Config
from gera_lightning.data import splits
from gera_lightning.data.held_out import HeldOutItems
from gera_lightning.data.leaks import Leaks, row_codes
from gera_lightning.data.records import for_terminal
from gera_lightning.data.store import EmbeddingStore
from gera_lightning.data.synthetic import SyntheticViews
from gera_lightning.models.preprocessing import CHUNK
from gera_lightning.utils.errors import UserError
from gera_lightning.utils.instantiate import build

log = logging.getLogger(__name__)


def open_stores(config: Config) -> tuple[EmbeddingStore, EmbeddingStore]:
    """The stores that `config.data` names, or those of `data.synthetic`.

    Raises:
        UserError: a missing or damaged store.
    """
    data = config.data
    if data.synthetic is not None:
        part = {"class": "synthetic_views", **data.synthetic}
        views: SyntheticViews = build(part, "data.synthetic")
        return views.stores(config.cache_dir)
    for key in ("a", "b"):
        if not getattr(data, key):
            raise UserError(
                "is empty", key=f"data.{key}", remedy="name the folder of an embedding store"
            )
    return EmbeddingStore(data.a), EmbeddingStore(data.b)


def joint_hash(a: EmbeddingStore, b: EmbeddingStore) -> str:
    """Hash of both stores' contents."""
    return f"{a.data_hash[:8]}{b.data_hash[:8]}"


def wanted_results(config: Config, data_hash: str) -> dict[str, Any]:
    """What the results of an experiment on stores of this `joint_hash` have in common, for
    `results.load_sweep`.
    """
    return {
        "data_hash": data_hash,
        "split": config.data.split,
        "test_share": config.data.test_share,
    }


def modality_names(
    a: EmbeddingStore | str | os.PathLike[str], b: EmbeddingStore | str | os.PathLike[str]
) -> tuple[str, str]:
    """What a person calls the two modalities, such as `("speech", "text")`.

    A store's name is `modality` in its encoder's record where it is there, else its folder's name.
    Names that do not tell the two apart (two views of one kind) become `a` and `b`.

    Args:
        a, b: stores, or their folders, which need not be there.

    >>> modality_names("data/pictures/image", "data/pictures/text")
    ('image', 'text')
    >>> modality_names("left/views", "right/views")
    ('a', 'b')
    """
    name_a, name_b = _modality_name(a), _modality_name(b)
    told_apart = name_a and name_b and name_a != name_b
    return (name_a, name_b) if told_apart else ("a", "b")


def _modality_name(store: EmbeddingStore | str | os.PathLike[str]) -> str:
    if isinstance(store, EmbeddingStore):
        return str(store.encoder.get("modality") or store.path.name)
    return Path(store).name


def direction_names(modalities: Sequence[str]) -> dict[str, str]:
    """What a person calls the two directions of retrieval.

    >>> direction_names(("speech", "text"))
    {'ab': 'speech → text', 'ba': 'text → speech'}
    """
    a, b = modalities
    return {"ab": f"{a} → {b}", "ba": f"{b} → {a}"}


def store_metadata(a: EmbeddingStore, b: EmbeddingStore) -> dict[str, Any]:
    """What an aligner keeps about the stores it was fitted on."""
    return {
        "data_hash": joint_hash(a, b),
        "modalities": list(modality_names(a, b)),
        "stores": {"a": str(a.path), "b": str(b.path)},
        "encoders": {"a": a.encoder, "b": b.encoder},
        "sources": {"a": _source(a), "b": _source(b)},
        "dim_a": a.dim,
        "dim_b": b.dim,
    }


def _source(store: EmbeddingStore) -> dict[str, Any]:
    """Name and licence of a store's data."""
    source = store.manifest.get("source") or {}
    return {key: source[key] for key in ("name", "licence") if key in source}


@dataclass(frozen=True)
class Stores:
    """The two stores of an experiment with their item split; shared by its runs."""

    a: EmbeddingStore
    b: EmbeddingStore
    split: splits.ItemSplit

    @classmethod
    def open(cls, config: Config, seed: int = 0) -> Stores:
        """Open what `config.data` names, split as for runs of this seed.

        Raises:
            UserError: a missing or damaged store, or an impossible split.
        """
        return cls.of_stores(*open_stores(config), config, seed)

    @classmethod
    def of_stores(cls, a: EmbeddingStore, b: EmbeddingStore, config: Config, seed: int) -> Stores:
        """Split two stores as for runs of this seed.

        Raises:
            UserError: an impossible split.
        """
        split = splits.split_for(a.rows, b.rows, config.data, seed)
        splits.check_sides(split, config.data.test_share)
        return cls(a, b, split)

    @property
    def data_hash(self) -> str:
        """Hash of both stores' contents."""
        return joint_hash(self.a, self.b)

    def check_rows(self) -> None:
        """Read every vector once, so that what is wrong with them is said before anything runs.

        Raises:
            UserError: a vector that is not finite, or test items that were trained on: their rows
                of both modalities are exact copies of train rows.
        """
        stores, codes = {"a": self.a, "b": self.b}, {}
        for side, store in stores.items():
            parts = (store.read(slice(n, n + CHUNK)) for n in range(0, len(store), CHUNK))
            codes[side] = np.concatenate([row_codes(part) for part in parts])
        leaks = Leaks.of({side: store.rows for side, store in stores.items()}, codes, self.split)
        if len(leaks.items):
            raise UserError(
                f"{len(leaks.items):,} test items are exact copies of train items, the first is"
                f" {str(leaks.items[0])!r}: results would be too good",
                remedy="give copies one `family`, which no split parts, or leave them out",
            )
        for name, store, rows in zip(
            modality_names(self.a, self.b), stores.values(), leaks.rows.values(), strict=True
        ):
            if len(rows):
                log.warning(
                    "%s: %s test rows are exact copies of train rows of other items (%s)",
                    for_terminal(name),
                    f"{len(rows):,}",
                    store.path,
                )

    @cached_property
    def held_out(self) -> HeldOutItems:
        """The evaluated rows."""
        return HeldOutItems.load(self.a, self.b, self.split)

    def sample_pairs(self, config: Config, budget: int, seed: int) -> splits.Sample:
        """Pairs and pools of a budget and seed."""
        data = config.data
        assert data.reserved_pairs is not None
        return splits.sample_pairs(
            self.a.rows,
            self.b.rows,
            self.split,
            budget=budget,
            reserved_pairs=data.reserved_pairs,
            seed=seed,
            shared_pools=data.shared_pools,
            pool_size=data.pool_size,
            extra_views=data.extra_views,
        )
