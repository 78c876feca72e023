"""An experiment's file, its method presets and variants, and overrides, loaded together.

Precedence, later wins: the defaults of the dataclass tree, the experiment's YAML, the method's
preset, the command line. An override below a part or a loss that a method does not have does not
reach that method.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from gera_lightning.config.grid import combinations, grid_left
from gera_lightning.config.merging import (
    check_parts,
    flat,
    holds,
    merge,
    name_parts,
    parse_overrides,
    read_yaml,
    typed,
    with_part_defaults,
)
from gera_lightning.config.schema import PARTS, RUNTIME_KEYS, TRAINED_KEYS, Config, DataConfig
from gera_lightning.utils.errors import UserError, did_you_mean
from gera_lightning.utils.instantiate import resolve

SHIPPED = files("gera_lightning.config")
"""Where presets and experiments lie that come with the package."""
READ_FOR = {
    "unpaired": ("batch.unpaired",),
    "patches": ("graph", "batch.anchors", "batch.region", "batch.paired_anchors"),
}
"""What a loss may require of a step, and the settings that are read for it alone."""
METHOD_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}")
"""A method's name is that of its runs' folder, and stands in tables and figures."""
RESERVED = ("summary", "report", "jobs", "aligner")
"""Folders that lie beside those of the methods: TensorBoard's summary, the report, the logs of a
cluster's jobs, the aligner of all pairs.
"""


@dataclass(frozen=True)
class Experiment:
    """A loaded experiment: its name, the settings common to all methods, one method's settings
    each, and methods' budgets beyond them.
    """

    name: str
    common: Config
    methods: Mapping[str, Config]
    extra_budgets: Mapping[str, Sequence[int]] = field(default_factory=dict)


def load(
    experiment: str | os.PathLike[str] | Mapping[str, Any],
    overrides: Sequence[str] | Mapping[str, Any] = (),
    *,
    folder: str | Path = "experiments",
    sweep: bool = False,
) -> Experiment:
    """Load `folder/<experiment>.yaml` (or a path to a YAML file), its method presets and overrides.

    Args:
        experiment: name of a file in `folder` or of an experiment that comes with the package, a
            path ending in `.yaml`, or what such a file would hold.
        overrides: `key=value` words as on the command line, or a mapping of dotted keys.
        folder: where experiments lie; presets lie in `methods/` beside the file (or in `folder`),
            or come with the package.
        sweep: take methods, seeds and extra budgets from the `sweep` section.

    Raises:
        UserError: an unknown experiment, preset or key (with the nearest known one), or a value
            that is refused.
    """
    if isinstance(experiment, Mapping):
        name, where, base, beside = "settings", "settings", name_parts(experiment), Path(folder)
    else:
        found = experiment_file(os.fspath(experiment), Path(folder))
        name, where, base = found.name.rpartition(".")[0], str(found), read_yaml(found)
        beside = found.parent if isinstance(found, Path) else Path(folder)
    words = parse_overrides(overrides)
    common = typed(merge([base, *words]), where)
    if common.data.reserved_pairs is None:
        common.data.reserved_pairs = max([*(base.get("budgets") or ()), *common.budgets])
    known = presets(beside)
    if sweep:
        _check_swept(words, common)
        common.methods, common.seeds = _swept_methods(common, known), common.sweep.seeds
    methods = {name: _method(name, base, words, common, known) for name in common.methods}
    _check_unused(words, methods)
    extra = {m: budgets for m, budgets in common.sweep.extra_budgets.items() if m in methods}
    return Experiment(name, common, methods, extra if sweep else {})


def _method(
    name: str,
    base: Mapping[str, Any],
    words: Sequence[Mapping[str, Any]],
    common: Config,
    known: Mapping[str, Traversable],
) -> Config:
    """One method's settings: the experiment's, its preset's, and the overrides that reach it."""
    layers = preset_layers(name, known, common.variants)
    preset = merge(layers)
    for key in RUNTIME_KEYS:
        if key in preset:
            raise UserError(f"method {name}: {key} is no setting of a method: set it above methods")
    missing = _without_class(merge([base, preset, *words])) | {
        key for key, value in preset.items() if value is None
    }
    reachable = [word for word in words if not any(holds(word, place) for place in missing)]
    config = typed(merge([base, preset, *reachable]), f"method {name}")
    if config.data.reserved_pairs is None:
        config.data.reserved_pairs = common.data.reserved_pairs
    config.tuning.grid = grid_left(config.tuning.grid, [*layers[1:], *reachable])
    check_parts(config)
    combinations(config)
    _check_same_data(name, config.data, common.data)
    return config


