"""Make an experiment's two stores from raw data, as its `embed` section says.

    gera embed EXPERIMENT [key=value ...]

An interrupted run goes on where it was stopped.
"""

from __future__ import annotations

from collections.abc import Sequence

from gera_lightning import config
from gera_lightning.config.overrides import split_target


def run(words: Sequence[str]) -> None:
    """The command line's `gera embed`."""
    experiment, overrides = split_target(words)
    loaded = config.load(experiment, overrides)
    # after what a mistake is found in: these import torch
    from rich.console import Console

    from gera_lightning.commands.launch import is_first, start_processes
    from gera_lightning.utils.distributed import num_processes

    if (count := num_processes(loaded.common.embed.devices)) > 1:
        start_processes(count, "embed", experiment, *overrides)
        return
    from gera_lightning.embedding.embed import embed_experiment

    stores = embed_experiment(loaded.common, Console() if is_first() else None)
    if is_first():
        print(next_step(experiment, [str(store.path) for store in stores]))


def next_step(experiment: str, paths: Sequence[str]) -> str:
    """What to do with the stores that were made."""
    if len(paths) == 2:
        return f"next  gera doctor {' '.join(paths)}   then: gera train {experiment}"
    return f"next  gera inspect {paths[0]}"
