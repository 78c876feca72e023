"""Training of maps, their settings chosen by cross-validation.

On each fold of the budget maps are trained to the end, once for each combination of the values that
`tuning.grid` names. The best combination and stopping step are looked up in the held-out curves,
and maps are trained again on all pairs with them.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import logging
import zipfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import Callback

from gera_lightning.training.callbacks import HeldOutWatch, LastCheckpoint, StepProgress
from gera_lightning.training.cross_validation import CORRECTION_ROWS, choose, converged, curve
from gera_lightning.training.datamodule import AlignmentDataModule
from gera_lightning.training.filter_choice import NO_CHOICE, FilterChoice, choose_filters
from gera_lightning.training.fit_closed_form import Fitted
from gera_lightning.training.loggers import make_callbacks, make_loggers
from gera_lightning.training.method import Method
from gera_lightning.training.module import AlignmentModule
from gera_lightning.training.training_set import TrainingSet, on_accelerator, shared_space
from gera_lightning.training.warm_start import WarmStart
from gera_lightning.utils import distributed
from gera_lightning.utils.files import replace_atomically
from gera_lightning.utils.trainer import make_trainer, quiet_lightning

log = logging.getLogger(__name__)
Choices = Sequence[tuple[dict[str, float], Method]]
"""Combinations of the values of `tuning.grid`, each with its method."""


def stopping_steps(max_steps: int, count: int) -> list[int]:
    """`count` stopping steps up to `max_steps`, quadratically spaced: over-fitting to few pairs
    starts early.
    """
    return sorted(
        {max(1, round(max_steps * (number / count) ** 2)) for number in range(1, count + 1)}
    )


def fit_trained(task: TrainingSet) -> Fitted:
    """Train maps, their own values and the stopping step chosen by cross-validation; the last
    training is on all pairs of the budget.
    """
    # trainer, module and rows of earlier trainings hold on to each other: a long sweep would grow
    # run by run
    gc.collect()
    everything = np.arange(len(task.rows.items))
    filters = _chosen_filters(task, everything)
    choices = task.method.candidates()
    trials = task.config.tuning.max_trials // len(choices)
    steps = stopping_steps(task.config.trainer.max_steps, trials)
    record = _tuning(task, filters.numbers, choices, steps)
    stop, values = int(record["steps"]), record["values"]
    filtered = task.filtered(filters.numbers)
    method = next(method for known, method in choices if known == values)
    task = dataclasses.replace(filtered.task, method=method)
    maps = _train_last(task, everything, stop).cpu().eval().maps
    space = shared_space(task, *maps)
    space.map_a, space.map_b = filtered.compose(*maps)
    chosen = {**filters.chosen, "steps": stop, **values}
    n_trials = filters.tried + len(choices) * len(steps)
    return Fitted(space, stop, n_trials, chosen, record["converged"])


def _tuning(
    task: TrainingSet, numbers: Mapping[str, int], choices: Choices, steps: list[int]
) -> dict[str, Any]:
    """What an interrupted run chose, or what is chosen now and kept in `tuning.json`; the same on
    all processes.
    """
    kept, first = task.folder / "tuning.json", distributed.world()[0] == 0
    record: dict[str, Any] | None = distributed.broadcast_object(
        _kept_choice(kept, choices, steps) if first else None
    )
    if record is None:
        if first:  # a checkpoint of an unknown choice is not gone on from
            last_checkpoint(task.folder).unlink(missing_ok=True)
        record = distributed.broadcast_object(_tuned(task, numbers, choices, steps))
        if first:
            replace_atomically(kept, json.dumps(record, indent=1).encode())
        distributed.barrier()
    return record


def _kept_choice(path: Path, choices: Choices, steps: list[int]) -> dict[str, Any] | None:
    """The record of an interrupted run; None where there is none that is whole and one of the
    present choices.
    """
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        known = (
            record["steps"] in steps
            and any(values == record["values"] for values, _ in choices)
            and "converged" in record
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return record if known else None


def _tuned(
    task: TrainingSet, numbers: Mapping[str, int], choices: Choices, steps: list[int]
) -> dict[str, Any]:
    """What `tuning.json` holds: the chosen step and values, whether that training had converged,
    and every held-out curve.

    Behind filters `numbers[side]` of each modality, which see as much of a fold's pools as the
    training does.
    """
    everything = np.arange(len(task.rows.items))
    parts = task.folds(everything)[: task.config.tuning.used_folds]
    scores: list[list[np.ndarray]] = [[] for _ in choices]
    for number, held in enumerate(parts):
        positions = np.setdiff1d(everything, held)
        fold = task.excluding(held).filtered(numbers).task
        warm_start = WarmStart(fold, positions)
        for place, (_, method) in enumerate(choices):
            several = len(choices) > 1
            label = f"fold {number + 1}/{len(parts)}"
            label += f", choice {place + 1}/{len(choices)}" if several else ""
            folder = task.folder / "tuning" / f"fold{number}"
            folder = folder.with_name(f"{folder.name}-choice{place}") if several else folder
            watch = _watch(fold, held, steps)
            _train(
                dataclasses.replace(fold, method=method),
                positions,
                method.config.trainer.max_steps,
                folder,
                [StepProgress(partial(task.progress, label)), watch],
                warm_start,
            )
            scores[place].append(np.stack([watch.scores[step] for step in steps]))
    curves = [np.concatenate(folds, axis=1) for folds in scores]
    best, stop = divmod(choose(np.concatenate(curves)), len(steps))
    return {
        "steps": steps[stop],
        "values": choices[best][0],
        "converged": converged(curves[best], stop),
        "curves": [
            {"values": values, "steps": steps, **curve(scores)}
            for (values, _), scores in zip(choices, curves, strict=True)
        ],
    }


def _watch(fold: TrainingSet, held: np.ndarray, steps: list[int]) -> HeldOutWatch:
    """Scores a fold's held-out pairs at the stopping steps."""

    def space(module: AlignmentModule) -> Any:
        return shared_space(fold, *module.maps, CORRECTION_ROWS)

    return HeldOutWatch(space, fold.held_out(held), steps)