def _without_class(layers: dict[str, Any]) -> set[str]:
    """Places of parts and losses that no layer and no default names a class of: an override below
    them is meant for the methods that have the part.
    """
    values = with_part_defaults(layers)
    places = {key: values.get(key) for key in PARTS}
    places |= {f"losses.{name}": spec for name, spec in (values.get("losses") or {}).items()}
    return {
        key for key, part in places.items() if isinstance(part, Mapping) and "class" not in part
    }


def presets(folder: Path) -> dict[str, Traversable]:
    """Method presets by name: those that come with the package, and those in `methods/` in an
    experiment's folder, which win.
    """
    return {
        file.name.removesuffix(".yaml"): file
        for place in (SHIPPED / "presets", folder / "methods")
        if place.is_dir()
        for file in sorted(place.iterdir(), key=lambda file: file.name)
        if file.name.endswith(".yaml")
    }


def _check_swept(words: Sequence[Mapping[str, Any]], common: Config) -> None:
    """A sweep has methods and seeds of its own.

    Raises:
        UserError: an override of an experiment's, which would do nothing.
    """
    for word in words:
        if "seeds" in word:
            raise UserError(f"seeds={word['seeds']}: a sweep takes sweep.seeds={word['seeds']}")
        if "methods" in word and (common.sweep.methods or not common.variants):
            raise UserError(
                f"methods={word['methods']}: a sweep takes sweep.methods=[...], or sweep.only=..."
                " for some of its own"
            )


def _swept_methods(common: Config, known: Mapping[str, Traversable]) -> list[str]:
    sweep, names = common.sweep, [*common.variants, *known]
    methods = sweep.methods or (common.methods if common.variants else sorted(known))
    for name in sweep.extra_budgets:
        if name not in names:
            raise UserError(
                f"sweep.extra_budgets.{name}: there is no such method{did_you_mean(name, names)}"
            )
    if not sweep.only:
        return methods
    if sweep.only == ["quick"]:
        return list(sweep.quick)
    for name in sweep.only:
        if name not in names:
            raise UserError(
                f"sweep.only: {name!r} is no preset{did_you_mean(name, ['quick', *names])}"
            )
    return list(sweep.only)


def experiment_file(experiment: str, folder: Path) -> Traversable:
    """The file that a name or a path stands for.

    Raises:
        UserError: none was named, or there is none.
    """
    shipped = SHIPPED / "experiments"
    places = [place for place in (folder, shipped) if place.is_dir()]
    names = sorted(file.name for place in places for file in place.iterdir())
    known = [name.removesuffix(".yaml") for name in names if name.endswith(".yaml")]
    if not experiment:
        raise UserError(
            f"EXP is empty: name an experiment, such as EXP={_example(known)}"
            f" (there are: {', '.join(known)})"
        )
    if experiment.endswith((".yaml", ".yml")):
        files: list[Traversable] = [Path(experiment)]
    else:
        files = [folder / f"{experiment}.yaml", shipped / f"{experiment}.yaml"]
    found = next((file for file in files if file.is_file()), None)
    if found is None:
        no_aligner = f", and the folder {experiment} holds no aligner (gera align makes one)"
        raise UserError(
            f"there is no {files[0]}{no_aligner if Path(experiment).is_dir() else ''}"
            f"{did_you_mean(experiment, known)}",
            key="experiment",
            value=experiment,
        )
    return found


