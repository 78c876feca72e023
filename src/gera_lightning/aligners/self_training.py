"""Self-training: a closed form labels the unpaired rows that it is surest of, and is fitted again
with them.

Legend: `n` pairs, `N_a`, `N_b` pool rows, `p` pseudo-pairs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from gera_lightning.aligners.base import ClosedForm, FitData, Maps, Setting
from gera_lightning.aligners.cca import CCA
from gera_lightning.aligners.procrustes import Procrustes
from gera_lightning.aligners.ridge import Ridge
from gera_lightning.models.shared_space import CSLS, SharedSpace
from gera_lightning.utils.errors import UserError
from gera_lightning.utils.instantiate import expect, register


@torch.no_grad()
def mutual_neighbours(
    maps: Maps, pool_a: Tensor, pool_b: Tensor, count: int, k: int = 10
) -> tuple[Tensor, Tensor]:
    """The `count` surest mutual nearest neighbours of two mapped pools, by cosine less half the
    mean cosine to the k nearest (CSLS).

    Args:
        maps: of both modalities.
        pool_a, pool_b: `[N_a, D_a]`, `[N_b, D_b]`.
        count: pseudo-pairs at most; there may be fewer mutual neighbours.
        k: neighbours of the correction, cut to the pools.

    Returns:
        their row numbers in each pool, `[p]`, the surest first.
    """
    space = SharedSpace(*maps)
    z = space.embed("a", pool_a), space.embed("b", pool_b)
    hub = CSLS(k, pool_a=z[0], pool_b=z[1])
    score = z[0] @ z[1].T - hub.penalty(z[0], "a").unsqueeze(1) - hub.penalty(z[1], "b")
    best, partner = score.max(1)
    mutual = torch.nonzero(
        score.argmax(0)[partner] == torch.arange(len(score), device=score.device)
    ).squeeze(1)
    kept = mutual[best[mutual].argsort(descending=True, stable=True)[:count]]
    return kept, partner[kept]


@register("self_training")
@dataclass(frozen=True)
class SelfTraining:
    """A closed form fitted on the pairs and on pseudo-pairs: mutual nearest neighbours of its own
    mapped pools, in rounds.

    In each round the form's middle setting maps both pools, the surest mutual neighbours
    (`mutual_neighbours`) replace the pseudo-pairs of the round before, at most `ratio * n` of them,
    and the form is fitted again. `ratio` is tuned together with the form's own settings. A
    pseudo-pair weighs `weight` by scaling its rows by `sqrt(weight)`, which is exact where the fit
    is a least-squares or covariance one.

    Attributes:
        base: the closed form, `{class: ...}` in a config.
        ratios: pseudo-pairs a pair tried; 0 is the form alone.
        weight: of a pseudo-pair; a true pair weighs 1.
        rounds: how often pseudo-pairs are chosen.
        unpaired: rows of each pool at most, the first of the shuffled pool.

    Source:
        The rounds are those of iterative Procrustes on bilingual dictionaries: Artetxe, Labaka,
        Agirre, ACL 2017, and Conneau et al., arXiv 1710.04087; number and weight are ours.
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
            raise UserError(f"ratios={self.ratios} must hold values of at least 0")
        if not 0 < self.weight <= 1:
            raise UserError(f"weight={self.weight} must be above 0 and at most 1")
        if self.weight != 1 and not isinstance(self.base, Ridge | CCA | Procrustes):
            raise UserError(
                f"weight={self.weight}: {type(self.base).__name__} takes no weighted pairs, set"
                " weight=1"
            )
        if self.rounds < 1 or self.unpaired < 1:
            raise UserError(f"rounds={self.rounds} and unpaired={self.unpaired} must be at least 1")

    def settings(self, count: int, pairs: int) -> Sequence[Setting]:
        """At most `count` settings: the form's own, each with every ratio, the fewest pseudo-pairs
        first.
        """
        own = self._form.settings(max(1, count // len(self.ratios)), pairs)
        return [{**setting, "ratio": ratio} for setting in own for ratio in self.ratios][:count]

    def candidates(self, samples: FitData, settings: Sequence[Setting]) -> Iterator[Maps]:
        """The maps of each setting; the pseudo-pairs of a ratio are chosen once."""
        found: dict[int, Maps] = {}
        first: Maps | None = None
        for ratio in dict.fromkeys(setting["ratio"] for setting in settings):
            mine = [number for number, setting in enumerate(settings) if setting["ratio"] == ratio]
            own = [
                {key: value for key, value in settings[number].items() if key != "ratio"}
                for number in mine
            ]
            enlarged, count = samples, round(ratio * len(samples.x_a))
            if count:
                first = first or self._teacher(samples, len(samples.x_a))
                enlarged = self._enlarged(samples, first, count)
            found |= zip(mine, self._form.candidates(enlarged, own), strict=True)
        yield from (found[number] for number in range(len(settings)))

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
            x_a, x_b = (
                torch.cat([samples.x_a, scale * pool_a[i]]),
                torch.cat([samples.x_b, scale * pool_b[j]]),
            )
            out = FitData(x_a, x_b, samples.pool_a, samples.pool_b)
        return out
