"""Encode the raw items of a corpus into an embedding store.

A run that was stopped, even by a kill, goes on after its last whole shard. Its store has the same
bytes as that of a run that was not.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path

import pandas as pd
from rich.console import Console

from gera_lightning.config import Config
from gera_lightning.config.embed_schema import EmbedConfig
from gera_lightning.data.store import EmbeddingStore, is_whole
from gera_lightning.embedding.batches import BatchPlan, ItemBatches
from gera_lightning.embedding.corpus import Corpus, Listing
from gera_lightning.embedding.predict import predict
from gera_lightning.embedding.shards import CUT, SKIPPED, Shards, remove_scratch, remove_store
from gera_lightning.encoders.base import Encoder, store_names
from gera_lightning.utils import distributed
from gera_lightning.utils.errors import UserError
from gera_lightning.utils.instantiate import build, check_part

Folder = str | os.PathLike[str]
BATCH_SIZE = 32
"""Batch size for encoders that state none."""


def run_plan(corpus: Corpus, listing: Listing, encoder: Encoder, settings: EmbedConfig) -> str:
    """Hash of everything that decides a store's bytes: rows, encoder, batches, number formats."""
    table = pd.util.hash_pandas_object(listing.rows, index=False).to_numpy().tobytes()
    described = {key: value for key, value in encoder.describe().items() if key != "class"}
    about = {
        "encoder": described,
        "source": corpus.describe(),
        "rows": hashlib.sha256(table).hexdigest(),
        "left_out": [asdict(entry) for entry in listing.skipped],
        "batch_size": getattr(encoder, "batch_size", BATCH_SIZE),
        **{key: getattr(settings, key) for key in ("shard_rows", "dtype", "precision")},
    }
    return hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()[:16]


def embed_corpus(
    corpus: Corpus,
    encoder: Encoder,
    path: Folder,
    settings: EmbedConfig | None = None,
    *,
    overwrite: bool = False,
    console: Console | None = None,
) -> list[EmbeddingStore]:
    """Encode all items of a corpus into a store.

    An interrupted run goes on where it stopped; a finished store is left as it is. All processes of
    a multi-process run call this together.

    Args:
        corpus: raw items.
        encoder: frozen encoder.
        path: the store's folder; for an encoder that gives several layers, the folder that gets a
            store for each.
        settings: shards, precision, hardware, limits; `a` and `b` are not read.
        overwrite: replace a store that is there.
        console: where a progress bar and a summary go.

    Returns:
        The store, or one per layer.

    Raises:
        UserError: a store with other settings is there, too many items cannot be read, or the
            settings are refused.

    >>> import tempfile
    >>> import numpy as np
    >>> from gera_lightning.embedding.corpus import FolderOfFiles
    >>> class Lengths:
    ...     name, dim = "lengths", 1
    ...     def describe(self):
    ...         return {"name": self.name, "dim": self.dim}
    ...     def encode(self, items):
    ...         return np.array([[len(item)] for item in items], dtype=np.float32)
    >>> folder = tempfile.TemporaryDirectory()
    >>> _ = Path(folder.name, "7.txt").write_text("a cat")
    >>> corpus = FolderOfFiles(folder.name, "text")
    >>> [store] = embed_corpus(corpus, Lengths(), f"{folder.name}/store")
    >>> store.read()
    array([[5.]], dtype=float32)
    """
    settings, path = settings or EmbedConfig(), Path(path)
    listing = corpus.listing()
    plan = run_plan(corpus, listing, encoder, settings)
    rank, size = distributed.world()
    if overwrite:
        if rank == 0:
            remove_store(path)
        distributed.barrier()
    folders = [path / name for name in store_names(encoder)]
    if finished := _finished(path, folders, plan):
        if rank == 0:
            remove_scratch(path, folders)
        again = "finished before (overwrite=true embeds them again)"
        _print(console, f"{path}: {len(finished[0]):,} rows, {again}")
        return finished
    shards = Shards(path, folders, corpus, listing, settings, plan) if rank == 0 else None
    batches = BatchPlan(
        count=len(listing.rows),
        shard_rows=settings.shard_rows,
        batch_size=getattr(encoder, "batch_size", BATCH_SIZE),
        first=int(distributed.broadcast_object(shards.done if shards else 0)),
        rank=rank,
        size=size,
    )
    try:
        items = ItemBatches(corpus, listing.rows, encoder, batches)
        predict(items, settings, shards, path, console)
        if shards is not None:
            stores = shards.finish(encoder, {**corpus.describe(), "plan": plan})
            _print(console, _summary(shards, stores))
    finally:
        if shards is not None:
            shards.lock.release()
    distributed.barrier()
    return [EmbeddingStore(folder) for folder in folders]


