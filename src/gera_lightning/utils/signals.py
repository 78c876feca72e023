"""SIGTERM and SIGHUP end a command as Ctrl-C does: with one line, an exit code of 128 + signal, and
its processes.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

ENDING = (signal.SIGTERM, signal.SIGHUP)
"""Signals that ask a process to end, beside Ctrl-C."""
PARENT = "GERA_PARENT"
"""Environment variable in which a command gives its number to the processes that it starts."""
SET_PARENT_DEATH_SIGNAL = 1
"""Linux's `PR_SET_PDEATHSIG`."""


class Interrupted(KeyboardInterrupt):
    """A signal that asks the process to end, raised where Ctrl-C would be.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def exit_code_of(interrupt: KeyboardInterrupt) -> int:
    """128 + signal: 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP."""
    return 128 + (interrupt.number if isinstance(interrupt, Interrupted) else signal.SIGINT)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Within it each of `ENDING` raises `Interrupted`.

    A signal that is ignored (`nohup`) or handled already is left alone.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        if _in_deletion(frame):  # Python drops what is raised there: once more in a moment
            threading.Timer(0.02, os.kill, (os.getpid(), number)).start()
        else:
            raise Interrupted(number)

    in_main_thread = threading.current_thread() is threading.main_thread()
    ours = [s for s in ENDING if in_main_thread and signal.getsignal(s) == signal.SIG_DFL]
    for signum in ours:
        signal.signal(signum, stop)
    try:
        yield
    finally:
        for signum in ours:
            signal.signal(signum, signal.SIG_DFL)


def _in_deletion(frame: FrameType | None) -> bool:
    while frame is not None and frame.f_code.co_name != "__del__":
        frame = frame.f_back
    return frame is not None


def as_parent() -> dict[str, str]:
    """Environment variables for a process that ends when this one does, see `end_with_parent`."""
    return {PARENT: str(os.getpid())}


def end_with_parent() -> None:
    """Have SIGTERM sent to this process when the command that started it dies, if one did.

    Only Linux sends it; elsewhere the process ends when it is done.

    Raises:
        Interrupted: the other is dead already.
    """
    parent = os.environ.pop(PARENT, "")  # processes that this one starts are not the other's
    if not parent:
        return
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(SET_PARENT_DEATH_SIGNAL, int(signal.SIGTERM))
    if str(os.getppid()) != parent:
        raise Interrupted(signal.SIGTERM)
