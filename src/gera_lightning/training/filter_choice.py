"""Choice of each modality's filters inside the budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from gera_lightning.aligners.base import ClosedForm
from gera_lightning.evaluation.similarity import debiased_cka
from gera_lightning.training.cross_validation import FIRST, choose, fold_scores
from gera_lightning.training.training_set import TrainingSet


@dataclass(frozen=True)
class FilterChoice:
    """The filters that were chosen, and what the choice took.

    Attributes:
        numbers: the chosen one's number, by modality.
        tried: combinations that were compared, by agreement or by rank; 0 where there was but one.
        chosen: the numbers of the modalities that had a choice, for the result row.
        scores: held-out pairs' scores `[1, n]` of the chosen combination under the method's first
            setting; None where it was not tried.
    """

    numbers: Mapping[str, int]
    tried: int
    chosen: dict[str, float]
    scores: np.ndarray | None

    def remaining_trials(self, settings: int) -> int:
        """Settings of the closed form that may be compared under these filters, of `settings`
        evaluations in all.
        """
        return max(settings - self.tried + (self.scores is not None), 1)


NO_CHOICE = FilterChoice(FIRST, 0, {}, None)


def choose_filters(task: TrainingSet, method: ClosedForm, positions: np.ndarray) -> FilterChoice:
    """The filters under which a closed form's first setting scores best on folds of these pairs.

    Each modality takes its own: its choices are compared with the other's first, by two kinds of
    evidence. A choice under which the pairs' similarities agree less across the modalities than
    under the first (`alignment.debiased_cka`) is out; of the others, held-out pairs' ranks decide.
    Ranks alone are few and noisy, agreement alone is blind to what tells near neighbours apart.
    """
    trials = [FIRST]
    for side in "ab":
        trials += [
            {**trials[0], side: number} for number in range(1, len(task.method.filters[side]))
        ]
    if len(trials) == 1:
        return NO_CHOICE
    agreement = [_agreement(task, trial, positions) for trial in trials]
    likely = [
        trials[0],
        *(
            trial
            for trial, found in zip(trials[1:], agreement[1:], strict=True)
            if found > agreement[0]
        ),
    ]
    first = method.settings(1, len(positions))
    scores = [fold_scores(task, method, first, positions, trial) for trial in likely]
    best = {}
    for side, other in ("ab", "ba"):
        mine = [number for number, trial in enumerate(likely) if trial[other] == 0]
        best[side] = likely[mine[choose(np.concatenate([scores[number] for number in mine]))]][side]
    chosen = {
        f"filter_{side}": float(best[side]) for side in "ab" if len(task.method.filters[side]) > 1
    }
    return FilterChoice(
        best, len(trials), chosen, scores[likely.index(best)] if best in likely else None
    )


def _agreement(task: TrainingSet, numbers: Mapping[str, int], positions: np.ndarray) -> float:
    """How far the modalities agree on which pairs are alike, behind these filters."""
    a, b = (task.filtered_modality(side, numbers[side]).modality.pairs[positions] for side in "ab")
    return debiased_cka(a, b)
