"""Run an experiment's whole sweep: all methods and seeds of its `sweep` section.

gera sweep EXPERIMENT [key=value ...]

gera sweep speech_text sweep.only=quick          the closed forms, minutes instead of hours
gera sweep speech_text sweep.workers=2           two processes on this machine
gera sweep speech_text sweep.submit=slurm        jobs of a cluster
gera sweep speech_text sweep.dry_run=true        list what would run
"""

from __future__ import annotations

from collections.abc import Sequence

from gera_lightning import config
from gera_lightning.config.overrides import split_target
from gera_lightning.utils.errors import UserError


def run(words: Sequence[str]) -> None:
    """The command line's `gera sweep`."""
    experiment, overrides = split_target(words)
    loaded = config.load(experiment, overrides, sweep=True)
    # after what a mistake is found in: these import torch
    from rich.console import Console

    from gera_lightning.commands.train import show
    from gera_lightning.experiment.runner import run_sweep
    from gera_lightning.report.outcome import summarize
    from gera_lightning.utils.distributed import num_processes

    if (count := num_processes(loaded.common.trainer.devices)) > 1:
        raise UserError(
            f"trainer.devices={loaded.common.trainer.devices}: gera sweep runs each run on one"
            f" device: set trainer.devices=1 and sweep.workers={count}, or take gera train, which"
            " trains one run on all devices"
        )
    finished = run_sweep(loaded, [experiment, *overrides], Console())
    if finished is not None:
        show(experiment, summarize(loaded, finished))
