"""A Lightning Trainer at work, in training as in prediction."""

from __future__ import annotations

import inspect
import logging
import os
import signal
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from lightning import Callback, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from gera_lightning.utils import distributed
from gera_lightning.utils.errors import UserError, did_you_mean


class Hardware(Protocol):
    """Settings of what a Trainer computes on, and in which precision."""

    accelerator: str
    precision: str


OURS = {"logger": "loggers", "callbacks": "callbacks", "max_epochs": "trainer.max_steps"}
"""Flags of Lightning's Trainer that the settings give another place."""


def check_flag(name: str, listed: Sequence[str]) -> None:
    """Refuse a word that is no flag of Lightning's Trainer, or one that has another place.

    Raises:
        UserError: naming the nearest flag, or the place.
    """
    flags = list(inspect.signature(Trainer).parameters)
    if name in OURS:
        raise UserError(f"trainer.{name}: set {OURS[name]} instead")
    if name not in flags:
        near = did_you_mean(name, [*listed, *flags])
        raise UserError(f"trainer.{name}: Lightning's Trainer has no such flag{near}")


def make_trainer(
    settings: Hardware, section: str, flags: Mapping[str, Any] | None = None, **options: Any
) -> Trainer:
    """A Trainer on as many processes as were started, which shows and keeps nothing of its own
    accord.

    Args:
        settings: accelerator and precision, in Lightning's words.
        section: where they stand in a config.
        flags: flags of Lightning's Trainer that the user set; they win.
        options: further arguments of Lightning's Trainer.

    Raises:
        UserError: a word that Lightning does not know, or hardware that is not there.
    """
    on_cpu = settings.accelerator == "cpu" or not torch.accelerator.is_available()
    if settings.precision == "16-mixed" and on_cpu:  # Lightning would take bf16 in its place
        raise UserError(
            "needs an accelerator",
            key=f"{section}.precision",
            value=settings.precision,
            remedy="take bf16-mixed on a CPU",
        )
    size, local = distributed.world()[1], int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    try:
        return Trainer(
            **{
                "accelerator": settings.accelerator,
                "devices": local if size > 1 else 1,
                "num_nodes": size // local if size > 1 else 1,
                "strategy": "ddp" if size > 1 else "auto",
                "precision": settings.precision,
                "enable_checkpointing": False,
                "enable_progress_bar": False,
                "enable_model_summary": False,
                "use_distributed_sampler": False,
                **options,
                "callbacks": [EndOnSignal(), *options.get("callbacks", ())],
                **(flags or {}),
            }
        )
    except (ValueError, TypeError, ImportError, MisconfigurationException) as error:
        raise UserError(
            f"{section}: Lightning refuses these settings ({' '.join(str(error).split())})"
        ) from error


class EndOnSignal(Callback):
    """SIGTERM ends a training as it ends whatever is around it.

    Lightning's own handler would let the process exit with code 0, unfinished, and on several
    processes wait for the others.
    """

    def __init__(self) -> None:
        self.handler = signal.getsignal(signal.SIGTERM)

    def on_train_start(self, *_: Any) -> None:
        """Put the handler back that was there before Lightning's."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self.handler)

    def on_predict_start(self, *_: Any) -> None:
        """Likewise."""
        self.on_train_start()


LOGGERS = ("lightning", "lightning.pytorch", "lightning.fabric", "pytorch_lightning")


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Build and run a Trainer: no lines of Lightning's, no warnings of third parties, and Ctrl-C
    interrupts as everywhere.

    On Ctrl-C Lightning exits the process and ignores any further one; here it is a
    KeyboardInterrupt, and the handler is as it was.

    Raises:
        KeyboardInterrupt: on Ctrl-C; `Interrupted` on SIGTERM and SIGHUP of a command.
    """
    handler = signal.getsignal(signal.SIGINT)
    levels = {name: logging.getLogger(name).level for name in LOGGERS}
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", module=r"(lightning|torch|torchmetrics|tensorboard)(\.|$)"
            )
            for name, level in levels.items():
                if level in (
                    logging.NOTSET,
                    logging.INFO,
                ):  # as Lightning left it, not as a user set it
                    logging.getLogger(name).setLevel(logging.ERROR)
            yield
    except SystemExit as leave:
        if not isinstance(leave.__context__, KeyboardInterrupt):
            raise
        signal.signal(signal.SIGINT, handler)
        raise leave.__context__ from None
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