def _example(known: Sequence[str]) -> str:
    """An experiment to name: one that needs no raw data where there is one."""
    return next((name for name in ("speech_text", *known) if name in known), "synthetic")


def preset_layers(
    name: str, known: Mapping[str, Traversable], variants: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """What a method sets: its file, or what its file or variant changes (one layer a key) over the
    preset that it is `of`.
    """
    if not METHOD_NAME.fullmatch(name):
        raise UserError(
            "is no name for a method",
            key="methods",
            value=name,
            remedy="take letters, digits and . _ + -, at most 100 of them, a letter or digit first",
        )
    if name in RESERVED:
        raise UserError(
            f"methods: {name!r} is the name of a folder beside the methods' in runs/: call the"
            " method otherwise"
        )
    if name not in variants and name not in known:
        near = did_you_mean(name, [*variants, *known])
        raise UserError(f"methods: {name!r} has no preset methods/{name}.yaml{near}")
    changes = dict(variants[name]) if name in variants else read_yaml(known[name])
    of = changes.pop("of", None)
    if of is None and name not in variants:
        return [changes]
    if not isinstance(of, str):
        raise UserError(
            "must name the preset that it changes, such as of: coupled_ridge",
            key=f"variants.{name}.of" if name in variants else f"{known[name]}: of",
            value=of,
        )
    # without this file, so that a circle of presets ends
    left = {other: known[other] for other in known if other != name or name in variants}
    return [*preset_layers(of, left, {}), *parse_overrides(changes)]


def _check_unused(words: Sequence[Mapping[str, Any]], methods: Mapping[str, Config]) -> None:
    """An override that none of the methods reads is a mistake.

    Raises:
        UserError: naming it.
    """
    all_closed = all(config.closed_form is not None for config in methods.values())
    names = ", ".join(methods)
    known = {name for config in methods.values() for name in config.losses}
    unread = _unread(methods) if words else []
    for word in words:
        key = next(iter(word))
        for loss, value in (word.get("losses") or {}).items():
            if loss not in known and value is not None:  # null takes one out
                near = did_you_mean(loss, known)
                raise UserError(f"losses.{loss}: none of the methods {names} has this loss{near}")
        for place in unread:
            if holds(word, place) and flat(word) != {place: None}:
                raise UserError(
                    f"{place}: none of the methods {names} reads it, so it would do nothing"
                )
        accelerator = list(flat(word)) == ["trainer.accelerator"]  # of closed forms, too
        if all_closed and key in TRAINED_KEYS and not accelerator:
            raise UserError(
                f"{key}: all of the methods {names} are closed forms and read no {key}, so the"
                " override would do nothing"
            )


def _unread(methods: Mapping[str, Config]) -> list[str]:
    """Places that no method has or reads: parts, losses, and settings for what no loss requires."""
    configs = list(methods.values())
    places = [key for key in PARTS if all(getattr(config, key) is None for config in configs)]
    losses = [spec for config in configs for spec in config.losses.values()]
    required = {
        need
        for spec in losses
        for need in getattr(resolve(spec["class"], "losses"), "requires", ())
    }
    return places + [
        place for need, keys in READ_FOR.items() if need not in required for place in keys
    ]


def _check_same_data(name: str, mine: DataConfig, common: DataConfig) -> None:
    """Methods are compared on the same stores and items.

    Raises:
        UserError: a preset or a variant asks for others.
    """
    for key in ("a", "b", "synthetic", "split", "test_share", "reserved_pairs"):
        if getattr(mine, key) != getattr(common, key):
            raise UserError(
                f"data.{key}={getattr(mine, key)!r} of method {name} is not that of all methods:"
                " set it in the experiment"
            )
