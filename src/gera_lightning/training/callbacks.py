"""Callbacks of a training: progress, one whole checkpoint at any moment, and scores of held-out
pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from lightning import Callback, LightningModule, Trainer

from gera_lightning.models.shared_space import SharedSpace
from gera_lightning.training.batch import HeldOutPairs
from gera_lightning.training.cross_validation import held_out_score
from gera_lightning.training.module import AlignmentModule
from gera_lightning.utils.files import put_in_place


class StepProgress(Callback):
    """Passes each step on to a progress display."""

    def __init__(self, report: Callable[[int, int], None]) -> None:
        self.report = report

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Report the step."""
        self.report(trainer.global_step, int(trainer.max_steps))


class LastCheckpoint(Callback):
    """Keeps one checkpoint, replaced atomically: a kill at any moment leaves a whole one."""

    def __init__(self, path: Path, every: int) -> None:
        self.path, self.every = path, every

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Save every `every` steps and at the last."""
        if trainer.global_step % self.every == 0 or trainer.global_step == trainer.max_steps:
            scratch = self.path.with_suffix(".tmp")
            trainer.save_checkpoint(scratch)
            if trainer.is_global_zero:
                put_in_place(scratch, self.path)


class HeldOutWatch(Callback):
    """Scores held-out pairs at given steps.

    Args:
        space: makes the shared space of the module's maps as they stand.
        held: the pairs, and what joins their galleries.
        steps: when to score.
    """

    def __init__(
        self,
        space: Callable[[AlignmentModule], SharedSpace],
        held: HeldOutPairs,
        steps: list[int],
    ) -> None:
        self.space, self.held, self.steps = space, held, set(steps)
        self.scores: dict[int, np.ndarray] = {}

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        """Score at one of the steps."""
        if trainer.global_step not in self.steps:
            return
        assert isinstance(module, AlignmentModule)
        module.eval()
        scores = held_out_score(self.space(module), self.held.to(module.device))
        module.train()
        self.scores[trainer.global_step] = scores.cpu().numpy()
        module.log("tuning/score", float(scores.mean()), rank_zero_only=True)
