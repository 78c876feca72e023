"""Checks of a method's settings before anything is written."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from gera_lightning.aligners.base import ClosedForm, FitData
from gera_lightning.config import Config, combinations
from gera_lightning.models.shared_space import CSLS
from gera_lightning.training.build import _linear_weight, make_trainer, search_settings
from gera_lightning.training.method import unpaired_loss
from gera_lightning.training.training_set import build_filters
from gera_lightning.utils.errors import UserError
from gera_lightning.utils.instantiate import ClassSpec, build, expect
from gera_lightning.utils.trainer import quiet_lightning


def check(config: Config, dims: tuple[int, int] = (8, 8), pairs: int = 1) -> None:
    """Build every part of a method once, at toy size: what a user can get wrong shows here, before
    anything is written.

    Args:
        config: the method's settings.
        dims: widths of both modalities' rows, which an index of their neighbours must fit.
        pairs: that a closed form must have room for.

    Raises:
        UserError: naming the section, and what refuses which value.
    """
    if config.correction is not None:
        correction = build(
            config.correction, "correction", pool_a=torch.zeros(1, 2), pool_b=torch.zeros(1, 2)
        )
        expect(correction, CSLS, "correction", "csls")
    for side, choices in config.filters.items():
        for number, parts in enumerate(choices):
            build_filters(parts, side, number)
        if len(choices) > 1 and config.closed_form is None and config.init is None:
            raise UserError(
                f"filters.{side}: trained maps that do not start from a closed form cannot choose"
                " between filters: keep one, or set init"
            )
    tried = 1 + sum(len(choices) - 1 for choices in config.filters.values() if choices)
    if tried > config.tuning.max_trials:
        raise UserError(
            f"filters: {tried} combinations are tried, more than"
            f" tuning.max_trials={config.tuning.max_trials}: take fewer choices, or raise"
            " tuning.max_trials for all methods"
        )
    if config.closed_form is not None:
        _closed_form(config.closed_form, "closed_form").settings(config.tuning.max_trials, pairs)
        return
    if config.init is not None:
        start = _closed_form(config.init, "init")
        start.settings(config.tuning.max_trials, pairs)
        toys = [torch.eye(4), torch.eye(4)]
        for mapping in next(iter(start.candidates(FitData(*toys, *toys), start.settings(1, 4)))):
            _linear_weight(mapping)
    for _, chosen in combinations(config):
        _check_trained(chosen, dims)


def _closed_form(part: ClassSpec, where: str) -> ClosedForm:
    form: ClosedForm = build(part, where)
    expect(form, ClosedForm, where, "ridge")
    return form


def _check_trained(config: Config, dims: tuple[int, int]) -> None:
    head = build(config.head, "head", 2, 2, weight=None, generator=torch.Generator())
    build(config.pair_loss, "pair_loss")
    build(config.optimizer, "optimizer", [{"params": list(head.parameters())}])
    if config.geometric_loss is not None:
        build(config.geometric_loss, "geometric_loss")
        for dim in dims:
            search_settings(config).check(dim)
    if config.mixup is not None:
        build(config.mixup, "mixup")
    if config.unpaired_loss is not None:
        warmup, steps = unpaired_loss(config).warmup, config.trainer.max_steps
        if warmup > steps:
            raise UserError(
                f"unpaired_loss.warmup={warmup} reaches beyond trainer.max_steps={steps}: lower the"
                " one or raise the other"
            )
    with tempfile.TemporaryDirectory() as folder, quiet_lightning():
        make_trainer(config, Path(folder), 1, [])
