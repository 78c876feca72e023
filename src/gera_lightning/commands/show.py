"""Show every setting of an experiment: its value, where it comes from, and what it means.

gera show EXPERIMENT [method=gera key=value ...]
gera show EXPERIMENT | grep -A 1 batch
"""

from __future__ import annotations

from collections.abc import Sequence

from gera_lightning.config.overrides import split_overrides, split_target
from gera_lightning.config.reference import explain


def show(
    experiment: str, overrides: Sequence[str] = (), *, method: str = "", folder: str = "experiments"
) -> str:
    """The settings of one method, two lines each.

    Args:
        experiment, overrides, method, folder: see `config.reference.explain`.

    Raises:
        UserError: as `config.load`.
    """
    lines = []
    for one in explain(experiment, overrides, method=method, folder=folder):
        lines.append(f"{one.key}: {one.shown}   ({one.source})")
        lines.append(f"    {one.meaning}")
    return "\n".join(lines)


def run(words: Sequence[str]) -> None:
    """The command line's `gera show`."""
    target, rest = split_target(words)
    options, overrides = split_overrides(rest, show)
    print(show(target, overrides, **options))