def _chosen_filters(task: TrainingSet, positions: np.ndarray) -> FilterChoice:
    """Each modality's filters; of several choices the init's closed form takes the best, the same
    on all processes.
    """
    form = task.method.init
    if form is None or all(len(choices) == 1 for choices in task.method.filters.values()):
        return NO_CHOICE
    first = distributed.world()[0] == 0
    choice: FilterChoice = distributed.broadcast_object(
        on_accelerator(task, lambda seen: choose_filters(seen, form, positions)) if first else None
    )
    return choice


def _train_last(task: TrainingSet, positions: np.ndarray, stop: int) -> AlignmentModule:
    """The training on all pairs, with the user's callbacks; it goes on from a checkpoint where
    there is one.
    """
    checkpoint = last_checkpoint(task.folder)
    callbacks = [
        StepProgress(partial(task.progress, "training")),
        LastCheckpoint(checkpoint, task.config.checkpoint_every_n_steps),
        *make_callbacks(task.config.callbacks),
    ]
    warm_start = WarmStart(task, positions)
    return _train(task, positions, stop, task.folder, callbacks, warm_start, checkpoint)


def _train(
    task: TrainingSet,
    positions: np.ndarray,
    stop: int,
    folder: Path,
    callbacks: Sequence[Callback],
    warm_start: WarmStart,
    checkpoint: Path | None = None,
) -> AlignmentModule:
    """Train on some pairs up to step `stop`, from the start or from a checkpoint.

    Args:
        task, positions: what is trained on which pairs.
        stop: the last step; the learning rate's schedule is as long as the method says.
        folder: for logs.
        callbacks: of the trainer.
        warm_start: what maps start from and losses learn from.
        checkpoint: where the last training's state lies, if it does; None in tuning.
    """
    config, data = task.config, AlignmentDataModule.of_training_set(task, positions, stop)
    if distributed.world()[0] == 0:
        data.prepare_data()
    distributed.barrier()
    data.setup("fit")
    module = AlignmentModule.of_method(task.method, task.seed)
    module.start(data, warm_start)
    resumed = checkpoint is not None and distributed.broadcast_object(
        distributed.world()[0] == 0 and can_be_loaded(checkpoint)
    )
    with quiet_lightning():
        trainer = make_trainer(
            config.trainer,
            "trainer",
            config.trainer.flags,
            max_steps=stop,
            max_epochs=-1,
            gradient_clip_val=config.trainer.gradient_clip_val,
            log_every_n_steps=config.trainer.log_every_n_steps,
            logger=make_loggers(config.loggers, folder, files_only=checkpoint is None),
            callbacks=list(callbacks),
            default_root_dir=folder,
            limit_val_batches=0,
            num_sanity_val_steps=0,
        )
        trainer.fit(
            module,
            datamodule=data,
            ckpt_path=str(checkpoint) if resumed else None,
            weights_only=True,  # no code out of a pickle
        )
    return module


def can_be_loaded(checkpoint: Path) -> bool:
    """Whether there is a whole checkpoint; a damaged one is told of, and removed."""
    try:
        with zipfile.ZipFile(checkpoint) as file:  # torch itself compares no checksums
            if (damaged := file.testzip()) is not None:
                raise zipfile.BadZipFile(f"its {damaged} is damaged")
        torch.load(checkpoint, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        return False
    except Exception as error:  # of torch there are many
        log.warning(
            "%s cannot be read (%s): the training begins again",
            checkpoint,
            " ".join(str(error).split())[:100] or type(error).__name__,
        )
        checkpoint.unlink()
        return False
    return True


def last_checkpoint(folder: Path) -> Path:
    """Where a run's last training keeps its state."""
    return folder / "checkpoints" / "last.ckpt"
