"""One process per device: the same command started under torchrun."""

from __future__ import annotations

import os
import sys

from gera_lightning.utils.distributed import cores


def start_processes(count: int, *words: str) -> None:
    """Run `gera WORDS` in `count` processes under torchrun; where one of them fails, exit as it
    did.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // count)))
    try:
        torchrun(["--standalone", f"--nproc-per-node={count}", "-m", "gera_lightning", *words])
    except ChildFailedError as error:  # the process has said what it was
        sys.exit(error.get_first_failure()[1].exitcode)


def is_first() -> bool:
    """Whether this process is the one that prints."""
    return os.environ.get("RANK", "0") == "0"
