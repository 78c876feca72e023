"""The `gera` command: sub-commands to functions, no logic.

    gera train EXPERIMENT [key=value ...]

A mistake of the user's ends in one line on standard error and exit code 2; Ctrl-C in 130, and the same command goes on later.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import warnings
from collections.abc import Sequence

from rich.console import Console

from gera_lightning import __version__
from gera_lightning.errors import UserError


def train(experiment: str, overrides: Sequence[str]) -> None:
    """Run an experiment: all its methods at all its budgets and seeds, then one table and one curve."""
    from gera_lightning import config

    loaded = config.load(experiment, overrides)
    if _start_processes(loaded.common.trainer.devices):
        return
    _quiet()
    from gera_lightning.sweep import run_experiment

    first = os.environ.get("RANK", "0") == "0"
    outcome = run_experiment(loaded, Console() if first else None)
    if first:
        print(outcome.table)
        print(f"curve        {outcome.curve}")
        print(f"results      {outcome.folder / 'results.jsonl'}")
        print(f"TensorBoard  make tensorboard EXP={loaded.name}   (or: tensorboard --logdir {outcome.folder})")


def embed(experiment: str, overrides: Sequence[str]) -> None:
    """Make an experiment's two stores from raw data, as its `embed` section says; goes on where it was stopped."""
    from gera_lightning import config

    loaded = config.load(experiment, overrides)
    if _start_processes(loaded.common.embed.devices):
        return
    _quiet()
    from gera_lightning.encoders.embed import embed_experiment

    embed_experiment(loaded.common, Console() if os.environ.get("RANK", "0") == "0" else None)


COMMANDS = {"train": train, "embed": embed}


def _start_processes(devices: int) -> bool:
    """With several devices, run this same command once a device under torchrun; True when that was done."""
    if devices == 1 or "LOCAL_RANK" in os.environ:
        return False
    import torch

    count = devices if devices > 0 else torch.cuda.device_count()
    if count <= 1:
        return False
    from torch.distributed.run import main as torchrun

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    torchrun(["--standalone", f"--nproc-per-node={count}", "-m", "gera_lightning.cli", *sys.argv[1:]])
    return True


def _quiet() -> None:
    """Leave the terminal to our own progress: no banners and no warnings of third parties."""
    import lightning.pytorch  # noqa: F401  sets its loggers' level when imported

    for name in ("lightning.pytorch", "lightning.fabric", "lightning", "pytorch_lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(lightning|torch|torchmetrics|tensorboard)(\.|$)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(prog="gera", description="Align two frozen embedding spaces from few pairs.")
    parser.add_argument("--version", action="version", version=f"gera {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, function in COMMANDS.items():
        command = commands.add_parser(name, help=(function.__doc__ or "").splitlines()[0])
        command.add_argument("experiment", nargs="?", default="", help="name of a file in experiments/, or a path to one")
        command.add_argument("overrides", nargs="*", metavar="key=value", help="settings, such as budgets=[100,300] trainer.max_steps=200")
    options = parser.parse_args(arguments)
    experiment, overrides = options.experiment, list(options.overrides)
    if "=" in experiment:  # no experiment was named
        experiment, overrides = "", [experiment, *overrides]
    try:
        COMMANDS[options.command](experiment, overrides)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
