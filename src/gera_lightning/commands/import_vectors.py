"""Make a store from vectors that exist already.

gera import SOURCE STORE [ids=FILE key=NAME side=image|text columns.item=NAME ...]

gera import x.npy data/x ids=x.csv
"""

from __future__ import annotations

from collections.abc import Sequence

from gera_lightning.config.overrides import parse_kwargs, split_paths
from gera_lightning.data.importing import import_store

import_vectors = import_store


def run(words: Sequence[str]) -> None:
    """The command line's `gera import`."""
    what = "two paths, that of the vectors and that of the new store"
    source, path, rest = split_paths(words, "import", what, "x.npy data/x ids=x.csv")
    store = import_vectors(source, path, **parse_kwargs(rest, import_vectors))
    skipped = store.manifest["source"]["skipped"]
    print(
        f"{store.path}: {len(store):,} rows of width {store.dim}; gera inspect {store.path} shows"
        " what is in it"
    )
    print(
        f"the first row is {store.rows['row'].iloc[0]!r}, of item {store.rows['item'].iloc[0]!r}:"
        " rows of two stores with the same item are pairs"
    )
    if skipped:
        print(f"{skipped:,} rows were left out: {store.path / 'skipped.jsonl'} says which and why")
