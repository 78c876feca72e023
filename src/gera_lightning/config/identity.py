"""What of the settings decides a run's result, and its hash."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

from gera_lightning.config.schema import Config
from gera_lightning.utils.instantiate import canonical

RESULTS_VERSION = 4
"""Raise it when a run of the same settings would give another result: older results then count as
those of other runs.
"""


def identity(config: Config) -> dict[str, Any]:
    """The settings that decide a run's result, as plain values: what its hash is taken of.

    Fields that are marked `hash=False` in the schema are left out, and those that only trained
    methods read where the method is a closed form. Classes stand there under their short names, so
    a class may move to another file.
    """
    named: dict[str, Any] = canonical(_values(config, closed_form=config.closed_form is not None))
    return named


def _values(section: Any, *, closed_form: bool) -> dict[str, Any]:
    """A section's fields that decide a result, sections within it likewise."""
    values = {}
    for field in dataclasses.fields(section):
        if field.metadata.get("hash") is False or (closed_form and field.metadata.get("trained")):
            continue
        value = getattr(section, field.name)
        nested = dataclasses.is_dataclass(value)
        values[field.name] = _values(value, closed_form=closed_form) if nested else value
    return values


def config_hash(config: Config, **more: Any) -> str:
    """Eight hex digits of the identity of a run, and of what else decides its result."""
    record = {**identity(config), **more, "results": RESULTS_VERSION}
    text = json.dumps(record, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]
