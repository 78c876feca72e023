"""A trained method's own values to choose among: `tuning.grid`."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from gera_lightning.config.merging import flat, holds, merge
from gera_lightning.config.schema import PARTS, Config
from gera_lightning.utils.errors import UserError, did_you_mean
from gera_lightning.utils.instantiate import check_part


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


GRID_KEYS = (
    "geometric_weight",
    "unpaired_weight",
    "head",
    "pair_loss",
    "geometric_loss",
    "mixup",
    "unpaired_loss",
    "optimizer",
)
"""Where `tuning.grid` may choose values: weights, and arguments of parts."""


def _with_values(config: Config, values: Mapping[str, float]) -> Config:
    """The settings with some of `GRID_KEYS` replaced."""
    out = copy.deepcopy(config)
    for key, value in values.items():
        section, _, inner = key.partition(".")
        known = [name for name in GRID_KEYS if (name in PARTS) == bool(inner)]
        if section not in known or inner == "class":
            raise UserError(
                f"tuning.grid.{key}: {key!r} is no value to choose{did_you_mean(section, known)}:"
                f" take one of {', '.join(GRID_KEYS)}"
            )
        if not inner:
            loss = section.replace("weight", "loss")
            if getattr(out, loss) is None:
                raise UserError(f"tuning.grid.{key}: the method has no {loss}")
            setattr(out, section, float(value))
            continue
        part = getattr(out, section)
        if part is None:
            raise UserError(f"tuning.grid.{key}: the method has no {section}")
        *path, last = inner.split(".")
        for name in path:
            part = part.setdefault(name, {})
        part[last] = value
        try:
            check_part(getattr(out, section), section, PARTS[section])
        except UserError as error:
            raise UserError(f"tuning.grid: {error}") from error
    out.__post_init__()
    return out


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
