"""Lightning's loggers and callbacks that the settings name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning import Callback
from lightning.pytorch import loggers as lightning_loggers
from lightning.pytorch.loggers import Logger

from gera_lightning.utils.errors import UserError
from gera_lightning.utils.instantiate import build, expect, spec_of

LOGGERS = {
    "tensorboard": (
        "TensorBoardLogger",
        lambda folder: {"save_dir": folder, "name": "", "version": ""},
    ),
    "csv": ("CSVLogger", lambda folder: {"save_dir": folder, "name": "csv", "version": ""}),
    "wandb": ("WandbLogger", lambda folder: {"save_dir": folder}),
    "mlflow": ("MLFlowLogger", lambda folder: {"save_dir": str(folder / "mlruns")}),
}
"""Short name to Lightning's class and where it writes."""
FILES = ("tensorboard", "csv")
"""Loggers that write into a run's folder; those of the folds of tuning are of these alone."""


def make_loggers(specs: Sequence[Any], folder: Path, *, files_only: bool = False) -> list[Logger]:
    """The loggers that write for a training in `folder`.

    Args:
        specs: `loggers` of the config.
        folder: of the training.
        files_only: leave out those that write elsewhere, for the trainings of tuning.

    Raises:
        UserError: a logger that is unknown or not installed.
    """
    loggers = []
    for place, part in enumerate(specs):
        where = f"loggers[{place}]"
        spec = spec_of(part, where)
        name = spec["class"]
        if files_only and name not in FILES:
            continue
        if name not in LOGGERS:
            loggers.append(build(spec, where))
            expect(loggers[-1], Logger, where, "tensorboard")
            continue
        class_name, arguments = LOGGERS[name]
        given = {key: value for key, value in spec.items() if key != "class"}
        try:
            loggers.append(getattr(lightning_loggers, class_name)(**{**arguments(folder), **given}))
        except (ModuleNotFoundError, TypeError) as error:
            raise UserError(
                f"cannot be made ({' '.join(str(error).split())})", key=where, value=name
            ) from error
    return loggers


def make_callbacks(specs: Sequence[Any]) -> list[Callback]:
    """The callbacks of `callbacks` in the config.

    Raises:
        UserError: one that is no callback, or refuses its arguments.
    """
    callbacks = [build(spec, f"callbacks[{place}]") for place, spec in enumerate(specs)]
    for place, callback in enumerate(callbacks):
        expect(
            callback, Callback, f"callbacks[{place}]", "lightning.pytorch.callbacks.EarlyStopping"
        )
    return callbacks
