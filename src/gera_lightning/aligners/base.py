"""What a closed form is given and what it gives back.

Legend: `n` pairs, `N_a`, `N_b` pool rows, `D_a`, `D_b` frozen widths.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from gera_lightning.models.maps import Concat, Identity
from gera_lightning.utils.errors import UserError, check_one_of

Setting = Mapping[str, float]
"""One choice of a method's free parameters, by name."""
Maps = tuple[nn.Module, nn.Module]
"""The map of modality a and the map of modality b."""


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
    """A method that is fitted at once; its fields are what is not tuned."""

    def settings(self, count: int, pairs: int) -> Sequence[Setting]:
        """At most `count` settings to choose from, the one to prefer first, for a budget of
        `pairs`.

        Raises:
            UserError: more pairs than the method can be fitted on.
        """
        ...

    def candidates(self, samples: FitData, settings: Sequence[Setting]) -> Iterator[Maps]:
        """The fitted maps of both modalities for each setting, in order; work that settings share
        is done once.
        """
        ...


def grid(count: int, **axes: Sequence[float]) -> list[Setting]:
    """All combinations of the axes' values, the first axis slowest, cut to `count`."""
    out: list[dict[str, float]] = [{}]
    for name, values in axes.items():
        out = [{**setting, name: float(value)} for setting in out for value in values]
    return list(out[:count])


def log_spaced(first: float, last: float, count: int) -> list[float]:
    """`count` values from `first` to `last`, evenly spaced in logarithm; one value where the two
    are equal.
    """
    if count == 1 or first == last:
        return [first]
    return [first * (last / first) ** (i / (count - 1)) for i in range(count)]


def check_range(smallest: float, largest: float) -> None:
    """Refuse a range of penalties that is none.

    Raises:
        UserError: naming both ends.
    """
    if not 0 < smallest <= largest:
        raise UserError(f"smallest={smallest} must be above 0 and at most largest={largest}")


REGRESSIONS = ("both", "a_to_b", "b_to_a")
"""Which way a regression goes: into b's space, into a's, or both with their cosines averaged."""


def check_direction(direction: str) -> None:
    """Refuse an unknown direction of a regression.

    Raises:
        UserError: naming the nearest known one.
    """
    check_one_of("direction", direction, REGRESSIONS)


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
