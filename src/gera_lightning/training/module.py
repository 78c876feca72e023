"""The LightningModule: one map per modality, trained by a method's weighted losses.

`L = sum over losses of weight * loss(step)`. On several processes every loss is that of the joined
batch, and DDP's averaged gradients are its gradients.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

import torch
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from gera_lightning.aligners.aligner import Aligner
from gera_lightning.config import load
from gera_lightning.evaluation.retrieval import RetrievalRanks
from gera_lightning.losses.base import Loss, LossSetup, Projected, ProjectedPatches, StepBatch
from gera_lightning.losses.contrastive import positives_of
from gera_lightning.losses.geometric import CALIBRATION_PATCHES
from gera_lightning.models.maps import normalized
from gera_lightning.models.shared_space import SharedSpace
from gera_lightning.training.batch import Batch, HeldOutPairs, Patches, Unpaired
from gera_lightning.training.cross_validation import held_out_ranks
from gera_lightning.training.datamodule import AlignmentDataModule
from gera_lightning.training.method import Method
from gera_lightning.training.training_set import shared_space
from gera_lightning.training.warm_start import WarmStart
from gera_lightning.utils.distributed import gather_rows, world
from gera_lightning.utils.errors import UserError
from gera_lightning.utils.instantiate import refuse_import_paths

FROM_CHECKPOINT: ContextVar[bool] = ContextVar("settings_from_checkpoint", default=False)
"""Whether the settings of a module that is being made stand in a checkpoint."""
OTHER_PROCESS = 2**40
"""Seeds of two processes lie so far apart: each draws its own, such as the dropout of its rows."""


class AlignmentModule(LightningModule):
    """Trains one map per modality, as a trained preset says; works in any Lightning Trainer::

        module = AlignmentModule("gera", settings={"losses.geometric.weight": 0.3})
        data = AlignmentDataModule("data/pictures/image", "data/pictures/text", budget=100)
        Trainer(max_steps=200, gradient_clip_val=1.0).fit(module, datamodule=data)
        aligner = module.to_aligner(data)

    With a held-out fold (`AlignmentDataModule(..., val_fold=0)`) it logs `val/score`, `val/r@10`
    and `val/mrr`, which `ModelCheckpoint` and `EarlyStopping` can watch (mode `max`).

    Args:
        method: a trained preset, such as `gera` or `contrastive`.
        seed: with step and process it fixes the start and random draws such as dropout.
        settings: dotted keys of an experiment that change the preset; read are those of the maps,
            losses, optimizer and tuning.
        schedule_steps: length of the cosine by which the learning rate falls to 0; by default the
            trainer's `max_steps`.

    Raises:
        UserError: an unknown preset or key, or a closed form, which trains nothing.
    """

    def __init__(
        self,
        method: str = "gera",
        seed: int = 0,
        settings: Mapping[str, Any] | None = None,
        schedule_steps: int | None = None,
    ) -> None:
        super().__init__()
        if FROM_CHECKPOINT.get():
            refuse_import_paths(settings, "settings of the checkpoint")
        config = load({}, {"methods": [method], **(settings or {})}).methods[method]
        if config.closed_form is not None:
            raise UserError(
                f"{method} is a closed form and trains nothing: take align(..., method={method!r})"
            )
        self._set_up(Method.from_config(config), seed, schedule_steps)
        given = {"method": method, "seed": seed, "settings": dict(settings or {})}
        self.save_hyperparameters({**given, "schedule_steps": schedule_steps}, logger=False)

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls, checkpoint_path: Any, **options: Any
    ) -> AlignmentModule:
        """Lightning's `load_from_checkpoint`; a checkpoint from another person runs no code.

        Args:
            checkpoint_path: what a Trainer saved.
            options: as Lightning takes them, such as `map_location`, or arguments of this class.
                `weights_only`, True by default, refuses a pickle that holds more than weights and
                plain settings.

        Raises:
            UserError: the checkpoint's settings name a class by its import path, and you do not
                pass `settings` yourself.
        """
        token = FROM_CHECKPOINT.set("settings" not in options)
        try:
            return super().load_from_checkpoint(
                checkpoint_path, **{"weights_only": True, **options}
            )
        finally:
            FROM_CHECKPOINT.reset(token)

    @classmethod
    def of_method(cls, method: Method, seed: int) -> AlignmentModule:
        """The module of a method whose parts are built already."""
        module = cls.__new__(cls)
        LightningModule.__init__(module)
        module._set_up(method, seed, method.config.trainer.max_steps)
        return module

    def _set_up(self, method: Method, seed: int, schedule_steps: int | None) -> None:
        self.method, self.seed, self.schedule_steps = method, seed, schedule_steps
        self.losses = method.make_losses()
        self.map_a: nn.Module | None = None
        self.map_b: nn.Module | None = None
        self.log_every = method.config.trainer.log_every_n_steps

    def named_losses(self) -> dict[str, Loss]:
        """The losses by name."""
        return {name: loss for name, loss in self.losses.items() if isinstance(loss, Loss)}

    @property
    def maps(self) -> tuple[nn.Module, nn.Module]:
        """The maps of `a` and `b`, once a training has made them."""
        assert self.map_a is not None
        assert self.map_b is not None
        return self.map_a, self.map_b

    def setup(self, stage: str) -> None:
        """Make the maps from what the data module holds, before a training."""
        if stage != "fit" or self.map_a is not None:
            return
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, AlignmentDataModule):
            raise UserError("AlignmentModule trains on an AlignmentDataModule: pass datamodule=...")
        training_set = data.training_set(self.method)
        self.start(data, WarmStart(training_set, data.positions))

    def start(self, data: AlignmentDataModule, warm_start: WarmStart) -> None:
        """Make the maps from their start, and let the losses look at the frozen data."""
        torch.manual_seed(self.seed)
        weights, dim = warm_start.linear()
        widths = [getattr(data.rows, side).pairs.shape[1] for side in "ab"]
        self._make_maps(widths, dim, weights)
        patches = {}
        for side, graph in data.graphs.items():
            anchors = torch.arange(min(CALIBRATION_PATCHES, len(graph)))
            patches[side] = data.points(side)[graph.patches(anchors)], graph.edge_scale
        setup = LossSetup(patches, warm_start.fit_closed_form)
        for loss in self.named_losses().values():
            loss.prepare(setup)

    def _make_maps(self, widths: list[int], dim: int, weights: Mapping[str, Tensor | None]) -> None:
        maps = []
        for number, side in enumerate("ab"):
            generator = torch.Generator().manual_seed(2 * self.seed + number)
            weight = weights[side]
            maps.append(self.method.head(widths[number], dim, weight=weight, generator=generator))
        self.map_a, self.map_b = maps
        self.widths = [*widths, dim]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the widths, from which the maps are made again."""
        checkpoint["widths"] = self.widths

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Make the maps that the weights are loaded into, where there are none yet."""
        if self.map_a is None:
            *widths, dim = checkpoint["widths"]
            self._make_maps(widths, dim, {"a": None, "b": None})

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:  # noqa: ARG002
        """Random draws of a step depend on seed, step and process alone, so that going on in
        mid-epoch changes nothing.
        """
        seed = self.seed * 1_000_003 + batch.step + world()[0] * OTHER_PROCESS
        # torch.manual_seed would keep a stack trace for every device that is not there
        torch.default_generator.manual_seed(seed)
        if self.device.type != "cpu":
            torch.get_device_module(self.device).manual_seed(seed)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:  # noqa: ARG002
        """Weighted sum of the losses of one step."""
        step = self.project(self._mixed(batch))
        terms = {name: loss.on_step(step) for name, loss in self.named_losses().items()}
        weighted = [self.method.losses[name].weight * term for name, term in terms.items()]
        total: Tensor = sum(weighted[1:], weighted[0])
        if (batch.step + 1) % self.log_every == 0:
            for name, value in {**terms, "total": total}.items():
                self.log(f"loss/{name}", value.detach(), rank_zero_only=True)
            if step.scale is not None:
                self.log("train/scale", step.scale.detach(), rank_zero_only=True)
        return total

    def validation_step(self, batch: HeldOutPairs, batch_idx: int) -> None:  # noqa: ARG002
        """Ranks of the held-out pairs' partners, as tuning scores them."""
        ranks = held_out_ranks(SharedSpace(*self.maps), batch)
        metric = RetrievalRanks(sync_on_compute=False)
        metric.update(ranks.flatten())
        found = metric.compute()
        measures = {"score": -ranks.log().mean(), "r@10": found["r@10"], "mrr": found["mrr"]}
        for name, value in measures.items():
            self.log(f"val/{name}", value.float(), rank_zero_only=True, batch_size=len(batch.item))

    def to_aligner(self, data: AlignmentDataModule) -> Aligner:
        """The trained maps as an aligner, to encode, search and save.

        Args:
            data: what it was trained on: preprocessing and score correction are of these rows.
        """
        training_set = data.training_set(self.method)
        space = shared_space(training_set, *self.cpu().eval().maps)
        about = {"dim_a": self.widths[0], "dim_b": self.widths[1], "seed": self.seed}
        return Aligner(data.rows.a.preprocess, data.rows.b.preprocess, space, about)

    def project(self, batch: Batch) -> StepBatch:
        """A step's rows and their images: all rows of a modality go through its map together, each
        distinct point of its patches once.
        """
        map_a, map_b = self.maps
        pairs_a, patches_a, unpaired_a = _project(
            map_a, batch.x_a, batch.patches_a, batch.unpaired_a
        )
        pairs_b, patches_b, unpaired_b = _project(
            map_b, batch.x_b, batch.patches_b, batch.unpaired_b
        )
        item = gather_rows(batch.item, batch.count)
        known = (getattr(loss, "scale", None) for loss in self.losses.values())
        scales = [scale for scale in known if isinstance(scale, Tensor)]
        return StepBatch(
            pairs_a=_joined(pairs_a, batch.count),
            pairs_b=_joined(pairs_b, batch.count),
            positives=positives_of(item, item),
            unpaired_a=unpaired_a,
            unpaired_b=unpaired_b,
            patches_a=patches_a,
            patches_b=patches_b,
            scale=scales[0] if scales else None,
            step=batch.step,
        )

    def _mixed(self, batch: Batch) -> Batch:
        """The batch with mixed pairs: the joined batch is mixed, each process takes its share."""
        mixup = self.method.mixup
        if mixup is None:
            return batch
        rank, size = world()
        x_a, x_b, item = (
            gather_rows(rows, batch.count) for rows in (batch.x_a, batch.x_b, batch.item)
        )
        mixed = mixup(x_a, x_b, item, seed=self.seed, step=batch.step)
        x_a, x_b, item = (rows[rank::size] for rows in mixed)
        return replace(batch, x_a=x_a, x_b=x_b, item=item)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer, weight decay on matrices only, and a cosine schedule by step."""
        trainable = [p for p in self.parameters() if p.requires_grad]
        groups: list[dict[str, Any]] = [
            {"params": [p for p in trainable if p.ndim >= 2]},
            {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
        ]
        optimizer = self.method.optimizer([group for group in groups if group["params"]])
        length = self.schedule_steps or int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: (1 + math.cos(math.pi * min(step / length, 1))) / 2
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _project(
    mapping: nn.Module, x: Tensor, patches: Patches | None, unpaired: Unpaired | None
) -> tuple[Projected, ProjectedPatches | None, Projected | None]:
    """A modality's pairs, patches and unpaired rows with their unit images."""
    points = x[:0] if patches is None else patches.points
    rows = x[:0] if unpaired is None else unpaired.rows
    parts = [x, points, rows]
    z_pairs, z_points, z_rows = normalized(mapping(torch.cat(parts))).split(list(map(len, parts)))
    return (
        Projected(x, z_pairs),
        None
        if patches is None
        else ProjectedPatches(Projected(points, z_points), patches.members, patches.count),
        None if unpaired is None else _joined(Projected(rows, z_rows), unpaired.count),
    )


def _joined(rows: Projected, count: int) -> Projected:
    """Rows and images of the joined batch of all processes."""
    return Projected(gather_rows(rows.x, count), gather_rows(rows.z, count))
