"""An experiment's file, its method presets and variants, and overrides, loaded together.

Precedence, later wins: the defaults of the dataclass tree, the experiment's YAML, the method's
preset, the command line. A section that a preset sets to null (the geometry-off twin sets
`geometric_loss: null`) stays null: overrides below it do not reach that method.
"""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gera_lightning.config.grid import combinations, grid_left
from gera_lightning.config.merging import (
    defaults_of_parts,
    flat,
    holds,
    merge,
    parse_overrides,
    read_yaml,
    typed,
)
from gera_lightning.config.schema import PARTS, RUNTIME_KEYS, TRAINED_KEYS, Config, DataConfig
from gera_lightning.utils.errors import UserError, did_you_mean
from gera_lightning.utils.instantiate import check_part

READ_BY_A_PART = {
    "unpaired_loss": ("unpaired_weight", "batch.unpaired"),
    "geometric_loss": ("geometric_weight", "graph", "batch.anchors", "batch.paired_anchors"),
}
"""Settings that a method reads only where it has the section."""
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
        experiment: name of a file in `folder`, a path ending in `.yaml`, or what such a file would
            hold.
        overrides: `key=value` words as on the command line, or a mapping of dotted keys.
        folder: where experiments lie; presets lie in `methods/` beside the file (or in `folder`),
            or come with the package.
        sweep: take methods, seeds and extra budgets from the `sweep` section.

    Raises:
        UserError: an unknown experiment, preset or key (with the nearest known one), or a value
            that is refused.
    """
    if isinstance(experiment, os.PathLike):
        experiment = os.fspath(experiment)
    path = (
        _experiment_path(experiment, Path(folder))
        if isinstance(experiment, str)
        else Path(folder) / "settings.yaml"
    )
    words = parse_overrides(overrides)
    base = read_yaml(path) if isinstance(experiment, str) else dict(experiment)
    common = typed(merge([base, *words]), str(path))
    if common.data.reserved_pairs is None:
        common.data.reserved_pairs = max([*(base.get("budgets") or ()), *common.budgets])
    known = presets(path.parent)
    if sweep:
        _check_swept(words, common)
        common.methods, common.seeds = _swept_methods(common, known), common.sweep.seeds
    methods = {}
    for name in common.methods:
        preset = _preset(name, known, common.variants)
        common_only = [key for key in RUNTIME_KEYS if key in preset]
        if common_only:
            raise UserError(
                f"method {name}: {common_only[0]} is no setting of a method: set it in {path}"
            )
        unreachable = {key for key, value in preset.items() if value is None} | _classless(
            [base, preset, *words]
        )
        reachable = [word for word in words if next(iter(word)) not in unreachable]
        settings = typed(merge([base, preset, *reachable]), f"method {name}")
        settings.data.reserved_pairs = (
            common.data.reserved_pairs
            if settings.data.reserved_pairs is None
            else settings.data.reserved_pairs
        )
        settings.tuning.grid = grid_left(
            settings.tuning.grid, [*parse_overrides(common.variants.get(name, {})), *reachable]
        )
        _check_parts(settings)
        combinations(settings)
        _check_same_data(name, settings.data, common.data)
        methods[name] = settings
    _check_unused(words, methods)
    extra = {
        name: budgets
        for name, budgets in common.sweep.extra_budgets.items()
        if sweep and name in methods
    }
    return Experiment(path.stem, common, methods, extra)


def presets(folder: Path) -> dict[str, Path]:
    """Method presets by name: those that come with the package, and those in `methods/` in an
    experiment's folder, which win.
    """
    return {
        path.stem: path
        for place in (SHIPPED, folder / "methods")
        for path in sorted(place.glob("*.yaml"))
    }


def _shipped() -> Path:
    tree = Path(__file__).parents[3] / "experiments" / "methods"
    return (
        tree
        if tree.is_dir()
        else Path(sysconfig.get_path("data")) / "share" / "gera_lightning" / "methods"
    )


SHIPPED = _shipped()
"""Where the package's own presets lie: in the source tree, or where an installation puts them."""


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


def _swept_methods(common: Config, known: Mapping[str, Path]) -> list[str]:
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


def _experiment_path(experiment: str, folder: Path) -> Path:
    known = sorted(p.stem for p in folder.glob("*.yaml"))
    if not experiment:
        raise UserError(
            f"EXP is empty: name an experiment, such as EXP={known[0] if known else 'speech_text'}"
            f" (there are: {', '.join(known)})"
        )
    path = (
        Path(experiment)
        if experiment.endswith((".yaml", ".yml"))
        else folder / f"{experiment}.yaml"
    )
    if not path.is_file():
        inside = (
            f", and the folder {experiment} holds no aligner (gera align makes one)"
            if Path(experiment).is_dir()
            else ""
        )
        raise UserError(
            f"experiment {experiment!r}: there is no"
            f" {path}{inside}{did_you_mean(experiment, known)}"
        )
    return path


def _preset(
    name: str, known: Mapping[str, Path], variants: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """What a method sets: its file, or a variant's changes over the file of the preset it is `of`."""
    if name in RESERVED:
        raise UserError(
            f"methods: {name!r} is the name of a folder beside the methods' in runs/: call the"
            " method otherwise"
        )
    if name in variants:
        changes = dict(variants[name])
        of = changes.pop("of", None)
        if not isinstance(of, str):
            raise UserError(
                f"variants.{name}.of={of!r}: name the preset that it changes, such as of: gera"
            )
        return merge([_preset(of, known, {}), *parse_overrides(changes)])
    if name not in known:
        raise UserError(
            f"methods: {name!r} has no preset"
            f" methods/{name}.yaml{did_you_mean(name, [*variants, *known])}"
        )
    return read_yaml(known[name])


def _classless(layers: Sequence[Mapping[str, Any]]) -> set[str]:
    """Parts that no layer and no default names a class of: an argument in an override is meant for
    the methods that have the part.
    """
    values = defaults_of_parts(merge(layers))
    return {
        key for key in PARTS if isinstance(values.get(key), Mapping) and "class" not in values[key]
    }


def _check_parts(config: Config) -> None:
    for key, runtime in PARTS.items():
        part = getattr(config, key)
        if part is not None:
            check_part(part, key, runtime)


def _check_unused(words: Sequence[Mapping[str, Any]], methods: Mapping[str, Config]) -> None:
    """An override of a section that no chosen method has or reads is a mistake.

    Raises:
        UserError: naming it.
    """
    for word in words:
        key = next(iter(word))
        if (
            key in PARTS
            and word[key] is not None
            and all(getattr(c, key) is None for c in methods.values())
        ):
            raise UserError(
                f"{key}: none of the methods {', '.join(methods)} has this section, so the override"
                " would do nothing"
            )
        for part, names in READ_BY_A_PART.items():
            for name in names:
                if holds(word, name) and all(getattr(c, part) is None for c in methods.values()):
                    raise UserError(
                        f"{name}: none of the methods {', '.join(methods)} has a section {part}, so"
                        " the override would do nothing"
                    )
        read = list(flat(word)) == ["trainer.accelerator"]  # closed forms are computed on it, too
        if (
            key in TRAINED_KEYS
            and not read
            and all(c.closed_form is not None for c in methods.values())
        ):
            raise UserError(
                f"{key}: all of the methods {', '.join(methods)} are closed forms and read no"
                f" {key}, so the override would do nothing"
            )


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
