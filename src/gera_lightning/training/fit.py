"""Fit a method on a training set, in closed form or by training."""

from __future__ import annotations

from gera_lightning.training.fit_closed_form import Fitted, fit_closed_form
from gera_lightning.training.fit_trained import fit_trained
from gera_lightning.training.training_set import TrainingSet


def fit(task: TrainingSet) -> Fitted:
    """Fit the method that `task.config` describes, in closed form or by training."""
    return fit_closed_form(task) if task.config.closed_form is not None else fit_trained(task)
