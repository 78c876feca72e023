"""Layers of settings: read from YAML and from `key=value` words, merged, and typed against the
dataclass tree.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from importlib.resources.abc import Traversable
from typing import Any

import numpy as np
import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gera_lightning.config.overrides import Loader, parse_value
from gera_lightning.config.schema import PARTS, Config, TrainerConfig
from gera_lightning.utils.errors import UserError, did_you_mean
from gera_lightning.utils.instantiate import check_part


def read_yaml(path: Traversable) -> dict[str, Any]:
    """A YAML file's keys and values.

    Raises:
        UserError: not readable, or no keys and values.
    """
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: not readable as YAML ({' '.join(str(error).split())})",
            remedy="put values with : or # in quotes",
        ) from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: must hold keys and values")
    return name_parts(values)


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
        nested.append(name_parts(value))
    return nested


def _plain(value: Any) -> Any:
    """A value from Python as YAML has it: sequences and arrays are lists, paths are words."""
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


def with_part_defaults(values: dict[str, Any]) -> dict[str, Any]:
    """The schema's own parts below those that are given: `optimizer.lr` alone is AdamW's."""
    defaults = dataclasses.asdict(Config())
    given = {key for key in (*PARTS, "losses") if values.get(key) is not None}
    return merge([{key: defaults[key] for key in given if defaults[key] is not None}, values])


def name_parts(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with every part as a mapping: `init: ridge` is `init: {class: ridge}`."""
    out = dict(values)
    for key in PARTS:
        if isinstance(out.get(key), str):
            out[key] = {"class": out[key]}
    for key in ("losses", "filters"):
        if isinstance(out.get(key), Mapping):
            out[key] = {name: _named(inner) for name, inner in out[key].items()}
    embed = out.get("embed")
    if isinstance(embed, Mapping):  # `encoder: efficientnet_lite`, of either modality
        out["embed"] = {
            key: {name: _named(part) for name, part in side.items()}
            if isinstance(side, Mapping)
            else side
            for key, side in embed.items()
        }
    for key in ("loggers", "callbacks"):
        if isinstance(out.get(key), list):
            out[key] = [_named(part) for part in out[key]]
    return out


def _named(part: Any) -> Any:
    """A word as a part; of lists every word in them."""
    if isinstance(part, str):
        return {"class": part}
    return [_named(inner) for inner in part] if isinstance(part, list) else part


def check_parts(config: Config) -> None:
    """Refuse a part that names no class, or an argument that its class does not have.

    Raises:
        UserError: naming the place.
    """
    for key, runtime in PARTS.items():
        if getattr(config, key) is not None:
            check_part(getattr(config, key), key, runtime)
    for name, spec in config.losses.items():
        arguments = {key: value for key, value in spec.items() if key != "weight"}
        check_part(arguments, f"losses.{name}")


def typed(values: dict[str, Any], where: str) -> Config:
    """Nested values as the dataclass tree; `where` says in messages where they come from.

    Raises:
        UserError: an unknown key, or a value that is refused.
    """
    values = with_part_defaults(name_parts(_with_trainer_flags(values)))
    _check_keys(Config, values, "")
    if "losses" in values:  # null takes one out
        values["losses"] = {n: spec for n, spec in values["losses"].items() if spec is not None}
    try:
        merged = OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.create(values))
        assert isinstance(merged, DictConfig)
        for key in (*PARTS, "losses"):  # the layers decide, not the schema's own arguments
            if key in values:
                merged[key] = values[key]
        config = OmegaConf.to_object(merged)
    except (OmegaConfBaseException, TypeError) as error:
        key = getattr(error, "full_key", None) or "a value"
        known = OmegaConf.create(values)
        given = OmegaConf.select(known, key, throw_on_resolution_failure=False)
        raise UserError(f"{key}={given}: {str(error).splitlines()[0]} ({where})") from error
    assert isinstance(config, Config)
    return config


def _with_trainer_flags(values: dict[str, Any]) -> dict[str, Any]:
    """Settings whose `trainer` section has the flags that the schema does not list under `flags`.

    Raises:
        UserError: a word that is no flag of Lightning's Trainer (with the nearest).
    """
    trainer = values.get("trainer")
    own = [field.name for field in dataclasses.fields(TrainerConfig)]
    if not isinstance(trainer, Mapping) or set(trainer) <= set(own):
        return values
    from gera_lightning.utils.trainer import check_flag  # imports Lightning

    others = {key: value for key, value in trainer.items() if key not in own}
    for key in others:
        check_flag(key, own)
    listed = {key: value for key, value in trainer.items() if key in own}
    return {
        **values,
        "trainer": {**listed, "flags": {**(listed.get("flags") or {}), **others}},
    }


def _check_keys(cls: type, values: Mapping[str, Any], prefix: str) -> None:
    """Every key stands in the dataclass tree; parts check their own keys later.

    Raises:
        UserError: naming the nearest known key.
    """
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for key, value in values.items():
        full = f"{prefix}{key}"
        if key not in fields:
            known = [prefix + name for name in fields]
            raise UserError(
                f"there is no key {full!r}{did_you_mean(full, known)}", key=full, value=value
            )
        factory = fields[key].default_factory
        if isinstance(factory, type) and dataclasses.is_dataclass(factory):
            if not isinstance(value, Mapping):
                example = f"{full}.{dataclasses.fields(factory)[0].name}=..."
                raise UserError(
                    f"is a section: set its keys, such as {example}", key=full, value=value
                )
            _check_keys(factory, value, f"{full}.")
        elif factory is not dataclasses.MISSING and isinstance(factory(), list):
            if not isinstance(value, list):
                raise UserError(
                    f"must be a list: write {full}=[{'...' if value is None else value}]",
                    key=full,
                    value=value,
                )
        elif (factory is dict or key == "losses") and not isinstance(value, Mapping):
            raise UserError(
                f"must be names and values: write {full}={{NAME: ...}}", key=full, value=value
            )
        elif key in (*PARTS, "losses", "synthetic", "corpus", "encoder"):
            parts = value.items() if key == "losses" and isinstance(value, Mapping) else ()
            for name, part in ((full, value), *((f"{full}.{n}", inner) for n, inner in parts)):
                if not (part is None or isinstance(part, Mapping)):
                    raise UserError(
                        "names no class: write a name, or {class: NAME, ...} with its arguments",
                        key=name,
                        value=part,
                    )


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
