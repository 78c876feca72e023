"""Lightning predicts with an encoder: batches go in, rows go to the store shard by shard."""

from __future__ import annotations

import os
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.distributed as dist
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text
from torch.utils.data import DataLoader

from gera_lightning.config.embed_schema import EmbedConfig
from gera_lightning.embedding.batches import REFUSALS, Batch, ItemBatches, sift
from gera_lightning.embedding.shards import Encoded, Shards
from gera_lightning.encoders.base import Encoder, NetworkEncoder, row_shape
from gera_lightning.utils import distributed
from gera_lightning.utils.trainer import make_trainer, quiet_lightning


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

    def transfer_batch_to_device(
        self, batch: Batch, device: torch.device, dataloader_idx: int
    ) -> Batch:  # noqa: ARG002
        """A network's inputs move, everything else stays."""
        if not isinstance(batch.inputs, dict):
            return batch
        inputs = {name: value.to(device, non_blocking=True) for name, value in batch.inputs.items()}
        return replace(batch, inputs=inputs)

    def predict_step(self, batch: Batch, batch_idx: int) -> Encoded:  # noqa: ARG002
        """Rows of one batch; an item that an encoder without a network refuses is skipped."""
        positions, skipped = batch.positions, batch.skipped
        if not positions:
            rows = np.empty((0, *row_shape(self.encoder)), dtype=np.float32)
        elif isinstance(self.encoder, NetworkEncoder):
            assert isinstance(batch.inputs, dict)
            rows = self.encoder.pooled(batch.inputs).float().cpu().numpy()
        else:
            assert isinstance(batch.inputs, list)
            try:
                rows = self.encoder.encode(batch.inputs)
            except REFUSALS:
                positions, items, more = sift(
                    self.encoder.encode, positions, batch.inputs, self.table
                )
                rows, skipped = self.encoder.encode(items), skipped + more
        return Encoded(batch.shard, batch.last, positions, rows, skipped, batch.cut)


class ShardWriter(BasePredictionWriter):
    """Keeps one shard's rows, and hands them to the first process's store when all processes have
    theirs.

    Args:
        shards: the store; None on the other processes.
        advance: told how many items each batch of this process had.
    """

    def __init__(self, shards: Shards | None, advance: Any) -> None:
        super().__init__("batch")
        self.shards, self.advance = shards, advance
        self.parts: list[Encoded] = []

    def write_on_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, prediction: Encoded, *_: Any
    ) -> None:  # noqa: ARG002
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


def predict(
    items: ItemBatches,
    settings: EmbedConfig,
    shards: Shards | None,
    path: Path,
    console: Console | None,
) -> None:
    """Encode all batches and commit their shards.

    Args:
        items: this process's batches.
        settings: precision and hardware.
        shards: the store; None on the other processes.
        path: its folder, the word beside the progress bar.
        console: where the bar goes.

    Raises:
        UserError: settings that Lightning refuses, or as `Shards.commit`.
    """
    plan = items.plan
    os.environ.setdefault(
        "TOKENIZERS_PARALLELISM", "false"
    )  # its threads do not survive the fork of loader processes
    loader = DataLoader(items, batch_size=None, num_workers=settings.workers, collate_fn=_as_it_is)
    shown = console is not None and shards is not None
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        RowsPerSecond(),
        TimeRemainingColumn(),
    )
    bar = Progress(
        *columns,
        console=console,
        transient=True,
        disable=not (shown and console is not None and console.is_terminal),
    )
    with bar if shown else nullcontext(), quiet_lightning():
        task = bar.add_task(
            str(path), total=plan.count, completed=min(plan.first * plan.shard_rows, plan.count)
        )
        writer = ShardWriter(shards, lambda count: bar.advance(task, count * plan.size))
        if len(plan):
            predictor = make_trainer(settings, "embed", logger=False, callbacks=[writer])
            predictor.predict(
                EncoderModule(items.encoder, items.rows), loader, return_predictions=False
            )


def _as_it_is(batch: Any) -> Any:
    return batch
