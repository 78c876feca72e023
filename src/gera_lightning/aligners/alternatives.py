"""A closed form with alternatives: tuning chooses a method as it chooses a setting."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from gera_lightning.aligners.base import ClosedForm, FitData, Maps, Setting, without
from gera_lightning.aligners.estimator import Estimator, default_setting
from gera_lightning.utils.errors import UserError
from gera_lightning.utils.instantiate import expect, register

ALTERNATIVE = "alternative"
"""Key of an alternative's settings: its number, from 1. The form's own settings lack it."""


@register("alternatives")
@dataclass(frozen=True, repr=False)
class Alternatives(Estimator):
    """A closed form, and others that are tried in place of it, each in its first setting.

    Filters are chosen for the form and applied before it alone, see
    `training.cross_validation.filters_before`: a filter that helps one method may harm another.

    Attributes:
        form: the closed form that comes first; it has all settings but one per alternative.
        others: closed forms, in order.

    >>> from gera_lightning.aligners.cca import CCA
    >>> from gera_lightning.aligners.ridge import Ridge
    >>> Alternatives(Ridge(), (CCA("gaussian"), CCA("csa"))).settings(4, pairs=100)[-1]
    {'alternative': 2.0, 'penalty': 10.0, 'share': 0.5}
    """

    form: Any
    others: tuple[Any, ...]

    def __post_init__(self) -> None:
        for name, method in (("form", self.form), *(("others", other) for other in self.others)):
            expect(method, ClosedForm, name, "cca")
            if isinstance(method, Alternatives):
                raise UserError(
                    "holds alternatives of its own", key=name, remedy="name them all in `others`"
                )

    def settings(self, count: int, pairs: int) -> Sequence[Setting]:
        """At most `count` settings: the form's own, then the first of each other form.

        The others give way: there is always one of the form's own.
        """
        others = self.others[: count - 1]
        own: Sequence[Setting] = self.form.settings(count - len(others), pairs)
        return [
            *own,
            *(
                {ALTERNATIVE: float(n), **other.settings(1, pairs)[0]}
                for n, other in enumerate(others, 1)
            ),
        ]

    def default_setting(self, pairs: int) -> Setting:
        """That of the form: `fit` does not try the others, only tuning does."""
        return default_setting(self.form, pairs)

    def candidates(self, samples: FitData, settings: Sequence[Setting]) -> Iterator[Maps]:
        """The maps of each setting.

        Settings of one method that follow each other share work.
        """
        for number, mine in groupby(settings, key=lambda setting: int(setting.get(ALTERNATIVE, 0))):
            method: ClosedForm = (self.form, *self.others)[number]
            yield from method.candidates(samples, [without(each, ALTERNATIVE) for each in mine])
