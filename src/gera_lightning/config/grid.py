"""A trained method's own values to choose among: `tuning.grid`."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from gera_lightning.config.merging import check_parts, flat, holds, merge
from gera_lightning.config.schema import Config
from gera_lightning.utils.errors import UserError, did_you_mean


def combinations(config: Config) -> list[tuple[dict[str, float], Config]]:
    """The combinations of `tuning.grid`, the first key slowest, each with the settings that it
    makes; one without values where there is none.

    Raises:
        UserError: a key that no trained method has, or values that are refused.
    """
    grid = flat(config.tuning.grid)
    if grid and config.closed_form is not None:
        raise UserError(
            f"tuning.grid: a closed form brings its own settings and reads no {next(iter(grid))}:"
            " remove it"
        )
    for key, values in grid.items():
        if (
            not isinstance(values, list)
            or not values
            or not all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
        ):
            raise UserError(
                f"tuning.grid.{key}={values!r} must be a list of numbers, such as [1, 10]"
            )
    found = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    if len(found) > config.tuning.max_trials:
        raise UserError(
            f"tuning.grid has {len(found)} combinations of {', '.join(grid)}, more than"
            f" tuning.max_trials={config.tuning.max_trials}: take fewer values, or raise"
            " tuning.max_trials for all methods"
        )
    return [(values, _with_values(config, values)) for values in found]


GRID_KEYS = ("losses", "head", "mixup", "optimizer")
"""Where `tuning.grid` may choose values: arguments of parts, and the losses' weights."""


def _with_values(config: Config, values: Mapping[str, float]) -> Config:
    """The settings with some values below `GRID_KEYS` replaced."""
    out = copy.deepcopy(config)
    for key, value in values.items():
        spec, where, argument = _part_of(out, key)
        *path, last = argument.split(".")
        for name in path:
            spec = spec.setdefault(name, {})
        spec[last] = value
        try:
            check_parts(out)
        except UserError as error:
            raise UserError(f"tuning.grid: {error} (in {where})") from error
    out.__post_init__()
    return out


def _part_of(config: Config, key: str) -> tuple[dict[str, Any], str, str]:
    """The part that a key of the grid is an argument of, the part's place, and the argument.

    Raises:
        UserError: a key that is no argument of a part that the method has.
    """
    section, _, argument = key.partition(".")
    loss = ""
    if section == "losses":
        loss, _, argument = argument.partition(".")
    if section not in GRID_KEYS or not argument or argument == "class":
        raise UserError(
            f"is no value to choose{did_you_mean(section, GRID_KEYS)}",
            key=f"tuning.grid.{key}",
            remedy=f"take an argument below one of {', '.join(GRID_KEYS)}",
        )
    place = f"losses.{loss}" if loss else section
    part = config.losses.get(loss) if loss else getattr(config, section)
    if part is None:
        raise UserError(f"tuning.grid.{key}: the method has no {place}")
    return part, place, argument


def grid_left(grid: Mapping[str, Any], later: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The grid with dotted keys, less the keys that later layers set themselves and do not put into
    the grid.
    """
    own = flat(merge(later).get("tuning", {}).get("grid", {}))
    return {
        key: values
        for key, values in flat(grid).items()
        if key in own or not any(holds(word, key) for word in later)
    }
