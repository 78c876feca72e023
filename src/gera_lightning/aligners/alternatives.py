"""A closed form with alternatives: tuning chooses between methods as it chooses between settings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from gera_lightning.aligners.base import ClosedForm, FitData, Maps, Setting
from gera_lightning.utils.errors import UserError
from gera_lightning.utils.instantiate import expect, register

ALTERNATIVE = "alternative"
"""In a setting: the number of the alternative that it is of, from 1; the form's own settings have
none.
"""


@register("alternatives")
@dataclass(frozen=True)
class Alternatives:
    """A closed form, and others that are tried in place of it, each in its first setting.

    Where filters of features are chosen, the form chooses them, and they stand before it alone
    (`fit.filters_before`): what helps one method may be the ruin of another.

    Attributes:
        form: the closed form that comes first; it has all settings but one an alternative.
        others: closed forms, in order.
    """

    form: Any
    others: tuple[Any, ...]

    def __post_init__(self) -> None:
        for name, method in (("form", self.form), *(("others", other) for other in self.others)):
            expect(method, ClosedForm, name, "cca")
            if isinstance(method, Alternatives):
                raise UserError("alternatives of alternatives: name them all in `others`")

    def settings(self, count: int, pairs: int) -> Sequence[Setting]:
        """`count` settings at most: the form's own, then the others' first as far as there is room
        beside one of the form's.
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

    def candidates(self, samples: FitData, settings: Sequence[Setting]) -> Iterator[Maps]:
        """The maps of each setting; work is shared among settings of one method that follow each
        other.
        """
        for number, mine in groupby(settings, key=lambda setting: int(setting.get(ALTERNATIVE, 0))):
            method: ClosedForm = (self.form, *self.others)[number]
            yield from method.candidates(
                samples,
                [{k: v for k, v in setting.items() if k != ALTERNATIVE} for setting in mine],
            )
