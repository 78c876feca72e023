"""The place where settings become parts: a LightningModule, its data and its Trainer."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import Callback, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn

from gera_lightning.aligners.base import ClosedForm, Maps
from gera_lightning.config import Config
from gera_lightning.geometry.neighbors import SearchSettings
from gera_lightning.losses.base import UnpairedLoss
from gera_lightning.models.maps import Identity, Linear
from gera_lightning.training.cross_validation import cross_validated
from gera_lightning.training.datamodule import AlignmentDataModule
from gera_lightning.training.method import reads_unpaired, unpaired_loss
from gera_lightning.training.module import AlignmentModule
from gera_lightning.training.training_set import TrainingSet, on_accelerator
from gera_lightning.utils.errors import UserError
from gera_lightning.utils.instantiate import build
from gera_lightning.utils.trainer import trainer

CALIBRATION_PATCHES = 512


def data_module(task: TrainingSet, positions: np.ndarray, steps: int) -> AlignmentDataModule:
    """The stream of `steps` steps on these pairs, as the config asks for."""
    config = task.config
    return AlignmentDataModule(
        task.rows,
        positions=positions,
        pairs_per_step=config.batch.pairs,
        anchors_per_step=config.batch.anchors,
        k=config.graph.k if config.geometric_loss is not None else None,
        unpaired_per_step=config.batch.unpaired if reads_unpaired(config) else None,
        paired_anchors=config.batch.paired_anchors,
        max_steps=steps,
        seed=task.seed,
        cache_dir=Path(config.cache_dir) / "knn",
        search=search_settings(config),
    )


def search_settings(config: Config) -> SearchSettings:
    """How a method's neighbour graphs are built."""
    graph = config.graph
    return SearchSettings(graph.backend, graph.index, graph.nprobe, graph.shard)


def build_module(
    task: TrainingSet, data: AlignmentDataModule, starts: WarmStart
) -> AlignmentModule:
    """The LightningModule of a run: maps from their start, losses, bandwidths chosen on frozen
    patches.
    """
    config = task.config
    torch.manual_seed(task.seed)
    weights, dim = starts.linear
    maps = {}
    for number, side in enumerate("ab"):
        generator = torch.Generator().manual_seed(2 * task.seed + number)
        width = getattr(task.rows, side).pairs.shape[1]
        maps[side] = build(
            config.head, "head", width, dim, weight=weights[side], generator=generator
        )
    losses: dict[str, Any] = {"a": None, "b": None}
    scales = {"a": 1.0, "b": 1.0}
    for side, graph in data.graphs.items():
        assert config.geometric_loss is not None
        scales[side] = graph.edge_scale
        sample = graph.patches(torch.arange(min(CALIBRATION_PATCHES, len(graph))))
        losses[side] = build(config.geometric_loss, "geometric_loss").calibrated(
            data.points(side)[sample], graph.edge_scale
        )
    return AlignmentModule(
        maps["a"],
        maps["b"],
        build(config.pair_loss, "pair_loss"),
        geometric_a=losses["a"],
        geometric_b=losses["b"],
        scale_a=scales["a"],
        scale_b=scales["b"],
        weight=config.geometric_weight,
        unpaired_loss=None if config.unpaired_loss is None else starts.taught(config),
        unpaired_weight=config.unpaired_weight,
        mixup=None if config.mixup is None else build(config.mixup, "mixup"),
        optimizer=lambda groups: build(config.optimizer, "optimizer", groups),
        schedule_steps=config.trainer.max_steps,
        seed=task.seed,
        log_every=config.trainer.log_every_n_steps,
    )


@dataclass(frozen=True)
class WarmStart:
    """The closed forms that trainings on some pairs start from and learn from, each fitted once for
    all values of `tuning.grid`.

    Attributes:
        task, positions: what they are fitted on.
    """

    task: TrainingSet
    positions: np.ndarray
    teachers: dict[str, Maps] = field(default_factory=dict, repr=False)

    @cached_property
    def linear(self) -> tuple[dict[str, Tensor | None], int]:
        """Linear starts of both maps and the shared width: none and `dim`, or those of a closed
        form fitted on the same pairs.

        The start is scaled to images of unit mean square norm, so that a penalty's shrinkage does
        not weigh against the residual.
        """
        config = self.task.config
        if config.init is None:
            return {"a": None, "b": None}, config.dim
        starts: dict[str, Tensor | None] = {}
        for side, mapping in zip("ab", self._fitted(build(config.init, "init")), strict=True):
            weight = _linear_weight(mapping)
            norm = (
                (getattr(self.task.rows, side).pairs[self.positions] @ weight)
                .square()
                .sum(1)
                .mean()
                .sqrt()
            )
            starts[side] = weight / norm.clamp(min=1e-6)
        assert starts["a"] is not None
        return starts, starts["a"].shape[1]

    def taught(self, config: Config) -> UnpairedLoss:
        """The unpaired loss of a config, its teacher fitted on these pairs, where it has one."""
        loss = unpaired_loss(config)
        if loss.teacher is None:
            return loss
        key = repr((config.unpaired_loss or {}).get("teacher"))
        if key not in self.teachers:
            self.teachers[key] = self._fitted(loss.teacher)
        return loss.taught(*self.teachers[key])

    def _fitted(self, method: ClosedForm) -> Maps:
        """A closed form's maps, its setting chosen on folds of the pairs."""
        count = self.task.config.tuning.max_trials
        map_a, map_b = on_accelerator(
            self.task, lambda task: cross_validated(task, method, self.positions, count)[0]
        )
        return map_a.cpu(), map_b.cpu()


def _linear_weight(mapping: nn.Module) -> Tensor:
    if isinstance(mapping, Linear):
        return mapping.weight.detach()
    if isinstance(mapping, Identity):
        return torch.eye(mapping.dim)
    raise UserError(
        "init: maps start from a linear closed form in one space, such as init.direction=a_to_b"
    )


def make_trainer(config: Config, folder: Path, stop: int, callbacks: list[Callback]) -> Trainer:
    """Lightning's Trainer for one training.

    Raises:
        UserError: a word that Lightning does not know, or hardware that is not there.
    """
    settings = config.trainer
    return trainer(
        settings,
        "trainer",
        max_steps=stop,
        max_epochs=-1,
        gradient_clip_val=settings.gradient_clip_val,
        log_every_n_steps=settings.log_every_n_steps,
        logger=TensorBoardLogger(folder, name="", version=""),
        callbacks=callbacks,
        default_root_dir=folder,
        limit_val_batches=0,
        num_sanity_val_steps=0,
    )
