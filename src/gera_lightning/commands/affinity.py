"""Compare two frozen spaces, or all their layers, before training.

gera affinity STORE_A STORE_B [k=10 most=5000]
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from gera_lightning.config.overrides import parse_kwargs
from gera_lightning.data.store import EmbeddingStore, store_folders
from gera_lightning.evaluation.similarity import affinity
from gera_lightning.utils.errors import UserError


def affinity_table(
    a: str | os.PathLike[str],
    b: str | os.PathLike[str],
    *,
    k: int = 10,
    most: int = 5000,
    seed: int = 0,
    test_share: float = 0.15,
) -> str:
    """The affinity of two stores, or of two folders that hold one a layer, in words; options as of
    `affinity`.

    Raises:
        UserError: no store at a path, or as `affinity`.
    """
    stores = [
        [EmbeddingStore(folder) for folder in store_folders(path) or [Path(path)]]
        for path in (a, b)
    ]
    found = affinity(*stores, k=k, most=most, seed=seed, test_share=test_share)
    knn = f"mutual {found.k}-NN"
    wide = max(8, *found.table[["a", "b"]].map(len).max())
    lines = [
        f"{found.pairs:,} pairs of train items",
        f"{'a':<{wide}}  {'b':<{wide}}{knn:>16}{'shuffled':>10}{'linear CKA':>12}{'shuffled':>10}",
    ]
    for _, row in found.table.iterrows():
        measured = f"{row['knn']:>16.3f}{row['knn_shuffled']:>10.3f}{row['cka']:>12.3f}{row['cka_shuffled']:>10.3f}"
        lines.append(f"{row['a']:<{wide}}  {row['b']:<{wide}}{measured}")
    return "\n".join(lines)


def run(words: Sequence[str]) -> None:
    """The command line's `gera affinity`."""
    if len(words) < 2 or "=" in words[1]:
        raise UserError(
            "gera affinity takes two stores, such as: gera affinity data/emoji/image"
            " data/emoji/text"
        )
    print(affinity_table(words[0], words[1], **parse_kwargs(words[2:], affinity_table)))
