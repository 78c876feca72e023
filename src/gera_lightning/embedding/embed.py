"""Raw items to an embedding store: Lightning predicts, shards are appended as they are whole.

A run that was stopped, however hard, goes on after its last whole shard and ends in the same bytes.
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
from gera_lightning.data.store import EmbeddingStore
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
"""Of encoders that state none."""


def run_plan(corpus: Corpus, listing: Listing, encoder: Encoder, settings: EmbedConfig) -> str:
    """Hash of all that decides a store's bytes: rows, encoder, batches and number formats."""
    table = pd.util.hash_pandas_object(listing.rows, index=False).to_numpy().tobytes()
    about = {
        "encoder": encoder.describe(),
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
    """Embed all items of a corpus into a store, or go on where an interrupted run stopped; a
    finished one is left as it is.

    All processes of a multi-process run call this together.

    Args:
        corpus: raw items.
        encoder: frozen encoder.
        path: the store's folder; of an encoder that gives several layers the folder that gets a
            store for each.
        settings: shards, precision, hardware, limits; `a` and `b` are not read.
        overwrite: replace a store that is there.
        console: where a progress bar and what was done go.

    Returns:
        The store, or one for each layer.

    Raises:
        UserError: a store that was made otherwise, too many items that cannot be read, or refused
            settings.
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
        _say(
            console,
            f"{path}: {len(finished[0]):,} rows, finished before (overwrite=true embeds them"
            " again)",
        )
        return finished
    shards = Shards(path, folders, corpus, listing, settings, plan) if rank == 0 else None
    done = int(distributed.broadcast_object(shards.done if shards else 0))
    batches = BatchPlan(
        len(listing.rows),
        settings.shard_rows,
        getattr(encoder, "batch_size", BATCH_SIZE),
        done,
        rank,
        size,
    )
    try:
        predict(
            ItemBatches(corpus, listing.rows, encoder, batches), settings, shards, path, console
        )
        if shards is not None:
            stores = shards.finish(encoder, {**corpus.describe(), "plan": plan})
            where = f", see {path / SKIPPED}" if shards.skipped else ""
            where += f", {len(shards.cut):,} cut, see {path / CUT}" if shards.cut else ""
            layers = f", {len(stores)} layers" if folders != [path] else ""
            told = f"{len(stores[0]):,} rows of width {stores[0].dim}{layers}"
            _say(console, f"{path}: {told}, {len(shards.skipped):,} items skipped{where}")
    finally:
        if shards is not None:
            shards.lock.release()
    distributed.barrier()
    return [EmbeddingStore(folder) for folder in folders]


def _finished(path: Path, folders: list[Path], plan: str) -> list[EmbeddingStore]:
    """The stores of this very run where all of them are finished, else none.

    Raises:
        UserError: finished stores of another run.
    """
    there = [
        EmbeddingStore(folder)
        for folder in (path, *path.glob("layer_*"))
        if (folder / "manifest.json").is_file()
    ]
    if any((store.manifest.get("source") or {}).get("plan") != plan for store in there):
        raise UserError(
            f"{path} holds a store that was made otherwise: choose another folder, or replace it"
            " with overwrite=true"
        )
    return [EmbeddingStore(folder) for folder in folders] if len(there) == len(folders) else []


def _say(console: Console | None, line: str) -> None:
    if console is not None:
        console.print(line, soft_wrap=True, highlight=False)


def embed_experiment(config: Config, console: Console | None = None) -> list[EmbeddingStore]:
    """Make the stores that the `embed` section of an experiment describes, at `data.a` and
    `data.b`.

    All that can be checked without loading a network is checked first, for both.

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
            "the experiment has no embed section: name embed.a.corpus and embed.a.encoder (and b),"
            " see docs/embedding.md"
        )
    corpora: dict[str, Corpus] = {}
    for key, side in sides.items():
        for name, part in (("corpus", side.corpus), ("encoder", side.encoder)):
            check_part(part or {}, f"embed.{key}.{name}")
        if not getattr(config.data, key):
            raise UserError(
                f"data.{key} is empty: name the folder that the store of embed.{key} goes to"
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
