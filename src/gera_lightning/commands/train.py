"""Run an experiment: all its methods at all its budgets and seeds, then one table and one curve.

    gera train EXPERIMENT [key=value ...]

    gera train speech_text
    gera train speech_text budgets=[100,300] trainer.max_steps=200

EXPERIMENT is a file in `experiments/`, an experiment that comes with the package (`synthetic`), or
a path to a YAML file. Finished runs are skipped; an interrupted one goes on.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gera_lightning import config
from gera_lightning.config.overrides import split_target

if TYPE_CHECKING:
    from gera_lightning.report.outcome import Outcome


def train(experiment: str | os.PathLike[str] | Mapping[str, Any], **settings: Any) -> Outcome:
    """Run an experiment from Python: `train("speech_text", budgets=[100], trainer={"max_steps":
    50})`.

    Args:
        experiment: as `config.load` takes it.
        settings: keys of the experiment; sections are mappings.

    Raises:
        UserError: as `config.load` and `run_experiment`.
    """
    from gera_lightning.experiment.runner import run_experiment
    from gera_lightning.report.outcome import summarize

    loaded = config.load(experiment, settings)
    return summarize(loaded, run_experiment(loaded))


def run(words: Sequence[str]) -> None:
    """The command line's `gera train`."""
    experiment, overrides = split_target(words)
    loaded = config.load(experiment, overrides)
    # after what a mistake is found in: these import torch
    from rich.console import Console

    from gera_lightning.commands.launch import is_first, start_processes
    from gera_lightning.utils.distributed import num_processes

    if (count := num_processes(loaded.common.trainer.devices)) > 1:
        from gera_lightning.experiment.plan import plan

        plan(loaded)  # a mistake is told once, not by each process
        start_processes(count, "train", experiment, *overrides)
        return
    from gera_lightning.experiment.runner import run_experiment
    from gera_lightning.report.outcome import summarize

    finished = run_experiment(loaded, Console() if is_first() else None)
    if is_first():
        show(experiment, summarize(loaded, finished))


def show(experiment: str, outcome: Outcome) -> None:
    """Print the table and where everything is; a file need not lie where the Makefile is."""
    report = f"make report EXP={experiment}"
    board = f"make tensorboard EXP={experiment}   (or: tensorboard --logdir {outcome.folder})"
    if experiment.endswith((".yaml", ".yml")):
        report, board = f"gera report {experiment}", f"tensorboard --logdir {outcome.folder}"
    if outcome.table:
        print(outcome.table)
        print(f"curve        {outcome.curve}")
        print(f"results      {outcome.folder / 'results.jsonl'}")
        print(f"report       {report}")
        print(f"TensorBoard  {board}")
        if outcome.note:
            print(f"note         {outcome.note}")
