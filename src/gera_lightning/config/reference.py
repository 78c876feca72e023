"""Every setting, what it means, and where its value comes from."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from gera_lightning.config.loading import experiment_file, load, preset_layers, presets
from gera_lightning.config.merging import holds, parse_overrides, read_yaml
from gera_lightning.config.schema import Config


@dataclass(frozen=True)
class Setting:
    """A key of an experiment.

    Attributes:
        key: dotted, such as `batch.pairs`.
        value: its default, or what a method has.
        meaning: in a sentence or two.
        source: where the value comes from; `default`, or the file or preset that sets it.
    """

    key: str
    value: Any
    meaning: str
    source: str = "default"

    @property
    def shown(self) -> str:
        """The value as YAML has it, in one line."""
        dumped = yaml.safe_dump(self.value, default_flow_style=True, sort_keys=False, width=10_000)
        return dumped.removesuffix("...\n").strip()


def reference(config: Any = None, prefix: str = "") -> list[Setting]:
    """All settings with their defaults, in the schema's order.

    >>> [setting] = [one for one in reference() if one.key == "graph.k"]
    >>> setting.value, setting.meaning
    (16, 'Neighbours of a point; a patch has k + 1 points.')
    """
    config = Config() if config is None else config
    meanings, found = _meanings(type(config)), list[Setting]()
    for field in dataclasses.fields(config):
        key, value = f"{prefix}{field.name}", getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            found += reference(value, f"{key}.")
        else:
            found.append(Setting(key, value, meanings.get(field.name, "")))
    return found


def _meanings(cls: type) -> dict[str, str]:
    """What stands below each field of a dataclass in its source."""
    tree = ast.parse(inspect.getsource(sys.modules[cls.__module__]))
    classes = (node for node in tree.body if isinstance(node, ast.ClassDef))
    body = next(node.body for node in classes if node.name == cls.__name__)
    found = {}
    for node, below in pairwise(body):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            text = getattr(getattr(below, "value", None), "value", None)
            found[node.target.id] = " ".join(text.split()) if isinstance(text, str) else ""
    return found


def explain(
    experiment: str, overrides: Sequence[str] = (), *, method: str = "", folder: str = "experiments"
) -> list[Setting]:
    """Every setting of a method of an experiment, and where it comes from.

    Args:
        experiment: as of `load`.
        overrides: `key=value` words.
        method: one of the experiment's, or any preset; by default the first.
        folder: where experiments lie.

    Raises:
        UserError: as `load`.
    """
    file = experiment_file(experiment, Path(folder))
    base, words = read_yaml(file), parse_overrides(overrides)
    loaded = load(experiment, overrides, folder=folder)
    method = method or next(iter(loaded.methods))
    if method not in loaded.methods:
        loaded = load(experiment, [*overrides, f"methods=[{method}]"], folder=folder)
    beside = file.parent if isinstance(file, Path) else Path(folder)
    layers = preset_layers(method, presets(beside), loaded.common.variants)
    sources: list[tuple[str, Mapping[str, Any]]] = [(file.name, base)]
    sources += [(f"preset {method}", layer) for layer in layers]
    sources += [("command line", word) for word in words]
    return [
        dataclasses.replace(one, source=_source(one.key, sources))
        for one in reference(loaded.methods[method])
    ]


def _source(key: str, sources: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """The last layer that sets a key or something below it."""
    for name, layer in reversed(sources):
        if holds(layer, key):
            return name
    return "default"
