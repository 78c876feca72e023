"""Compare two frozen spaces, or all their layers, before training.

    gera affinity STORE_A STORE_B [k=10 most=5000]

A folder of stores, one per layer, may stand for either store.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from gera_lightning.config.overrides import parse_kwargs, split_paths
from gera_lightning.data.store import EmbeddingStore, store_folders
from gera_lightning.evaluation import similarity
from gera_lightning.experiment.paired_stores import modality_names


def affinity(
    a: str | os.PathLike[str],
    b: str | os.PathLike[str],
    *,
    k: int = 10,
    most: int = 5000,
    seed: int = 0,
    test_share: float = 0.15,
) -> str:
    """A table of how alike two stores are, or all layers in two folders of stores.

    Args:
        a, b: folders of the stores.
        k, most, seed, test_share: see `evaluation.similarity.affinity`.

    Raises:
        UserError: no store at a path, or as `evaluation.similarity.affinity`.
    """
    stores = [
        [EmbeddingStore(folder) for folder in store_folders(path) or [Path(path)]]
        for path in (a, b)
    ]
    found = similarity.affinity(*stores, k=k, most=most, seed=seed, test_share=test_share)
    name_a, name_b = modality_names(*(_only(s) or p for s, p in zip(stores, (a, b), strict=True)))
    wide = max(8, len(name_a), len(name_b), *found.table[["a", "b"]].map(len).max())
    knn = f"mutual {found.k}-NN"
    lines = [
        f"{found.pairs:,} pairs of train items",
        f"{name_a:<{wide}}  {name_b:<{wide}}{knn:>16}{'shuffled':>10}{'linear CKA':>12}"
        f"{'shuffled':>10}",
    ]
    for _, row in found.table.iterrows():
        lines.append(
            f"{row['a']:<{wide}}  {row['b']:<{wide}}{row['knn']:>16.3f}{row['knn_shuffled']:>10.3f}"
            f"{row['cka']:>12.3f}{row['cka_shuffled']:>10.3f}"
        )
    return "\n".join(lines)


def _only(stores: Sequence[EmbeddingStore]) -> EmbeddingStore | None:
    """The store where there is one; of several layers their folder has the modality's name."""
    return stores[0] if len(stores) == 1 else None


def run(words: Sequence[str]) -> None:
    """The command line's `gera affinity`."""
    a, b, rest = split_paths(
        words, "affinity", "two stores", "data/pictures/image data/pictures/text"
    )
    print(affinity(a, b, **parse_kwargs(rest, affinity)))
