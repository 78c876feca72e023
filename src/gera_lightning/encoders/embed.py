"""Raw items to an embedding store: Lightning predicts, shards are appended as they are whole.

A run that was stopped, however hard, goes on after its last whole shard and ends in the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import warnings
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.distributed as dist
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text
from torch.utils.data import DataLoader

from gera_lightning import distributed
from gera_lightning.config import Config
from gera_lightning.data.corpus import Corpus, Listing
from gera_lightning.data.store import EmbeddingStore
from gera_lightning.encoders.base import Encoder, NetworkEncoder
from gera_lightning.encoders.batches import REFUSALS, Batch, BatchPlan, ItemBatches, sift
from gera_lightning.encoders.settings import EmbedConfig
from gera_lightning.encoders.shards import SKIPPED, Encoded, Shards, remove_scratch, remove_store
from gera_lightning.errors import UserError
from gera_lightning.parts import build, check_part

Folder = str | os.PathLike[str]
BATCH_SIZE = 32
"""Of encoders that state none."""


class EncoderModule(LightningModule):
    """An encoder as Lightning predicts with it.

    Args:
        encoder: a network is moved to the device and runs under the trainer's precision.
        rows: the listed rows, to name what is skipped.
    """

    def __init__(self, encoder: Encoder, rows: pd.DataFrame) -> None:
        super().__init__()
        self.encoder, self.table = encoder, rows
        if isinstance(encoder, NetworkEncoder):
            self.network = encoder.model

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:  # noqa: ARG002
        """A network's inputs move, everything else stays."""
        if not isinstance(batch.inputs, dict):
            return batch
        inputs = {name: value.to(device, non_blocking=True) for name, value in batch.inputs.items()}
        return Batch(batch.shard, batch.last, batch.positions, inputs, batch.skipped)

    def predict_step(self, batch: Batch, batch_idx: int) -> Encoded:  # noqa: ARG002
        """Rows of one batch; an item that an encoder without a network refuses is skipped."""
        positions, skipped = batch.positions, batch.skipped
        if not positions:
            rows = np.empty((0, self.encoder.dim), dtype=np.float32)
        elif isinstance(self.encoder, NetworkEncoder):
            assert isinstance(batch.inputs, dict)
            rows = self.encoder.pooled(batch.inputs).float().cpu().numpy()
        else:
            assert isinstance(batch.inputs, list)
            try:
                rows = self.encoder.encode(batch.inputs)
            except REFUSALS:
                positions, items, more = sift(self.encoder.encode, positions, batch.inputs, self.table)
                rows, skipped = self.encoder.encode(items), skipped + more
        return Encoded(batch.shard, batch.last, positions, rows, skipped)


class ShardWriter(BasePredictionWriter):
    """Keeps one shard's rows, and hands them to the first process's store when all processes have theirs.

    Args:
        shards: the store; None on the other processes.
        advance: told how many items each batch of this process had.
    """

    def __init__(self, shards: Shards | None, advance: Any) -> None:
        super().__init__("batch")
        self.shards, self.advance = shards, advance
        self.parts: list[Encoded] = []

    def write_on_batch_end(self, trainer: Trainer, pl_module: LightningModule, prediction: Encoded, *_: Any) -> None:  # noqa: ARG002
        """Keep a batch; at a shard's last one, write the shard."""
        self.parts.append(prediction)
        self.advance(len(prediction.positions) + len(prediction.skipped))
        if not prediction.last:
            return
        everyone = self._gathered()
        self.parts = []
        if self.shards is not None:
            self.shards.commit(prediction.shard, everyone)

    def _gathered(self) -> list[Encoded]:
        rank, size = distributed.world()
        if size == 1:
            return self.parts
        box: list[Any] | None = [None] * size if rank == 0 else None
        dist.gather_object(self.parts, box)
        return [part for parts in box or [] for part in parts]


