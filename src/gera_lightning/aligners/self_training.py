"""Self-training: a closed form labels the unpaired rows it is surest of, and is fitted again.

Legend: `n` pairs, `N_a`, `N_b` pool rows, `p` pseudo-pairs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from gera_lightning.aligners.base import ClosedForm, FitData, Maps, Setting, fit_by, without
from gera_lightning.aligners.cca import CCA
from gera_lightning.aligners.estimator import Estimator, default_setting
from gera_lightning.aligners.procrustes import Procrustes
from gera_lightning.aligners.ridge import Ridge
from gera_lightning.models.shared_space import CSLS, SharedSpace
from gera_lightning.utils.errors import UserError
from gera_lightning.utils.instantiate import expect, register


@torch.no_grad()
def mutual_neighbours(
    maps: Maps, pool_a: Tensor, pool_b: Tensor, count: int, k: int = 10
) -> tuple[Tensor, Tensor]:
    """The `count` surest mutual nearest neighbours of two mapped pools.

    Surest by CSLS: cosine less half the mean cosine to the k nearest on both sides.

    Args:
        maps: of both modalities.
        pool_a, pool_b: `[N_a, D_a]`, `[N_b, D_b]`.
        count: pseudo-pairs at most; there may be fewer mutual neighbours.
        k: neighbours of the correction, cut to the pools.

    Returns:
        their row numbers in each pool, `[p]`, the surest first.
    """
    space = SharedSpace(*maps)
    z_a, z_b = space.embed("a", pool_a), space.embed("b", pool_b)
    csls = CSLS(k, pool_a=z_a, pool_b=z_b)
    score = z_a @ z_b.T - csls.penalty(z_a, "a").unsqueeze(1) - csls.penalty(z_b, "b")
    best, partner = score.max(1)
    rows = torch.arange(len(score), device=score.device)
    mutual = torch.nonzero(score.argmax(0)[partner] == rows).squeeze(1)
    kept = mutual[best[mutual].argsort(descending=True, stable=True)[:count]]
    return kept, partner[kept]


@register("self_training")
@dataclass(frozen=True, repr=False)
class SelfTraining(Estimator):
    """A closed form fitted on the pairs and, in rounds, on pseudo-pairs of its own.

    Pseudo-pairs are mutual nearest neighbours among the unpaired rows, as it maps them.

    In each round the form's middle setting maps both pools, the surest mutual neighbours
    (`mutual_neighbours`) replace the pseudo-pairs of the round before, at most `ratio * n` of them,
    and the form is fitted again. `ratio` is tuned together with the form's own settings. A
    pseudo-pair weighs `weight` by scaling its rows by `sqrt(weight)`, which is exact where the fit
    is a least-squares or covariance one.

    Attributes:
        base: the closed form, `{class: ...}` in a config.
        ratios: pseudo-pairs per pair that are tried; 0 is the form alone.
        weight: of a pseudo-pair; a true pair weighs 1.
        rounds: how often pseudo-pairs are chosen.
        unpaired: rows of each pool at most, the first of the shuffled pool.

    Source:
        The rounds are those of iterative Procrustes on bilingual dictionaries: Artetxe, Labaka,
        Agirre, ACL 2017, and Conneau et al., arXiv 1710.04087; number and weight are ours.

    >>> x_a = torch.randn(200, 6, generator=torch.Generator().manual_seed(0))
    >>> x_b = x_a @ x_a[:6]
    >>> form = SelfTraining(Ridge()).fit(x_a[:30], x_b[:30], x_a[30:180], x_b[30:180], penalty=0.01)
    >>> scores, rows = form.search(x_a[180:], x_b[180:], k=1)
    >>> rows[:, 0].tolist() == list(range(20))
    True
    """

    reads_unpaired: ClassVar[bool] = True  # without them there is nothing to label

    base: Any = field(default_factory=Ridge)
    ratios: tuple[float, ...] = (0.25, 1.0)
    weight: float = 0.3
    rounds: int = 2
    unpaired: int = 2000

    def __post_init__(self) -> None:
        expect(self.base, ClosedForm, "base", "ridge")
        if not self.ratios or min(self.ratios) < 0:
            raise UserError("must hold values of at least 0", key="ratios", value=self.ratios)
        if not 0 < self.weight <= 1:
            raise UserError("must be above 0 and at most 1", key="weight", value=self.weight)
        if self.weight != 1 and not isinstance(self.base, Ridge | CCA | Procrustes):
            raise UserError(
                f"does not fit {type(self.base).__name__}, which takes no weighted pairs",
                key="weight",
                value=self.weight,
                remedy="set weight=1",
            )
        for key in ("rounds", "unpaired"):
            if getattr(self, key) < 1:
                raise UserError("must be at least 1", key=key, value=getattr(self, key))

    def settings(self, count: int, pairs: int) -> Sequence[Setting]:
        """At most `count` settings: the form's own, each with every ratio."""
        own = self._form.settings(max(1, count // len(self.ratios)), pairs)
        return [{**setting, "ratio": ratio} for setting in own for ratio in self.ratios][:count]

    def default_setting(self, pairs: int) -> Setting:
        """The form's own default and the first ratio."""
        return {**default_setting(self._form, pairs), "ratio": self.ratios[0]}

    def candidates(self, samples: FitData, settings: Sequence[Setting]) -> Iterator[Maps]:
        """The maps of each setting; the pseudo-pairs of a ratio are chosen once."""
        first_teacher = cache(lambda: self._teacher(samples, len(samples.x_a)))

        def fit(ratio: float, mine: list[Setting]) -> Iterator[Maps]:
            count = round(ratio * len(samples.x_a))
            enlarged = self._enlarged(samples, first_teacher(), count) if count else samples
            return self._form.candidates(enlarged, [without(each, "ratio") for each in mine])

        yield from fit_by("ratio", settings, fit)

    @property
    def _form(self) -> ClosedForm:
        form: ClosedForm = self.base
        return form

    def _teacher(self, samples: FitData, pairs: int) -> Maps:
        """The form's middle setting of five, fitted."""
        choices = self._form.settings(5, pairs)
        return next(iter(self._form.candidates(samples, [choices[len(choices) // 2]])))

    def _enlarged(self, samples: FitData, teacher: Maps, count: int) -> FitData:
        """Pairs and the last round's pseudo-pairs."""
        pool_a, pool_b = samples.pool_a[: self.unpaired], samples.pool_b[: self.unpaired]
        if not len(pool_a) or not len(pool_b):
            return samples
        scale, out = math.sqrt(self.weight), samples
        for number in range(self.rounds):
            maps = teacher if number == 0 else self._teacher(out, len(samples.x_a))
            i, j = mutual_neighbours(maps, pool_a, pool_b, count)
            # added to the true pairs alone: a round may take back what the one before chose
            out = FitData(
                torch.cat([samples.x_a, scale * pool_a[i]]),
                torch.cat([samples.x_b, scale * pool_b[j]]),
                samples.pool_a,
                samples.pool_b,
            )
        return out
