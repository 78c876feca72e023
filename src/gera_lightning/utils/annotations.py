"""Values checked against the annotations of the arguments that they are for."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from gera_lightning.utils.errors import UserError

NAMES = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a word: put it in quotes",
    Mapping: "names and values, such as {item}.item=NAME",
    Sequence: "a list",
    list: "a list",
    tuple: "a list",
}
"""What a value of a type is, in words."""


def annotations_of(function: Callable[..., Any]) -> dict[str, Any]:
    """Annotation of each argument of a function or a class; none where they cannot be read."""
    try:
        return get_type_hints(function.__init__ if inspect.isclass(function) else function)
    except (NameError, TypeError, AttributeError):
        return {}


def check_type(key: str, value: Any, wanted: Any) -> None:
    """Refuse a value of YAML that is not of an argument's annotated type.

    Annotations that YAML has no values of are not checked.

    Raises:
        UserError: naming key, value and what it must be.

    >>> check_type("prefix", 50, str)
    Traceback (most recent call last):
    gera_lightning.utils.errors.UserError: prefix=50 must be a word: put it in quotes
    """
    union = get_origin(wanted) in (Union, UnionType)
    kinds = [get_origin(kind) or kind for kind in (get_args(wanted) if union else (wanted,))]
    known = [kind for kind in kinds if kind in NAMES]
    others = [kind for kind in kinds if kind not in NAMES and kind is not NoneType]
    if not known or any(not _is_path(kind) for kind in others):
        return
    if not any(_fits(value, kind) for kind in (*known, *(k for k in kinds if k is NoneType))):
        raise UserError(f"must be {NAMES[known[0]].format(item=key)}", key=key, value=value)


def _is_path(kind: Any) -> bool:
    return inspect.isclass(kind) and kind.__name__ in ("Path", "PathLike")


def _fits(value: Any, kind: type) -> bool:
    if isinstance(value, bool):
        return kind is bool
    if kind in (list, tuple, Sequence):
        return isinstance(value, list | tuple)
    return isinstance(value, (int, float) if kind is float else kind)
