"""Make a store from vectors that exist already.

gera import SOURCE STORE [ids=FILE key=NAME side=image|text columns.item=NAME ...]

gera import x.npy data/x ids=x.csv
"""

from __future__ import annotations

from collections.abc import Sequence

from gera_lightning.config.overrides import parse_kwargs
from gera_lightning.data.importing import import_store
from gera_lightning.utils.errors import UserError


def run(words: Sequence[str]) -> None:
    """The command line's `gera import`."""
    if len(words) < 2 or "=" in words[1]:
        raise UserError(
            "gera import takes two paths: what is there and the new store, such as: gera import"
            " x.npy data/x ids=x.csv"
        )
    store = import_store(words[0], words[1], **parse_kwargs(words[2:], import_store))
    skipped = store.manifest["source"]["skipped"]
    print(
        f"{store.path}: {len(store):,} rows of width {store.dim}; gera inspect {store.path} shows"
        " what is in it"
    )
    print(
        f"the first row is {store.rows['row'].iloc[0]!r}, of item {store.rows['item'].iloc[0]!r}: "
        "rows of two stores with one item are pairs"
    )
    if skipped:
        print(f"{skipped:,} rows were left out: {store.path / 'skipped.jsonl'} says which and why")