def _finished(path: Path, folders: list[Path], plan: str) -> list[EmbeddingStore]:
    """The stores of this very run if all of them are finished, else none.

    Raises:
        UserError: finished stores of another run, or damaged ones.
    """
    found = [
        EmbeddingStore(folder)
        for folder in (path, *path.glob("layer_*"))
        if (folder / "manifest.json").is_file()
    ]
    if any((store.manifest.get("source") or {}).get("plan") != plan for store in found):
        raise UserError(
            "holds a store of other settings, items or encoder",
            key=str(path),
            remedy="choose another folder, or replace it with overwrite=true",
        )
    if len(found) < len(folders):
        return []
    for folder in folders:
        if not is_whole(folder):
            raise UserError(
                "holds a finished store with a damaged file",
                key=str(folder),
                remedy="restore it (gera inspect names the file), or embed again with"
                " overwrite=true",
            )
    return [EmbeddingStore(folder) for folder in folders]


def _summary(shards: Shards, stores: list[EmbeddingStore]) -> str:
    """What a run made, in one line."""
    path, skipped, cut = shards.path, len(shards.skipped), len(shards.cut)
    layers = f", {len(stores)} layers" if shards.folders != [path] else ""
    line = f"{path}: {len(stores[0]):,} rows of width {stores[0].dim}{layers}"
    line += f", {skipped:,} items skipped" + (f", see {path / SKIPPED}" if skipped else "")
    return line + (f", {cut:,} cut, see {path / CUT}" if cut else "")


def _print(console: Console | None, line: str) -> None:
    if console is not None:
        console.print(line, soft_wrap=True, highlight=False)


def embed_experiment(config: Config, console: Console | None = None) -> list[EmbeddingStore]:
    """Make the two stores of an experiment, as its `embed` section says.

    They go to `data.a` and `data.b`. What can be checked without loading a network is checked
    first, for both.

    Args:
        config: the experiment's settings.
        console: where a progress bar and a summary go.

    Raises:
        UserError: no such section, a part that is refused, or as `embed_corpus`.
    """
    sides = {
        key: side
        for key in ("a", "b")
        if (side := getattr(config.embed, key)).corpus or side.encoder
    }
    if not sides:
        raise UserError(
            "the experiment has no embed section",
            remedy="set embed.a.corpus and embed.a.encoder (and b), see docs/embedding.md",
        )
    corpora: dict[str, Corpus] = {}
    for key, side in sides.items():
        for name, part in (("corpus", side.corpus), ("encoder", side.encoder)):
            check_part(part or {}, f"embed.{key}.{name}")
        if not getattr(config.data, key):
            raise UserError(
                "is empty",
                key=f"data.{key}",
                remedy=f"name the folder that the store of embed.{key} goes to",
            )
        corpora[key] = build(side.corpus, f"embed.{key}.corpus")
    distributed.initialize()
    stores = list[EmbeddingStore]()
    for key, side in sides.items():
        encoder: Encoder = build(side.encoder, f"embed.{key}.encoder")
        path = getattr(config.data, key)
        stores += embed_corpus(
            corpora[key], encoder, path, config.embed, overwrite=config.overwrite, console=console
        )
    return stores
