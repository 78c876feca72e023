"""Closed forms on their rows: the choice of filters and settings inside the budget, and what comes out.

A closed form is fitted for all its settings on each fold of the budget, the best one again on all pairs. Before that, where there are
several choices of feature filters, its first setting decides in the same way, modality by modality, between those under which the
modalities' similarities agree better than without.

Both happen on the CUDA device, where there is one (`on_accelerator`); what comes out is on the CPU.

A fold is the real task in small: of the families that it holds out, pairs and pool rows are unseen, as those of the test items are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TypeVar

import numpy as np
import torch
from torch import nn

from gera_lightning import distributed, tuning
from gera_lightning.aligners.alternatives import ALTERNATIVE
from gera_lightning.aligners.base import ClosedForm, Maps, Setting
from gera_lightning.aligners.space import SharedSpace
from gera_lightning.geometry.alignment import kernel_alignment
from gera_lightning.parts import build
from gera_lightning.task import MOST_POOL_ROWS, Task

T = TypeVar("T")

CORRECTION_ROWS = 300
"""Pool rows that scores are corrected against while settings are compared: enough to rank settings, a fraction of the time."""


@dataclass(frozen=True)
class Fitted:
    """A shared space and how it came about.

    Attributes:
        space: maps and score.
        steps: optimizer steps of the last training.
        settings: settings that tuning evaluated.
        chosen: the setting it chose.
        plateau: whether training had come to rest at its last step (`tuning.at_rest`); None for a closed form.
    """

    space: SharedSpace
    steps: int
    settings: int
    chosen: dict[str, float]
    plateau: bool | None = None


@torch.no_grad()
def shared_space(task: Task, map_a: nn.Module, map_b: nn.Module, rows: int | None = None) -> SharedSpace:
    """Maps as they stand with the score correction that the config asks for, against the first `rows` of each pool, or `MOST_POOL_ROWS`."""
    rows = MOST_POOL_ROWS if rows is None else rows
    space = SharedSpace(map_a, map_b)
    if task.config.correction is not None:
        device = next(iter((*map_a.parameters(), task.rows.a.pool))).device  # a closed form's maps lie where its rows do
        pools = {f"pool_{s}": space.embed(s, getattr(task.rows, s).pool[:rows].to(device)) for s in "ab"}
        space.correction = build(task.config.correction, "correction", **pools)
    return space


def on_accelerator(task: Task, work: Callable[[Task], T]) -> T:
    """What `work` makes of a task whose pools are cut to what closed forms look at.

    Its rows are on the CUDA device, where there is one and `trainer.accelerator` allows it; on the CPU where there is none, or its memory
    is too small for the work.
    """
    task = task.looked_at()
    accelerator, pairs = distributed.device(task.config.trainer.accelerator), f"{len(task.rows.items)} pairs"
    return distributed.with_room(accelerator, lambda device: work(task.to(device)), pairs)


def fit_closed_form(task: Task) -> Fitted:
    """Fit a closed form, its setting chosen by cross-validation."""
    fitted = on_accelerator(task, _fit_closed_form)
    fitted.space.cpu()
    return fitted


def _fit_closed_form(task: Task) -> Fitted:
    assert task.config.closed_form is not None
    method: ClosedForm = build(task.config.closed_form, "closed_form")
    everything = np.arange(len(task.rows.items))
    choice = choose_filters(task, method, everything)
    count = choice.left(task.config.tuning.settings)
    maps, settings, setting = cross_validated(task, method, everything, count, choice.scores, choice.numbers)
    numbers = filters_before(setting, choice.numbers)
    filtered, chosen = task.through(numbers), {name: float(numbers[name[-1]]) for name in choice.chosen}
    space = shared_space(filtered.task, *maps)
    space.map_a, space.map_b = filtered.behind(*maps)
    return Fitted(space, 0, choice.tried + settings - (choice.scores is not None), {**chosen, **setting})


@dataclass(frozen=True)
class FilterChoice:
    """The filters that were chosen, and what the choice took.

    Attributes:
        numbers: the chosen one's number, by modality.
        tried: combinations that were compared, by agreement or by rank; 0 where there was but one.
        chosen: the numbers of the modalities that had a choice, for the result row.
        scores: held-out pairs' scores `[1, n]` of the chosen combination under the method's first setting; None where it was not tried.
    """

    numbers: Mapping[str, int]
    tried: int
    chosen: dict[str, float]
    scores: np.ndarray | None

    def left(self, settings: int) -> int:
        """Settings of the closed form that may be compared under these filters, of `settings` evaluations in all."""
        return max(settings - self.tried + (self.scores is not None), 1)


FIRST = {"a": 0, "b": 0}
"""The first choice of each modality's filters, where there are several mostly none."""
NO_CHOICE = FilterChoice(FIRST, 0, {}, None)


