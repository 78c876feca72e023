"""The one exception that means "the user can mend this"."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class UserError(Exception):
    """A mistake in what the user gave: the message names the key, the value and the remedy.

    The command line prints it as one line and exits with code 2; from Python it is an ordinary exception.
    """


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the nearest known word, or the list of known words when none is near."""
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
        raise UserError(f"{key}={value!r} is not one of {', '.join(known)}{did_you_mean(value, known)}")
