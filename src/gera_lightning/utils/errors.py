"""The one exception that means "the user can mend this"."""

from __future__ import annotations

import difflib
import errno
import os
import sys
from collections.abc import Callable, Iterable, Sequence

from gera_lightning.utils.signals import exit_code_of, interruptible

NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)


NOT_GIVEN = object()
"""Stands for a mistake that is about no value."""


class UserError(Exception):
    """A mistake in what the user gave: the message says what is wrong, where, and what to do.

    The command line prints it as one line and exits with code 2; from Python it is an ordinary
    exception.

    Args:
        problem: what is wrong, such as `must be at least 1`.
        key: the setting, argument or file; the message begins with it.
        value: what was given; the message shows it behind the key.
        remedy: what to do; the message ends with it.

    >>> str(UserError("must be at least 1", key="k", value=0, remedy="take 16"))
    'k=0 must be at least 1: take 16'
    """

    def __init__(
        self, problem: str, *, key: str = "", value: object = NOT_GIVEN, remedy: str = ""
    ) -> None:
        self.problem, self.key, self.remedy = problem, key, remedy
        self.value = None if value is NOT_GIVEN else value
        self._given = value
        given = key if value is NOT_GIVEN else f"{key}={value!r}"
        super().__init__(
            " ".join(filter(None, (given, problem))) + (f": {remedy}" if remedy else "")
        )

    def inside(self, section: str) -> UserError:
        """The same mistake, its key below a section of the settings."""
        if not self.key:
            return UserError(f"{section}: {self}")
        return UserError(
            self.problem, key=f"{section}.{self.key}", value=self._given, remedy=self.remedy
        )


def exit_code(command: Callable[[], object], stopped: str) -> int:
    """Run a command line's work: 0, or 2 after a user's mistake and 128 + signal after Ctrl-C,
    SIGTERM or SIGHUP, each with one line on standard error.

    A disk that is full or may not be written to is the user's to mend. A reader that closed the
    pipe, such as `head`, has what it wanted.

    Args:
        command: the work.
        stopped: what to say after a signal; nothing where it is empty.
    """
    try:
        with interruptible():
            command()
            sys.stdout.flush()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
        )  # or Python fails again as it flushes on its way out
    except OSError as error:
        if error.errno not in NOT_WRITABLE:
            raise
        print(
            f"error: {error.filename or 'a file'}: {error.strerror}: make room or name another"
            " place, such as runs_dir=...",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt as interrupt:
        if stopped:
            print(stopped, file=sys.stderr)
        return exit_code_of(interrupt)
    return 0


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the nearest known word, or the list of known words when none is
    near.
    """
    words = sorted(known)
    near = difflib.get_close_matches(word, words, n=1, cutoff=0.5)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; known: {', '.join(words)}" if words else ""


def check_one_of(key: str, value: str, known: Sequence[str]) -> None:
    """Refuse a word that is not one of those known.

    Raises:
        UserError: naming key, value, the known words and the nearest of them.
    """
    if value not in known:
        raise UserError(
            f"is not one of {', '.join(known)}{did_you_mean(value, known)}", key=key, value=value
        )
