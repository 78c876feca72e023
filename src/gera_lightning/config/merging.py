"""Layers of settings: read from YAML and from `key=value` words, merged, and typed against the
dataclass tree.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gera_lightning.config.overrides import Loader, parse_value
from gera_lightning.config.schema import PARTS, Config
from gera_lightning.utils.errors import UserError, did_you_mean


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file's keys and values.

    Raises:
        UserError: not readable, or no keys and values.
    """
    try:
        values = yaml.load(path.read_text(), Loader) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable as YAML ({' '.join(str(error).split())})") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: must hold keys and values")
    return values


def parse_overrides(overrides: Sequence[str] | Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each override as a nested mapping."""
    if isinstance(overrides, Mapping):
        pairs = [(key, _plain(value)) for key, value in overrides.items()]
    else:
        pairs = []
        for word in overrides:
            key, equals, text = word.partition("=")
            if not equals or not key:
                raise UserError(f"{word!r} is not of the form key=value, such as budgets=[100,300]")
            pairs.append((key, parse_value(key, text)))
    pairs.sort(
        key=lambda pair: not pair[0].endswith(".class")
    )  # first, since a new class drops the arguments set before it
    nested = []
    for key, value in pairs:
        for name in reversed(key.split(".")):
            value = {name: value}
        nested.append(value)
    return nested


def _plain(value: Any) -> Any:
    """A value from Python as YAML would have it: sequences and arrays are lists, paths are words."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | range):
        return [_plain(inner) for inner in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def merge(layers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Deep merge, later layers win; a part whose class is replaced keeps no arguments of the old
    class.
    """
    out: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            old = out.get(key)
            if (
                isinstance(value, Mapping)
                and isinstance(old, Mapping)
                and not ("class" in value and value["class"] != old.get("class"))
            ):
                out[key] = merge([old, value])
            else:
                out[key] = value
    return out


def defaults_of_parts(values: dict[str, Any]) -> dict[str, Any]:
    """Fill part sections from the dataclass's defaults, unless another class is named."""
    defaults = dataclasses.asdict(Config())
    parts = {
        key: defaults[key]
        for key in PARTS
        if defaults[key] is not None and key in values and values[key] is not None
    }
    return merge([parts, values])


def typed(values: dict[str, Any], where: str) -> Config:
    """Nested values as the dataclass tree; `where` says in messages where they come from.

    Raises:
        UserError: an unknown key, or a value that is refused.
    """
    _check_keys(Config, values, "")
    schema = OmegaConf.structured(Config)
    try:
        merged = OmegaConf.merge(schema, OmegaConf.create(defaults_of_parts(values)))
        assert isinstance(merged, DictConfig)
        for key in (
            PARTS
        ):  # structured merging keeps the default's arguments; the layers decide, not the schema
            if key in values:
                merged[key] = defaults_of_parts(values)[key]
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or "a value"
        given = (
            OmegaConf.select(OmegaConf.create(values), key, throw_on_resolution_failure=False)
            if key != "a value"
            else ""
        )
        reason = str(error).splitlines()[0]
        raise UserError(f"{key}={given}: {reason} ({where})") from error
    assert isinstance(config, Config)
    return config


def _check_keys(cls: type, values: Mapping[str, Any], prefix: str) -> None:
    """Every key stands in the dataclass tree; parts check their own keys later.

    Raises:
        UserError: naming the nearest known key.
    """
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for key, value in values.items():
        full = f"{prefix}{key}"
        if key not in fields:
            raise UserError(
                f"{full}={value!r}: there is no key"
                f" {full!r}{did_you_mean(full, [prefix + n for n in fields])}"
            )
        factory = fields[key].default_factory
        if isinstance(factory, type) and dataclasses.is_dataclass(factory):
            if not isinstance(value, Mapping):
                raise UserError(
                    f"{full}={value!r} is a section: set its keys, such as"
                    f" {full}.{dataclasses.fields(factory)[0].name}=..."
                )
            _check_keys(factory, value, f"{full}.")
        elif (
            factory is not dataclasses.MISSING
            and isinstance(factory(), list)
            and not isinstance(value, list)
        ):
            raise UserError(
                f"{full}={value!r} is a list: write {full}=[{'...' if value is None else value}]"
            )
        elif key in (*PARTS, "synthetic", "corpus", "encoder") and not (
            value is None or isinstance(value, Mapping)
        ):
            raise UserError(f"{full}={value!r} is a part: set {full}.class=... and its arguments")


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings by dotted key; keys may be dotted already."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        out |= (
            flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
        )
    return out


def holds(values: Any, key: str) -> bool:
    """Whether a nested mapping has a dotted key."""
    for name in key.split("."):
        if not isinstance(values, Mapping) or name not in values:
            return False
        values = values[name]
    return True
