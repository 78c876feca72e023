"""What a closed form is given and what it gives back.

Legend: `n` pairs, `N_a`, `N_b` pool rows, `D_a`, `D_b` frozen widths.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Protocol, TypeVar, runtime_checkable

from torch import Tensor, nn

from gera_lightning.models.maps import Concat, Identity
from gera_lightning.utils.errors import UserError, check_one_of

Setting = Mapping[str, float]
"""One choice of a method's free parameters, by name."""
Maps = tuple[nn.Module, nn.Module]
"""The map of modality a and the map of modality b."""
T = TypeVar("T")


@dataclass(frozen=True)
class FitData:
    """Training rows, preprocessed: pairs and both pools.

    Attributes:
        x_a, x_b: paired rows `[n, D_a]`, `[n, D_b]`, row i of one with row i of the other.
        pool_a, pool_b: unpaired rows `[N_a, D_a]`, `[N_b, D_b]`.
    """

    x_a: Tensor
    x_b: Tensor
    pool_a: Tensor
    pool_b: Tensor


@runtime_checkable
class ClosedForm(Protocol):
    """A method that is fitted at once; its fields are what is not tuned.

    This is all that tuning needs. A class that also inherits `estimator.Estimator` can be fitted on
    plain arrays.
    """

    def settings(self, count: int, pairs: int) -> Sequence[Setting]:
        """At most `count` settings for a budget of `pairs`, the one to prefer first.

        Raises:
            UserError: more pairs than the method can be fitted on.
        """
        ...

    def candidates(self, samples: FitData, settings: Sequence[Setting]) -> Iterator[Maps]:
        """The fitted maps of both modalities for each setting, in order.

        Work that settings share is done once.
        """
        ...


# ---- settings ----


def grid(count: int, **axes: Sequence[float]) -> list[Setting]:
    """All combinations of the axes' values, the first axis slowest, cut to `count`.

    >>> grid(3, penalty=[1, 10], share=[0.5, 1])[2]
    {'penalty': 10.0, 'share': 0.5}
    """
    out: list[dict[str, float]] = [{}]
    for name, values in axes.items():
        out = [{**setting, name: float(value)} for setting in out for value in values]
    return list(out[:count])


def log_spaced(first: float, last: float, count: int) -> list[float]:
    """`count` values from `first` to `last`, evenly spaced in logarithm; one if both are equal."""
    if count == 1 or first == last:
        return [first]
    return [first * (last / first) ** (i / (count - 1)) for i in range(count)]


def middle(smallest: float, largest: float) -> float:
    """The middle of a range in logarithm."""
    return float((smallest * largest) ** 0.5)


def without(setting: Setting, name: str) -> Setting:
    """A setting less one of its parameters."""
    return {key: value for key, value in setting.items() if key != name}


def fit_by(
    name: str, settings: Sequence[Setting], fit: Callable[[float, list[Setting]], Iterable[T]]
) -> list[T]:
    """One result per setting, in order, where settings with one value of `name` share work.

    Args:
        name: the parameter whose value decides what can be shared.
        settings: in any order.
        fit: from a value and all settings that have it to one result per setting.
    """
    found: dict[int, T] = {}
    for value in dict.fromkeys(setting[name] for setting in settings):
        mine = [number for number, setting in enumerate(settings) if setting[name] == value]
        found |= zip(mine, fit(value, [settings[number] for number in mine]), strict=True)
    return [found[number] for number in range(len(settings))]


def check_range(smallest: float, largest: float) -> None:
    """Refuse a range of penalties that is empty or not above 0.

    Raises:
        UserError: of key `smallest`.
    """
    if not 0 < smallest <= largest:
        raise UserError(
            f"must be above 0 and at most largest={largest}", key="smallest", value=smallest
        )


def check_values(
    key: str, values: Sequence[float], *, above: float, most: float = math.inf
) -> None:
    """Refuse a list of values that is empty, or not within `(above, most]`.

    Raises:
        UserError: of this key.
    """
    if not values or not above < min(values) <= max(values) <= most:
        limits = f"above {above:g}" + (f" and at most {most:g}" if most < math.inf else "")
        raise UserError(f"must hold values {limits}", key=key, value=values)


# ---- regressions one way or both ways ----

REGRESSIONS = ("both", "a_to_b", "b_to_a")
"""Which way a regression goes: into b's space, into a's, or both with their cosines averaged."""


def check_direction(direction: str) -> None:
    """Refuse an unknown direction of a regression.

    Raises:
        UserError: naming the nearest known one.
    """
    check_one_of("direction", direction, REGRESSIONS)


def regression_candidates(
    samples: FitData,
    direction: str,
    fit: Callable[[Tensor, Tensor, Tensor], Iterable[nn.Module]],
) -> Iterator[Maps]:
    """The maps of a regression's settings, see `regression_maps`.

    Args:
        samples: pairs and pools.
        direction: one of `REGRESSIONS`.
        fit: from inputs `[n, D_in]`, targets `[n, D_out]` and the inputs' pool `[N, D_in]` to one
            map per setting.
    """
    x_a, x_b = samples.x_a, samples.x_b
    forward = fit(x_a, x_b, samples.pool_a) if direction != "b_to_a" else repeat(None)
    backward = fit(x_b, x_a, samples.pool_b) if direction != "a_to_b" else repeat(None)
    # not strict: the way that is left out has no end
    for a_to_b, b_to_a in zip(forward, backward, strict=False):
        yield regression_maps(x_a.shape[1], x_b.shape[1], a_to_b, b_to_a)


def regression_maps(
    dim_a: int, dim_b: int, a_to_b: nn.Module | None, b_to_a: nn.Module | None
) -> Maps:
    """Maps of a regression one way or both ways.

    One way: `z_a = f(x_a), z_b = x_b` (or mirrored). Both: `z_a = [n(f(x_a)); n(x_a)] / sqrt 2`,
    `z_b = [n(x_b); n(g(x_b))] / sqrt 2`, whose dot product is the mean of both cosines.

    Args:
        dim_a, dim_b: frozen widths.
        a_to_b, b_to_a: f and g; None leaves that way out.
    """
    if a_to_b is not None and b_to_a is not None:
        return Concat(a_to_b, Identity(dim_a)), Concat(Identity(dim_b), b_to_a)
    if a_to_b is not None:
        return a_to_b, Identity(dim_b)
    assert b_to_a is not None
    return Identity(dim_a), b_to_a
