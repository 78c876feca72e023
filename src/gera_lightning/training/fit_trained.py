"""Training of maps: on each fold of the budget to the end, once for each combination of the values
that `tuning.grid` names; the best combination and stopping step are looked up, and maps are trained
again on all pairs with them.
"""

from __future__ import annotations

import dataclasses
import gc
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from lightning import Callback

from gera_lightning.config import Config, combinations
from gera_lightning.training.build import WarmStart, build_module, data_module, make_trainer
from gera_lightning.training.callbacks import HeldOutWatch, LastCheckpoint, StepProgress
from gera_lightning.training.cross_validation import CORRECTION_ROWS, choose, converged, curve
from gera_lightning.training.filter_choice import NO_CHOICE, FilterChoice, choose_filters
from gera_lightning.training.fit_closed_form import Fitted
from gera_lightning.training.module import AlignmentModule
from gera_lightning.training.training_set import TrainingSet, on_accelerator, shared_space
from gera_lightning.utils import distributed
from gera_lightning.utils.files import replace_atomically
from gera_lightning.utils.instantiate import build
from gera_lightning.utils.trainer import quiet_lightning

Choices = Sequence[tuple[dict[str, float], Config]]
"""Combinations of the values of `tuning.grid`, each with its config."""


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
    choices = combinations(task.config)
    steps = stopping_steps(
        task.config.trainer.max_steps, task.config.tuning.max_trials // len(choices)
    )
    record = _tuning(task, filters.numbers, choices, steps)
    stop, values = int(record["steps"]), record["values"]
    filtered = task.filtered(filters.numbers)
    task = dataclasses.replace(
        filtered.task, config=next(config for known, config in choices if known == values)
    )
    module = (
        _train(task, everything, stop, task.folder, partial(task.progress, "training")).cpu().eval()
    )
    space = shared_space(task, module.map_a, module.map_b)
    space.map_a, space.map_b = filtered.compose(module.map_a, module.map_b)
    chosen = {**filters.chosen, "steps": stop, **values}
    return Fitted(
        space, stop, filters.tried + len(choices) * len(steps), chosen, record["converged"]
    )


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
        record: dict[str, Any] = json.loads(path.read_text())
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
    """What `tuning.json` holds: the chosen step and values, whether that training had come to rest,
    and every held-out curve.

    Behind filters `numbers[side]` of each modality, which see as much of a fold's pools as the
    training does.
    """
    everything = np.arange(len(task.rows.items))
    parts = task.folds(everything)[: task.config.tuning.used_folds]
    scores: list[list[np.ndarray]] = [[] for _ in choices]
    for number, held in enumerate(parts):
        positions, fold = (
            np.setdiff1d(everything, held),
            task.excluding(held).filtered(numbers).task,
        )
        starts = WarmStart(fold, positions)
        for place, (_, config) in enumerate(choices):
            watch = HeldOutWatch(
                lambda module, fold=fold: shared_space(
                    fold, module.map_a, module.map_b, CORRECTION_ROWS
                ),  # type: ignore[misc]
                fold.held_out(held),
                fold.distractors(),
                steps,
            )
            more = f", choice {place + 1}/{len(choices)}" if len(choices) > 1 else ""
            progress = partial(task.progress, f"fold {number + 1}/{len(parts)}{more}")
            folder = (
                task.folder
                / "tuning"
                / (f"fold{number}-choice{place}" if more else f"fold{number}")
            )
            _train(
                dataclasses.replace(fold, config=config),
                positions,
                config.trainer.max_steps,
                folder,
                progress,
                watch,
                starts=starts,
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


def _chosen_filters(task: TrainingSet, positions: np.ndarray) -> FilterChoice:
    """Each modality's filters; of several choices the start's closed form takes the best, the same
    on all processes.
    """
    if all(len(task.choices(side)) == 1 for side in "ab"):
        return NO_CHOICE
    assert task.config.init is not None  # `check` refuses that
    method = build(task.config.init, "init")
    first = distributed.world()[0] == 0
    choice: FilterChoice = distributed.broadcast_object(
        on_accelerator(task, lambda seen: choose_filters(seen, method, positions))
        if first
        else None
    )
    return choice


def _train(
    task: TrainingSet,
    positions: np.ndarray,
    stop: int,
    folder: Path,
    progress: Callable[[int, int], None],
    *callbacks: Callback,
    starts: WarmStart | None = None,
) -> AlignmentModule:
    """Train on some pairs up to step `stop`; the last training (no callbacks) goes on from a
    checkpoint where there is one.
    """
    config, data = task.config, data_module(task, positions, stop)
    if distributed.world()[0] == 0:
        data.prepare_data()
    distributed.barrier()
    data.setup("fit")
    module = build_module(task, data, starts or WarmStart(task, positions))
    checkpoint = last_checkpoint(folder)
    final = not callbacks
    saver = [LastCheckpoint(checkpoint, config.trainer.checkpoint_every_n_steps)] if final else []
    with quiet_lightning():
        trainer = make_trainer(config, folder, stop, [StepProgress(progress), *saver, *callbacks])
        trainer.fit(
            module,
            datamodule=data,
            ckpt_path=str(checkpoint) if final and checkpoint.exists() else None,
        )
    return module


def last_checkpoint(folder: Path) -> Path:
    """Where a run's last training keeps its state."""
    return folder / "checkpoints" / "last.ckpt"
