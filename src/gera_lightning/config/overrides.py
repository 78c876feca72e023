"""Words of the command line, `key=value`: their values, and what of them are keyword arguments of a
function.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any

import yaml

from gera_lightning.config.schema import Config
from gera_lightning.utils.annotations import annotations_of, check_type
from gera_lightning.utils.errors import UserError, did_you_mean


class Loader(yaml.SafeLoader):
    """YAML whose words are words, as in YAML 1.2: `no`, `on`, `050` and `2024-01-01` are text, true
    and false alone are booleans, 1e-3 is a number. A key that stands twice is refused, and a value
    that was taken for a comment.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping of a node, each key once."""
        seen = set()
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                raise _refusal(f"the key {key.value!r} stands twice", key)
            seen.add(key.value)
            if isinstance(value, yaml.ScalarNode) and value.value == "" and value.style is None:
                _check_no_comment(key)
        return super().construct_mapping(node, deep)


def _check_no_comment(key: yaml.ScalarNode) -> None:
    """Refuse `key: #x`: a value that begins with # is a comment to YAML."""
    mark = key.end_mark
    rest = (mark.buffer or "")[mark.pointer :].partition("\n")[0] if mark else ""
    if re.match(r"\s*:\s+#\S", rest):
        raise _refusal(f"{rest.partition('#')[2]!r} behind # is a comment: quote the value", key)


def _refusal(problem: str, node: yaml.Node) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


WORDS_IN_12 = ("bool", "int", "float", "timestamp")
"""Types that YAML 1.1 takes more words for."""
Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern) for tag, pattern in resolvers if tag.rpartition(":")[2] not in WORDS_IN_12
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for tag, pattern, first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[+-]?(0|[1-9][0-9_]*)|0x[0-9a-fA-F]+", "+-0123456789"),
    (
        "float",
        r"[+-]?([0-9][0-9_]*\.[0-9_]*|\.[0-9]+)([eE][+-]?[0-9]+)?"
        r"|[+-]?[0-9]+[eE][+-]?[0-9]+|[+-]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "+-.0123456789",
    ),
):
    Loader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(f"^({pattern})$"), first)


def parse_value(key: str, text: str) -> Any:
    """The value of a word `key=text`: a list, a mapping, a quoted text or a number as YAML has
    them; anything else is the text as it stands.

    Raises:
        UserError: a list, a mapping or a quoted text that cannot be read.

    >>> [parse_value("key", text) for text in ("1e-3", "[1, a]", "no", "query: ", "#x", "null")]
    [0.001, [1, 'a'], 'no', 'query: ', '#x', None]
    """
    is_word = text.lstrip()[:1] not in ("[", "{", "'", '"')
    try:
        value = yaml.load(text, Loader)
    except yaml.YAMLError as error:
        if is_word:
            return text
        raise UserError(
            f"{key}={text}: the value cannot be read; quote it, or write lists as [1,2]"
        ) from error
    no_value = value is None and text.strip() not in ("", "~", "null", "Null", "NULL")
    return text if is_word and (no_value or isinstance(value, str | list | dict)) else value


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
    hints = annotations_of(function)
    for key, value in out.items():
        check_type(key, value, hints[key])
    return out


def split_overrides(
    words: Sequence[str], function: Callable[..., Any]
) -> tuple[dict[str, Any], list[str]]:
    """The words that are keyword-only arguments of `function`, as `parse_kwargs` gives them, and
    the others, for an experiment.

    Raises:
        UserError: as `parse_kwargs`, or a key that neither has.
    """
    known = {
        name
        for name, p in inspect.signature(function).parameters.items()
        if p.kind is p.KEYWORD_ONLY
    }
    own = [word for word in words if word.partition("=")[0] in known]
    sections = {field.name for field in dataclasses.fields(Config)}
    for word in words:
        key, equals, value = word.partition("=")
        if equals and word not in own and key.partition(".")[0] not in sections:
            near = did_you_mean(key, known | sections)
            raise UserError(f"there is no key {key!r}{near}", key=key, value=value)
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
