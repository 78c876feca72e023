"""What of the settings decides a run's result, and its hash."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

from gera_lightning.config.schema import RUNTIME_KEYS, TRAINED_KEYS, Config

RESULTS_VERSION = 1
"""Raise it when a run of the same settings would give another result: older results then count as
those of other runs.
"""


def identity(config: Config) -> dict[str, Any]:
    """The settings that decide a run's result, as plain values: what its hash is taken of."""
    values = dataclasses.asdict(config)
    skip = RUNTIME_KEYS + (TRAINED_KEYS if config.closed_form else ("closed_form",))
    values = {key: value for key, value in values.items() if key not in skip}
    if not config.filters:
        values.pop("filters")
    if not config.tuning.grid:
        values["tuning"].pop("grid")
    if (
        config.mixup is None
        # a peer's section that a run lacks is no part of it, so runs from before there was one keep
        # their hash
    ):
        values.pop("mixup", None)
    if config.unpaired_loss is None:
        values.pop("unpaired_loss", None)
        values.pop("unpaired_weight", None)
    if config.unpaired_loss is None and "batch" in values:
        values["batch"].pop("unpaired")
    if "graph" in values and config.graph.nprobe is None:
        values["graph"].pop("nprobe")
    if "trainer" in values:  # how often it logs, and on what it runs, is not what it computes
        for key in ("log_every_n_steps", "checkpoint_every_n_steps", "accelerator", "devices"):
            values["trainer"].pop(key)
        values["trainer"].pop("min_epochs")  # a run's `max_steps` holds them
    values["evaluation"].pop("chunk")
    if not config.evaluation.metrics:
        values["evaluation"].pop("metrics")
    for key in ("a", "b", "synthetic"):  # the data's own hash stands for them
        values["data"].pop(key)
    return values


def config_hash(config: Config, **more: Any) -> str:
    """Eight hex digits of the identity of a run, and of what computes its result."""
    if RESULTS_VERSION > 1:  # the hashes of 1 are of before there was a number
        more["results"] = RESULTS_VERSION
    text = json.dumps({**identity(config), **more}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]
