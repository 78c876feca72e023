"""Fitting of closed forms: filters and settings chosen inside the budget, then one fit on all
pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gera_lightning.models.shared_space import SharedSpace
from gera_lightning.training.cross_validation import cross_validated, filters_before
from gera_lightning.training.filter_choice import choose_filters
from gera_lightning.training.training_set import TrainingSet, on_accelerator, shared_space


@dataclass(frozen=True)
class Fitted:
    """A shared space and how it came about.

    Attributes:
        space: maps and score.
        steps: optimizer steps of the last training.
        n_trials: settings that tuning evaluated.
        chosen: the setting it chose.
        converged: whether training had come to rest at its last step (`tuning.converged`); None for
            a closed form.
    """

    space: SharedSpace
    steps: int
    n_trials: int
    chosen: dict[str, float]
    converged: bool | None = None


def fit_closed_form(task: TrainingSet) -> Fitted:
    """Fit a closed form, its setting chosen by cross-validation."""
    fitted = on_accelerator(task, _fit_closed_form)
    fitted.space.cpu()
    return fitted


def _fit_closed_form(task: TrainingSet) -> Fitted:
    method = task.method.closed_form
    assert method is not None
    everything = np.arange(len(task.rows.items))
    choice = choose_filters(task, method, everything)
    count = choice.remaining_trials(task.config.tuning.max_trials)
    maps, settings, setting = cross_validated(
        task, method, everything, count, choice.scores, choice.numbers
    )
    numbers = filters_before(setting, choice.numbers)
    filtered, chosen = (
        task.filtered(numbers),
        {name: float(numbers[name[-1]]) for name in choice.chosen},
    )
    space = shared_space(filtered.task, *maps)
    space.map_a, space.map_b = filtered.compose(*maps)
    return Fitted(
        space, 0, choice.tried + settings - (choice.scores is not None), {**chosen, **setting}
    )