class RowsPerSecond(ProgressColumn):
    """Speed of the items of this run, not of those that were there before."""

    def render(self, task: Task) -> Text:
        """`123 rows/s`."""
        return Text(f"{task.speed:,.0f} rows/s" if task.speed else "")


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
) -> EmbeddingStore:
    """Embed all items of a corpus into a store, or go on where an interrupted run stopped; a finished one is left as it is.

    All processes of a multi-process run call this together.

    Args:
        corpus: raw items.
        encoder: frozen encoder.
        path: the store's folder.
        settings: shards, precision, hardware, limits; `a` and `b` are not read.
        overwrite: replace a store that is there.
        console: where a progress bar and what was done go.

    Raises:
        UserError: a store that was made otherwise, too many items that cannot be read, or refused settings.
    """
    settings, path = settings or EmbedConfig(), Path(path)
    listing = corpus.listing()
    plan = run_plan(corpus, listing, encoder, settings)
    rank, size = distributed.world()
    if overwrite:
        if rank == 0:
            remove_store(path)
        distributed.barrier()
    if (path / "manifest.json").is_file():
        store = EmbeddingStore(path)
        if (store.manifest.get("source") or {}).get("plan") != plan:
            raise UserError(f"{path} holds a store that was made otherwise: choose another folder, or replace it with overwrite=true")
        if rank == 0:
            remove_scratch(path)
        _say(console, f"{path}: {len(store):,} rows, finished before (overwrite=true embeds them again)")
        return store
    shards = Shards(path, listing, settings, plan) if rank == 0 else None
    done = int(distributed.broadcast_object(shards.done if shards else 0))
    batches = BatchPlan(len(listing.rows), settings.shard_rows, getattr(encoder, "batch_size", BATCH_SIZE), done, rank, size)
    try:
        _predict(ItemBatches(corpus, listing.rows, encoder, batches), settings, shards, path, console)
        if shards is not None:
            store = shards.finish(encoder, {**corpus.describe(), "plan": plan})
            where = f", see {path / SKIPPED}" if shards.skipped else ""
            _say(console, f"{path}: {len(store):,} rows of width {store.dim}, {len(shards.skipped):,} items skipped{where}")
    finally:
        if shards is not None:
            shards.lock.release()
    distributed.barrier()
    return EmbeddingStore(path)


def _predict(items: ItemBatches, settings: EmbedConfig, shards: Shards | None, path: Path, console: Console | None) -> None:
    plan = items.plan
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its threads do not survive the fork of loader processes
    loader = DataLoader(items, batch_size=None, num_workers=settings.workers, collate_fn=_as_it_is)
    shown = console is not None and shards is not None
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(), RowsPerSecond(), TimeRemainingColumn())
    bar = Progress(*columns, console=console, transient=True, disable=not (shown and console is not None and console.is_terminal))
    with bar if shown else nullcontext(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"(lightning|torch)(\.|$)")
        task = bar.add_task(str(path), total=plan.count, completed=min(plan.first * plan.shard_rows, plan.count))
        writer = ShardWriter(shards, lambda count: bar.advance(task, count * plan.size))
        if len(plan):
            _run(make_trainer(settings, writer), EncoderModule(items.encoder, items.rows), loader)


def _run(trainer: Trainer, module: EncoderModule, loader: DataLoader[Batch]) -> None:
    handler = signal.getsignal(signal.SIGINT)
    try:
        trainer.predict(module, loader, return_predictions=False)
    except SystemExit as leave:
        if not isinstance(leave.__context__, KeyboardInterrupt):
            raise
        signal.signal(signal.SIGINT, handler)  # on Ctrl+C Lightning exits the process, and ignores any further one
        raise KeyboardInterrupt from leave


def make_trainer(settings: EmbedConfig, writer: ShardWriter) -> Trainer:
    """Lightning's Trainer for prediction.

    Raises:
        UserError: settings that Lightning refuses.
    """
    size, local = distributed.world()[1], int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    try:
        return Trainer(
            accelerator=settings.accelerator,
            devices=local if size > 1 else 1,
            num_nodes=size // local if size > 1 else 1,
            strategy="ddp" if size > 1 else "auto",
            precision=settings.precision,  # type: ignore[arg-type]
            logger=False,
            callbacks=[writer],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
    except (ValueError, MisconfigurationException) as error:
        raise UserError(f"embed: Lightning refuses these settings ({' '.join(str(error).split())})") from error


def _as_it_is(batch: Any) -> Any:
    return batch


def _say(console: Console | None, line: str) -> None:
    if console is not None:
        console.print(line, soft_wrap=True, highlight=False)


def embed_experiment(config: Config, console: Console | None = None) -> list[EmbeddingStore]:
    """Make the stores that the `embed` section of an experiment describes, at `data.a` and `data.b`.

    All that can be checked without loading a network is checked first, for both.

    Raises:
        UserError: no such section, a part that is refused, or as `embed_corpus`.
    """
    sides = {key: side for key in ("a", "b") if (side := getattr(config.embed, key)).corpus or side.encoder}
    if not sides:
        raise UserError("the experiment has no embed section: name embed.a.corpus and embed.a.encoder (and b), see docs/embedding.md")
    corpora: dict[str, Corpus] = {}
    for key, side in sides.items():
        for name, part in (("corpus", side.corpus), ("encoder", side.encoder)):
            check_part(part or {}, f"embed.{key}.{name}")
        if not getattr(config.data, key):
            raise UserError(f"data.{key} is empty: name the folder that the store of embed.{key} goes to")
        corpora[key] = build(side.corpus, f"embed.{key}.corpus")
    distributed.initialize()
    stores = []
    for key, side in sides.items():
        encoder: Encoder = build(side.encoder, f"embed.{key}.encoder")
        path = getattr(config.data, key)
        stores.append(embed_corpus(corpora[key], encoder, path, config.embed, overwrite=config.overwrite, console=console))
    return stores
