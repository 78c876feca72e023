"""Encode with Lightning's `Trainer.predict`; rows go to the store shard by shard."""

from __future__ import annotations

import os
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
from gera_lightning.data.records import Skipped
from gera_lightning.embedding.batches import REFUSALS, Batch, ItemBatches, sift
from gera_lightning.embedding.shards import Encoded, Shards
from gera_lightning.encoders.base import Encoder, NetworkEncoder, row_shape
from gera_lightning.utils import distributed
from gera_lightning.utils.trainer import make_trainer, quiet_lightning


class EncoderModule(LightningModule):
    """An encoder as a LightningModule.

    Args:
        encoder: its network, where it has one, is moved to the device and runs under the trainer's
            precision.
        rows: the listed rows, to name what is skipped.
    """

    def __init__(self, encoder: Encoder, rows: pd.DataFrame) -> None:
        super().__init__()
        self.encoder, self.table = encoder, rows
        if isinstance(encoder, NetworkEncoder):
            self.network = encoder.model

    def transfer_batch_to_device(
        self,
        batch: Batch,
        device: torch.device,
        dataloader_idx: int,  # noqa: ARG002
    ) -> Batch:
        """Move the inputs of a network; everything else stays."""
        if not isinstance(batch.inputs, dict):
            return batch
        inputs = {name: value.to(device, non_blocking=True) for name, value in batch.inputs.items()}
        return replace(batch, inputs=inputs)

    def predict_step(self, batch: Batch, batch_idx: int) -> Encoded:  # noqa: ARG002
        """Rows of one batch."""
        positions, refused = batch.positions, list[Skipped]()
        if not positions:
            rows = np.empty((0, *row_shape(self.encoder)), dtype=np.float32)
        elif isinstance(self.encoder, NetworkEncoder):
            assert isinstance(batch.inputs, dict)
            rows = self.encoder.pooled(batch.inputs).float().cpu().numpy()
        else:
            assert isinstance(batch.inputs, list)
            positions, rows, refused = self._encode(positions, batch.inputs)
        skipped = batch.skipped + refused
        return Encoded(batch.shard, batch.last, positions, rows, skipped, batch.cut)

    def _encode(
        self, positions: list[int], items: list[Any]
    ) -> tuple[list[int], np.ndarray, list[Skipped]]:
        """Rows of an encoder without a network, with their positions, and the items it refuses."""
        try:
            return positions, self.encoder.encode(items), []
        except REFUSALS:  # one item is at fault: take them one by one
            positions, items, refused = sift(self.encoder.encode, positions, items, self.table)
            return positions, self.encoder.encode(items), refused


class ShardWriter(BasePredictionWriter):
    """Collects the rows of a shard from all processes, and writes them on the first one.

    Args:
        shards: the growing store; None on the other processes.
        advance: called with the number of items in each batch of this process.
    """

    def __init__(self, shards: Shards | None, advance: Any) -> None:
        super().__init__("batch")
        self.shards, self.advance = shards, advance
        self.batches: list[Encoded] = []

    def write_on_batch_end(
        self,
        trainer: Trainer,  # noqa: ARG002
        pl_module: LightningModule,  # noqa: ARG002
        prediction: Encoded,
        *_: Any,
    ) -> None:
        """Keep a batch; after the last one of a shard, write the shard."""
        self.batches.append(prediction)
        self.advance(len(prediction.positions) + len(prediction.skipped))
        if not prediction.last:
            return
        batches = self._of_all_processes()
        self.batches = []
        if self.shards is not None:
            self.shards.commit(prediction.shard, batches)

    def _of_all_processes(self) -> list[Encoded]:
        """The batches of every process on the first one, none on the others."""
        rank, size = distributed.world()
        if size == 1:
            return self.batches
        gathered: list[Any] | None = [None] * size if rank == 0 else None
        dist.gather_object(self.batches, gathered)
        return [batch for of_process in gathered or [] for batch in of_process]


class RowsPerSecond(ProgressColumn):
    """Speed of this run; rows of an earlier, interrupted one are not counted."""

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
    """Encode all batches and write their shards.

    Args:
        items: the batches of this process.
        settings: precision and hardware.
        shards: the growing store; None on the other processes.
        path: its folder, shown beside the progress bar.
        console: where the bar goes.

    Raises:
        UserError: settings that Lightning refuses, or as `Shards.commit`.
    """
    plan = items.plan
    # the threads of the tokenizers do not survive the fork of loader processes
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    loader = DataLoader(items, batch_size=None, num_workers=settings.workers, collate_fn=_identity)
    bar = _progress_bar(console if shards is not None else None)
    with bar, quiet_lightning():
        done = min(plan.first * plan.shard_rows, plan.count)
        task = bar.add_task(str(path), total=plan.count, completed=done)
        writer = ShardWriter(shards, lambda count: bar.advance(task, count * plan.size))
        if len(plan):
            predictor = make_trainer(settings, "embed", logger=False, callbacks=[writer])
            module = EncoderModule(items.encoder, items.rows)
            predictor.predict(module, loader, return_predictions=False)


def _progress_bar(console: Console | None) -> Progress:
    """A bar of the rows; it shows nothing without a console, or where that is no terminal."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        RowsPerSecond(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=console is None or not console.is_terminal,
    )


def _identity(batch: Any) -> Any:
    return batch
