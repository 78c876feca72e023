"""A Lightning Trainer at work, in training as in prediction."""

from __future__ import annotations

import logging
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

LOGGERS = ("lightning", "lightning.pytorch", "lightning.fabric", "pytorch_lightning")


@contextmanager
def undisturbed() -> Iterator[None]:
    """Build and run a Trainer: no lines of Lightning's, no warnings of third parties, and Ctrl+C interrupts as everywhere.

    On Ctrl+C Lightning exits the process and ignores any further one; here it is a KeyboardInterrupt, and the handler is as it was.

    Raises:
        KeyboardInterrupt: on Ctrl+C.
    """
    handler = signal.getsignal(signal.SIGINT)
    levels = {name: logging.getLogger(name).level for name in LOGGERS}
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"(lightning|torch|torchmetrics|tensorboard)(\.|$)")
            for name in LOGGERS:
                logging.getLogger(name).setLevel(logging.ERROR)
            yield
    except SystemExit as leave:
        if not isinstance(leave.__context__, KeyboardInterrupt):
            raise
        signal.signal(signal.SIGINT, handler)
        raise KeyboardInterrupt from leave
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