def filters_before(setting: Setting, numbers: Mapping[str, int]) -> Mapping[str, int]:
    """The filters that a setting stands behind: the chosen ones; an alternative, which had no say in the choice, behind the first."""
    return FIRST if ALTERNATIVE in setting else numbers


def choose_filters(task: Task, method: ClosedForm, positions: np.ndarray) -> FilterChoice:
    """The filters under which a closed form's first setting scores best on folds of these pairs.

    Each modality takes its own: its choices are compared with the other's first, by two kinds of evidence. A choice under which the pairs'
    similarities agree less across the modalities than under the first (`alignment.kernel_alignment`) is out; of the others, held-out
    pairs' ranks decide. Ranks alone are few and noisy, agreement alone is blind to what tells near neighbours apart.
    """
    trials = [FIRST]
    for side in "ab":
        trials += [{**trials[0], side: number} for number in range(1, len(task.choices(side)))]
    if len(trials) == 1:
        return NO_CHOICE
    agreement = [_agreement(task, trial, positions) for trial in trials]
    likely = [trials[0], *(trial for trial, found in zip(trials[1:], agreement[1:], strict=True) if found > agreement[0])]
    first = method.settings(1, len(positions))
    scores = [fold_scores(task, method, first, positions, trial) for trial in likely]
    best = {}
    for side, other in ("ab", "ba"):
        mine = [number for number, trial in enumerate(likely) if trial[other] == 0]
        best[side] = likely[mine[tuning.choose(np.concatenate([scores[number] for number in mine]))]][side]
    chosen = {f"filter_{side}": float(best[side]) for side in "ab" if len(task.choices(side)) > 1}
    return FilterChoice(best, len(trials), chosen, scores[likely.index(best)] if best in likely else None)


def _agreement(task: Task, numbers: Mapping[str, int], positions: np.ndarray) -> float:
    """How far the modalities agree on which pairs are alike, behind these filters."""
    a, b = (task.filtered(side, numbers[side]).modality.pairs[positions] for side in "ab")
    return kernel_alignment(a, b)


def cross_validated(
    task: Task,
    method: ClosedForm,
    positions: np.ndarray,
    count: int,
    first_scores: np.ndarray | None = None,
    numbers: Mapping[str, int] | None = None,
) -> tuple[Maps, int, dict[str, float]]:
    """Maps fitted on these pairs, how many settings (`count` at most) were tried on folds of them, and the chosen one.

    Args:
        task, method, positions: what is fitted on which pairs.
        count: settings to try.
        first_scores: scores of `method.settings(1)` on the same folds, where they are known already.
        numbers: choice of each modality's filters; the maps are of what those that stand before the chosen setting (`filters_before`) pass
            on. None takes the rows as they are.
    """
    settings = method.settings(count, len(positions))
    chosen = 0
    foldable = task.families[task.rows.items[positions]].nunique() > 1  # of one family, as a fold may be, no part can be held out
    if len(settings) > 1 and foldable:
        known = first_scores is not None and settings[0] == method.settings(1, len(positions))[0]
        scores = fold_scores(task, method, settings[1:] if known else settings, positions, numbers)
        chosen = tuning.choose(np.concatenate([first_scores, scores]) if known and first_scores is not None else scores)
    whole = task if numbers is None else task.through(filters_before(settings[chosen], numbers)).task
    [maps] = method.candidates(whole.samples(positions), [settings[chosen]])
    return maps, len(settings), dict(settings[chosen])


def fold_scores(
    task: Task, method: ClosedForm, settings: Sequence[Setting], positions: np.ndarray, numbers: Mapping[str, int] | None = None
) -> np.ndarray:
    """Scores of every held-out pair under every setting, `[settings, n]`; `numbers` as in `cross_validated`."""
    scores, parts = [], task.folds(positions)
    for number, held in enumerate(parts):
        task.progress("tuning fold", number, len(parts))
        fold, rest, found = task.without(held), np.setdiff1d(positions, held), []
        for _, group in groupby(settings, key=lambda setting: ALTERNATIVE in setting):
            mine = list(group)
            seen = fold if numbers is None else fold.through(filters_before(mine[0], numbers)).task
            for maps in method.candidates(seen.samples(rest), mine):
                space = shared_space(seen, *maps, rows=CORRECTION_ROWS)
                found.append(tuning.held_out_score(space, *seen.held_out(held), *seen.distractors()))
        scores.append(torch.stack(found))
    return torch.cat(scores, dim=1).cpu().numpy()
