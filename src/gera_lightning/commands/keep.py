"""Keep an experiment's finished results in docs/results.

    gera keep EXPERIMENT [key=value ...]

`gera report` makes its report from them where the experiment has no runs.
"""

from __future__ import annotations

from collections.abc import Sequence

from gera_lightning.config.overrides import split_target
from gera_lightning.report.write import keep_results

keep = keep_results


def run(words: Sequence[str]) -> None:
    """The command line's `gera keep`."""
    path = keep(*split_target(words))
    print(
        f"kept         {path}   ({path.stat().st_size / 1e6:.1f} MB; the curve is"
        f" {path.with_suffix('.png')})"
    )
