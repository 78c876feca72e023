"""Checks of a method before anything is written: what a user can get wrong shows here."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from gera_lightning.aligners.base import FitData
from gera_lightning.losses.base import PATCHES, Loss
from gera_lightning.models.shared_space import CSLS
from gera_lightning.training.loggers import make_callbacks, make_loggers
from gera_lightning.training.method import Method, search_settings
from gera_lightning.training.warm_start import linear_weight
from gera_lightning.utils.errors import UserError
from gera_lightning.utils.instantiate import expect
from gera_lightning.utils.trainer import make_trainer, quiet_lightning


def check(method: Method, dims: tuple[int, int] = (8, 8), pairs: int = 1) -> None:
    """Make every part of a method once, at toy size.

    Args:
        method: its parts, built already.
        dims: widths of both modalities' rows, which an index of their neighbours must fit.
        pairs: that a closed form must have room for.

    Raises:
        UserError: naming the section, and what refuses which value.
    """
    if method.correction is not None:
        correction = method.correction(pool_a=torch.zeros(1, 2), pool_b=torch.zeros(1, 2))
        expect(correction, CSLS, "correction", "csls")
    trials = method.config.tuning.max_trials
    _check_filters(method, trials)
    if method.closed_form is not None:
        method.closed_form.settings(trials, pairs)
        return
    if method.init is not None:
        method.init.settings(trials, pairs)
        toy = torch.eye(4)
        settings = method.init.settings(1, 4)
        for mapping in next(iter(method.init.candidates(FitData(toy, toy, toy, toy), settings))):
            linear_weight(mapping)
    for _, candidate in method.candidates():
        _check_trained(candidate, dims)


def _check_filters(method: Method, trials: int) -> None:
    """There are no more combinations of filters than settings may be evaluated."""
    combinations = 1 + sum(len(choices) - 1 for choices in method.filters.values())
    if combinations > trials:
        raise UserError(
            f"filters: {combinations} combinations are tried, more than tuning.max_trials={trials}:"
            " take fewer choices, or raise tuning.max_trials for all methods"
        )


def _check_trained(method: Method, dims: tuple[int, int]) -> None:
    config = method.config
    if not method.losses:
        raise UserError("losses: a trained method needs one at least, such as losses.pair=clip")
    head = method.head(2, 2, weight=None, generator=torch.Generator())
    method.optimizer([{"params": list(head.parameters())}])
    for name, loss in method.make_losses().items():
        assert isinstance(loss, Loss)
        if loss.warmup > config.trainer.max_steps:
            raise UserError(
                f"reaches beyond trainer.max_steps={config.trainer.max_steps}",
                key=f"losses.{name}.warmup",
                value=loss.warmup,
                remedy="lower the one or raise the other",
            )
    if PATCHES in method.requires:
        for dim in dims:
            search_settings(method.config.graph).check(dim)
    with tempfile.TemporaryDirectory() as folder, quiet_lightning():
        make_loggers(config.loggers, Path(folder))
        make_callbacks(config.callbacks)
        make_trainer(config.trainer, "trainer", config.trainer.flags, max_steps=1, logger=False)
