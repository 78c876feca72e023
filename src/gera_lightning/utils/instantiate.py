"""Swappable parts: named in YAML by import path with their keyword arguments, checked before
anything is built.

`{class: gera_lightning.models.maps.ResidualMLP, hidden: 512}` is the class with that keyword
argument. A user's own class needs no registration, only to be importable. A key set to null removes
that argument (the class's own default holds). Parts inside an argument, in its lists and mappings
too, are made first.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from gera_lightning.utils.errors import UserError, did_you_mean

ClassSpec = dict[str, Any]


def resolve(path: str, where: str) -> type:
    """The class at an import path.

    Raises:
        UserError: nothing importable there.
    """
    module_name, _, name = path.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except (
        ImportError,
        ValueError,
        TypeError,
    ) as error:  # TypeError: a path that begins with a dot
        raise UserError(
            f"{where}.class={path!r} cannot be imported ({error}): give a dotted path such as"
            " 'package.module.Class'"
        ) from error
    found = getattr(module, name, None)
    if not inspect.isclass(found):
        classes = [n for n, v in vars(module).items() if inspect.isclass(v)]
        raise UserError(
            f"{where}.class={path!r}: {module_name!r} has no class"
            f" {name!r}{did_you_mean(name, classes)}"
        )
    return found


def check_part(part: Mapping[str, Any], where: str, runtime: tuple[str, ...] = ()) -> type:
    """The part's class, its keyword arguments checked against the class's signature.

    Args:
        part: `class` and keyword arguments.
        where: the config key, for messages.
        runtime: arguments that the program fills in, which a config may not set.

    Raises:
        UserError: no class, an unknown argument (with the nearest known), or one that is filled in
            at run time.
    """
    if "class" not in part:
        raise UserError(f"{where}.class is missing: name the class by its import path")
    cls = resolve(str(part["class"]), where)
    parameters = inspect.signature(cls).parameters
    known = [
        n
        for n, p in parameters.items()
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        and n not in runtime
        and n != "params"
    ]
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for key in part:
        if key == "class":
            continue
        if key in runtime:
            raise UserError(f"{where}.{key} is set by the program: remove it")
        if key not in known and not open_ended:
            raise UserError(
                f"{where}.{key} is not an argument of {part['class']}{did_you_mean(key, known)}"
            )
        for name, inner in _inner_parts(part[key], f"{where}.{key}"):
            check_part(inner, name)
    return cls


def _inner_parts(value: Any, where: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Parts inside an argument: the argument itself, or what stands in its lists and mappings."""
    if isinstance(value, Mapping) and "class" in value:
        yield where, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _inner_parts(inner, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from _inner_parts(inner, f"{where}[{number}]")


def _made(value: Any, where: str) -> Any:
    """An argument with the parts inside it made."""
    if isinstance(value, Mapping):
        return (
            build(value, where)
            if "class" in value
            else {key: _made(inner, f"{where}.{key}") for key, inner in value.items()}
        )
    if isinstance(value, list | tuple):
        return [_made(inner, f"{where}[{number}]") for number, inner in enumerate(value)]
    return value


def check_role(made: object, method: str, where: str, role: str, example: str) -> None:
    """Refuse a part that is not what its place asks for: an object without the role's method.

    Raises:
        UserError: naming the place, the role and a class that has it.
    """
    if not callable(getattr(made, method, None)):
        raise UserError(f"{where}={made!r} is no {role}: name one, such as {where}.class={example}")


def build(part: Mapping[str, Any], where: str, *positional: Any, **runtime: Any) -> Any:
    """Make a part: config arguments from `part`, run-time objects from `positional` and `runtime`.

    Raises:
        UserError: as `check_part`, or the class refuses a value.
    """
    cls = check_part(part, where, tuple(runtime))
    settings = {
        key: _made(value, f"{where}.{key}")
        for key, value in part.items()
        if key != "class" and value is not None
    }
    try:
        return cls(*positional, **settings, **runtime)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: {part['class']} refuses {settings} ({error})") from error
