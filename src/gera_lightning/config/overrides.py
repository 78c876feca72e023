"""Words of the command line, `key=value`: their values, and what of them are keyword arguments of a
function.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml

from gera_lightning.utils.errors import UserError, did_you_mean


class Loader(yaml.SafeLoader):
    """YAML 1.1, but 1e-3 is a number, not a word, and a key that stands twice is refused instead of
    the first one's value being lost.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping of a node, each key once."""
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} stands twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+$"), list("+-0123456789")
)


def parse_value(key: str, text: str) -> Any:
    """The value of a word `key=text`, read as the settings' YAML.

    Raises:
        UserError: a value that cannot be read.
    """
    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        raise UserError(
            f"{key}={text}: the value cannot be read; quote it, or write lists as [1,2]"
        ) from error


def parse_kwargs(words: Sequence[str], function: Callable[..., Any]) -> dict[str, Any]:
    """Keyword-only arguments of `function` from `key=value` words, values read as YAML; `a.b=c` is
    `a={b: c}`.

    Raises:
        UserError: a word without a key, a key the function does not have (with the nearest), or a
            value that cannot be read.
    """
    known = [
        name
        for name, p in inspect.signature(function).parameters.items()
        if p.kind is p.KEYWORD_ONLY
    ]
    out: dict[str, Any] = {}
    for word in words:
        full, equals, text = word.partition("=")
        if not equals or not full:
            raise UserError(f"{word!r} is not of the form key=value ({', '.join(known)})")
        key, _, inner = full.partition(".")
        if key not in known:
            raise UserError(f"{full}={text}: there is no key {key!r}{did_you_mean(key, known)}")
        value = parse_value(full, text)
        if inner:
            out[key] = {**(out[key] if isinstance(out.get(key), dict) else {}), inner: value}
        else:
            out[key] = value
    hints = get_type_hints(function)
    for key, value in out.items():
        _check_type(key, value, hints[key])
    return out


TYPE_NAMES = {
    int: "a whole number",
    float: "a number",
    str: "a word",
    Mapping: "names and values, such as {item}.item=NAME",
}


def _check_type(key: str, value: Any, wanted: Any) -> None:
    """Refuse a value that is not of an argument's annotated type.

    Raises:
        UserError: naming key, value and what it must be.
    """
    kinds = [
        get_origin(kind) or kind
        for kind in (get_args(wanted) if get_origin(wanted) in (Union, UnionType) else (wanted,))
    ]
    given = float if isinstance(value, int) and float in kinds else type(value)
    if not any(issubclass(given, kind) and not (given is bool and kind is int) for kind in kinds):
        what = next((words for kind, words in TYPE_NAMES.items() if kind in kinds), "a list")
        raise UserError(f"{key}={value!r} must be {what.format(item=key)}")


def split_overrides(
    words: Sequence[str], function: Callable[..., Any]
) -> tuple[dict[str, Any], list[str]]:
    """The words that are keyword-only arguments of `function`, as `parse_kwargs` gives them, and
    the others, for an experiment.
    """
    known = {
        name
        for name, p in inspect.signature(function).parameters.items()
        if p.kind is p.KEYWORD_ONLY
    }
    own = [word for word in words if word.partition("=")[0] in known]
    return parse_kwargs(own, function), [word for word in words if word not in own]


def split_paths(
    words: Sequence[str], command: str, what: str, example: str
) -> tuple[str, str, list[str]]:
    """The two paths that a command takes, and the words behind them.

    Args:
        words: of the command line.
        command: the command's name.
        what: what it takes, such as `two stores`.
        example: words that it would take.

    Raises:
        UserError: fewer than two paths.
    """
    if len(words) < 2 or "=" in words[1]:
        remedy = f"such as gera {command} {example}"
        raise UserError(f"takes {what}", key=f"gera {command}", remedy=remedy)
    return words[0], words[1], list(words[2:])


def split_target(words: Sequence[str]) -> tuple[str, list[str]]:
    """The experiment and its overrides: the first word, unless it is `key=value`, and the rest."""
    first = words[:1] if words and "=" not in words[0] else []
    return "".join(first), list(words[len(first) :])
