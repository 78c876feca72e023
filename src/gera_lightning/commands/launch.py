"""One process per device: the same command started under torchrun."""

from __future__ import annotations

import logging
import os
import sys

from gera_lightning.utils.distributed import cores
from gera_lightning.utils.signals import PARENT, Interrupted, as_parent


def start_processes(count: int, *words: str) -> None:
    """Run `gera WORDS` in `count` processes under torchrun; where one of them fails, exit as it
    did.

    Raises:
        Interrupted: by a signal, after the processes were ended.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // count)))
    os.environ.update(as_parent())
    # torchrun's lines about signals and exit codes: the processes say what happened, or we do
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        torchrun(["--standalone", f"--nproc-per-node={count}", "-m", "gera_lightning", *words])
    except ChildFailedError as error:  # the process has said what it was
        sys.exit(error.get_first_failure()[1].exitcode)
    except SignalException as error:
        raise Interrupted(error.sigval) from error
    finally:
        del os.environ[PARENT]


def is_first() -> bool:
    """Whether this process is the one that prints."""
    return os.environ.get("RANK", "0") == "0"
