"""The LightningModule: a contrastive loss on the pairs plus a geometric loss on each modality's
unpaired patches.

`L = L_pair(f(x_a), g(x_b)) + weight (L_geo^a + L_geo^b) + unpaired_weight L_unpaired`, the last one
for published peers. It receives built parts and adds nothing but steps, logging and the optimizer.
On several processes every loss is that of the joined batch, and DDP's averaged gradients are its
gradients.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer

from gera_lightning.geometry.kernels import squared_distances
from gera_lightning.losses.base import Projected, StepBatch, UnpairedLoss
from gera_lightning.losses.contrastive import positives_of
from gera_lightning.losses.geometric import GeometricLoss
from gera_lightning.models.maps import normalized
from gera_lightning.training.datamodule import Batch, Patches, Unpaired
from gera_lightning.training.mixup import FuseMix
from gera_lightning.utils.distributed import gather_rows, global_mean, world

ParameterGroups = Iterable[dict[str, Any]]
OTHER_PROCESS = 2**40
"""Seeds of two processes lie so far apart: each draws its own, such as the dropout of its own rows.
"""


class AlignmentModule(LightningModule):
    """Trains one map a modality.

    Args:
        map_a, map_b: maps into the shared space.
        pair_loss: `(z_a, z_b, positives) -> scalar` on unit rows.
        geometric_a, geometric_b: calibrated geometric losses; None trains on the pairs alone.
        scale_a, scale_b: median squared edge length of each frozen graph.
        weight: of each geometric loss.
        unpaired_loss: loss of the step's unpaired rows, its teacher fitted; None for none.
        unpaired_weight: its weight.
        mixup: mixes the pairs before the maps; None leaves them.
        optimizer: makes the optimizer of parameter groups.
        schedule_steps: length of the cosine that the learning rate falls to 0 by.
        seed: with step and process it fixes random draws such as dropout.
        log_every: steps between two that are logged. Of the others Lightning would take note and
            write nothing, a millisecond a value.
    """

    def __init__(
        self,
        map_a: nn.Module,
        map_b: nn.Module,
        pair_loss: nn.Module,
        *,
        geometric_a: GeometricLoss | None = None,
        geometric_b: GeometricLoss | None = None,
        scale_a: float = 1.0,
        scale_b: float = 1.0,
        weight: float = 1.0,
        unpaired_loss: UnpairedLoss | None = None,
        unpaired_weight: float = 1.0,
        mixup: FuseMix | None = None,
        optimizer: Callable[[ParameterGroups], Optimizer],
        schedule_steps: int,
        seed: int = 0,
        log_every: int = 1,
    ) -> None:
        super().__init__()
        self.map_a, self.map_b, self.pair_loss = map_a, map_b, pair_loss
        self.geometric_a, self.geometric_b = geometric_a, geometric_b
        self.scale_a, self.scale_b, self.weight = scale_a, scale_b, weight
        self.unpaired_loss, self.unpaired_weight, self.mixup = unpaired_loss, unpaired_weight, mixup
        self.make_optimizer, self.schedule_steps, self.seed, self.log_every = (
            optimizer,
            schedule_steps,
            seed,
            log_every,
        )

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:  # noqa: ARG002
        """Random draws of a step depend on seed, step and process alone, so that going on in
        mid-epoch changes nothing.
        """
        seed = self.seed * 1_000_003 + batch.step + world()[0] * OTHER_PROCESS
        torch.default_generator.manual_seed(
            seed
        )  # torch.manual_seed would keep a stack trace for every device that is not there
        if self.device.type != "cpu":
            torch.get_device_module(self.device).manual_seed(seed)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:  # noqa: ARG002
        """Loss of one step: all rows of a modality go through its map together, each distinct point
        of its patches once.
        """
        if self.mixup is not None:
            batch = self._mixed(self.mixup, batch)
        z_a, points_a, unpaired_a = self._mapped(
            self.map_a, batch.x_a, batch.patches_a, batch.unpaired_a
        )
        z_b, points_b, unpaired_b = self._mapped(
            self.map_b, batch.x_b, batch.patches_b, batch.unpaired_b
        )
        item = gather_rows(batch.item, batch.count)
        z_a, z_b = gather_rows(z_a, batch.count), gather_rows(z_b, batch.count)
        pair = self.pair_loss(z_a, z_b, positives_of(item, item))
        scale = getattr(self.pair_loss, "scale", None)
        terms = {"pair": pair}
        if self.geometric_a is not None:
            terms["geometric_a"] = self._geometric(
                self.geometric_a, batch.patches_a, points_a, self.scale_a
            )
        if self.geometric_b is not None:
            terms["geometric_b"] = self._geometric(
                self.geometric_b, batch.patches_b, points_b, self.scale_b
            )
        total = pair + self.weight * sum(
            (terms[name] for name in terms if name != "pair"), torch.zeros_like(pair)
        )
        if self.unpaired_loss is not None:
            step = StepBatch(
                pairs_a=Projected(gather_rows(batch.x_a, batch.count), z_a),
                pairs_b=Projected(gather_rows(batch.x_b, batch.count), z_b),
                unpaired_a=self._joined(batch.unpaired_a, unpaired_a),
                unpaired_b=self._joined(batch.unpaired_b, unpaired_b),
                scale=scale if isinstance(scale, Tensor) else None,
                step=batch.step,
            )
            terms[self.unpaired_loss.term] = self.unpaired_loss(step)
            total = total + self.unpaired_weight * terms[self.unpaired_loss.term]
        if (batch.step + 1) % self.log_every == 0:
            for name, value in {**terms, "total": total}.items():
                self.log(f"loss/{name}", value.detach(), rank_zero_only=True)
            if isinstance(scale, Tensor):
                self.log("train/scale", scale.detach(), rank_zero_only=True)
        return total

    def _mixed(self, mixup: FuseMix, batch: Batch) -> Batch:
        """The batch with this process's share of the joined batch's mixed pairs."""
        rank, size = world()
        x_a, x_b, item = (
            gather_rows(rows, batch.count) for rows in (batch.x_a, batch.x_b, batch.item)
        )
        x_a, x_b, item = (
            rows[rank::size] for rows in mixup(x_a, x_b, item, seed=self.seed, step=batch.step)
        )
        return replace(batch, x_a=x_a, x_b=x_b, item=item)

    @staticmethod
    def _mapped(
        mapping: nn.Module, x: Tensor, patches: Patches | None, unpaired: Unpaired | None
    ) -> tuple[Tensor, ...]:
        """Unit images of the pairs, of the patches' points and of the unpaired rows."""
        parts = [
            x,
            x[:0] if patches is None else patches.points,
            x[:0] if unpaired is None else unpaired.rows,
        ]
        return normalized(mapping(torch.cat(parts))).split([len(part) for part in parts])

    @staticmethod
    def _joined(unpaired: Unpaired | None, z: Tensor) -> Projected | None:
        """Unpaired rows and images of the joined batch."""
        return (
            None
            if unpaired is None
            else Projected(
                gather_rows(unpaired.rows, unpaired.count), gather_rows(z, unpaired.count)
            )
        )

    @staticmethod
    def _geometric(loss: GeometricLoss, patches: Patches | None, z: Tensor, scale: float) -> Tensor:
        assert patches is not None
        x_AMD, z_AMD = patches.points[patches.members], z[patches.members]
        edges = None
        if world()[1] > 1 and loss.operator.bandwidth == "global" and not loss.tied:
            with torch.no_grad():
                local = [squared_distances(p)[:, 0, 1:] for p in (x_AMD, z_AMD.detach())]
                edges = (gather_rows(local[0], patches.count), gather_rows(local[1], patches.count))
        return global_mean(loss(x_AMD, z_AMD, scale=scale, edges=edges), patches.count)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer, weight decay on matrices only, and a cosine schedule by step."""
        matrices = [p for p in self.parameters() if p.requires_grad and p.ndim >= 2]
        others = [p for p in self.parameters() if p.requires_grad and p.ndim < 2]
        groups: list[dict[str, Any]] = [
            {"params": matrices},
            {"params": others, "weight_decay": 0.0},
        ]
        optimizer = self.make_optimizer([group for group in groups if group["params"]])
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: (1 + math.cos(math.pi * min(step / self.schedule_steps, 1))) / 2
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
