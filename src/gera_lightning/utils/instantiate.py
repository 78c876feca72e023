"""Swappable parts: a class and its keyword arguments, as YAML names them.

A part is `ridge`, `{class: ridge, direction: a_to_b}`, or, for a user's own class, an import path
such as `{class: my_package.MyForm, strength: 2}`. Short names are registered beside their classes:

    @register("ridge")
    class Ridge: ...

A key set to null removes that argument, so that the class's own default holds. Parts inside an
argument, in its lists and mappings too, are made first. What names code is a user's own YAML,
command line or Python, never a file that a run wrote (docs/security.md).
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from gera_lightning.utils.annotations import annotations_of, check_type
from gera_lightning.utils.errors import UserError, did_you_mean

ClassSpec = dict[str, Any]
"""`class` and keyword arguments."""
Registered = TypeVar("Registered", bound=type)

ROOMS = ("losses", "aligners", "filters", "models", "data", "encoders", "embedding", "training")
"""Where classes with short names lie, in the order in which they are looked for."""
CLASSES: dict[str, type] = {}
"""Short name to class, of the modules that are imported."""


def register(name: str) -> Callable[[Registered], Registered]:
    """Class decorator: YAML names the class by `name`, and so does the hash of a run.

    Raises:
        ValueError: the name is another class's.
    """

    def add(cls: Registered) -> Registered:
        known = CLASSES.setdefault(name, cls)
        if known.__qualname__ != cls.__qualname__:
            raise ValueError(f"{name!r} is registered for {known.__qualname__} already")
        CLASSES[name] = cls
        return cls

    return add


def short_name(cls: type) -> str:
    """The name that a class is registered under; its import path where it is not."""
    path = f"{cls.__module__}.{cls.__qualname__}"
    return next((name for name, known in CLASSES.items() if known is cls), path)


def spec_of(part: Any, where: str) -> ClassSpec:
    """A part as `class` and keyword arguments: `ridge` is `{class: ridge}`.

    Raises:
        UserError: neither a word nor a mapping.
    """
    if isinstance(part, str):
        return {"class": part}
    if isinstance(part, Mapping):
        return dict(part)
    raise UserError(
        "names no class: write a name, or {class: NAME, ...} with its arguments",
        key=where,
        value=part,
    )


def canonical(value: Any) -> Any:
    """A setting with every class in it under its short name: what a run is hashed by."""
    if isinstance(value, Mapping):
        named = {key: canonical(inner) for key, inner in value.items()}
        if isinstance(value.get("class"), str):
            named["class"] = short_name(resolve(value["class"], "class"))
        return named
    return [canonical(inner) for inner in value] if isinstance(value, list | tuple) else value


def resolve(name: str, where: str) -> type:
    """The class of a short name or an import path.

    Raises:
        UserError: an unknown name (with the nearest), or nothing importable there.
    """
    if "." not in name:
        return _registered(name, where)
    module_name, _, class_name = name.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except (
        ImportError,
        ValueError,
        TypeError,
    ) as error:  # TypeError: a path that begins with a dot
        is_there = isinstance(error, ImportError) and not isinstance(error, ModuleNotFoundError)
        raise UserError(
            f"cannot be imported ({error})",
            key=f"{where}.class",
            value=name,
            remedy="" if is_there else "give a dotted path such as 'package.module.Class'",
        ) from error
    found = getattr(module, class_name, None)
    if not inspect.isclass(found):
        classes = [name for name, value in vars(module).items() if inspect.isclass(value)]
        raise UserError(
            f"names no class: {module_name!r} has no {class_name!r}"
            f"{did_you_mean(class_name, classes)}",
            key=f"{where}.class",
            value=name,
        )
    return found


def _registered(name: str, where: str) -> type:
    """The class of a short name; rooms are imported until it is found."""
    for room in ROOMS:
        if name in CLASSES:
            break
        package = importlib.import_module(f"gera_lightning.{room}")
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)
    if name not in CLASSES:
        raise UserError(
            f"is no known name{did_you_mean(name, CLASSES)}",
            key=f"{where}.class",
            value=name,
            remedy="name your own class by its import path, such as my_package.MyClass",
        )
    return CLASSES[name]


IMPORT_PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")


def refuse_import_paths(value: Any, where: str) -> None:
    """Check settings that a file of unknown origin holds: no word in them may name code.

    Raises:
        UserError: a word that reads as an import path, such as `package.module.Class`.
    """
    if isinstance(value, Mapping):
        for inner in value.values():
            refuse_import_paths(inner, where)
    elif isinstance(value, list | tuple):
        for inner in value:
            refuse_import_paths(inner, where)
    elif isinstance(value, str) and IMPORT_PATH.fullmatch(value.strip()):
        raise UserError(
            "names code, which a file may not",
            key=where,
            value=value,
            remedy="read what it would import, then hand the settings in yourself",
        )


def check_part(part: Any, where: str, runtime: tuple[str, ...] = ()) -> type:
    """The part's class, its keyword arguments checked against the class's signature.

    Args:
        part: a name, or `class` and keyword arguments.
        where: the config key, for messages.
        runtime: arguments that the program fills in, which a config may not set.

    Raises:
        UserError: no class, an unknown argument (with the nearest known), or one that is filled in
            at run time.
    """
    spec = spec_of(part, where)
    if "class" not in spec:
        raise UserError(f"{where}.class is missing: name the class")
    cls = resolve(str(spec["class"]), where)
    parameters = inspect.signature(cls).parameters
    named = [
        n for n, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    ]
    known = [name for name in named if name not in runtime and name != "params"]
    annotations = annotations_of(cls)
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for key in spec:
        if key == "class":
            continue
        if key in runtime:
            raise UserError(f"{where}.{key} is set by the program: remove it")
        if key not in known and not open_ended:
            raise UserError(
                f"{where}.{key} is not an argument of {spec['class']}{did_you_mean(key, known)}"
            )
        if spec[key] is not None and not _names_part(spec[key]) and key in annotations:
            check_type(f"{where}.{key}", spec[key], annotations[key])
        for name, inner in _inner_parts(spec[key], f"{where}.{key}"):
            check_part(inner, name)
    return cls


def _names_part(value: Any) -> bool:
    return isinstance(value, Mapping) and "class" in value


def _inner_parts(value: Any, where: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Parts inside an argument: the argument itself, or what stands in its lists and mappings."""
    if _names_part(value):
        yield where, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _inner_parts(inner, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from _inner_parts(inner, f"{where}[{number}]")


def _made(value: Any, where: str) -> Any:
    """An argument with the parts inside it made."""
    if _names_part(value):
        return build(value, where)
    if isinstance(value, Mapping):
        return {key: _made(inner, f"{where}.{key}") for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_made(inner, f"{where}[{number}]") for number, inner in enumerate(value)]
    return value


def expect(made: object, protocol: type, where: str, example: str) -> None:
    """Refuse a part that is not what its place asks for.

    Args:
        made: the part.
        protocol: a class, or a protocol that can be checked at run time.
        where: its place in the config.
        example: name of a class that fits.

    Raises:
        UserError: naming the place, what it asks for and a class that fits.
    """
    if not isinstance(made, protocol):
        raise UserError(
            f"is no {protocol.__name__}",
            key=where,
            value=made,
            remedy=f"name one, such as {example}",
        )


@dataclass(frozen=True)
class Factory:
    """A part that is made anew for every training; its class and arguments are checked already.

    Attributes:
        spec: `class` and keyword arguments.
        where: its place in the config.
    """

    spec: ClassSpec
    where: str

    @classmethod
    def of(cls, part: Any, where: str, runtime: tuple[str, ...] = ()) -> Factory:
        """Check a part, see `check_part`, and keep it to be made."""
        check_part(part, where, runtime)
        return cls(spec_of(part, where), where)

    def __call__(self, *positional: Any, **runtime: Any) -> Any:
        """Make the part, see `build`."""
        return build(self.spec, self.where, *positional, **runtime)


def build(part: Any, where: str, *positional: Any, **runtime: Any) -> Any:
    """Make a part: config arguments from `part`, objects from `positional` and `runtime`.

    Raises:
        UserError: as `check_part`, or the class refuses a value.
    """
    cls, spec = check_part(part, where, tuple(runtime)), spec_of(part, where)
    settings = {
        key: _made(value, f"{where}.{key}")
        for key, value in spec.items()
        if key != "class" and value is not None
    }
    try:
        return cls(*positional, **settings, **runtime)
    except UserError as error:
        raise error.inside(where) from error
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: {spec['class']} refuses {settings} ({error})") from error
