"""Report an experiment's finished runs: intervals, comparisons and examples, as HTML and Markdown.

gera report EXPERIMENT [reference=METHOD baseline=METHOD key=value ...]
"""

from __future__ import annotations

from collections.abc import Sequence

from gera_lightning.config.overrides import split_overrides, split_target
from gera_lightning.experiment.archive import kept_path
from gera_lightning.report.write import write_report

report = write_report


def run(words: Sequence[str]) -> None:
    """The command line's `gera report`."""
    experiment, rest = split_target(words)
    options, overrides = split_overrides(rest, report)
    path = report(experiment, overrides, **options)
    print(path.with_name("headline.md").read_text(encoding="utf-8"))
    print(f"report       {path}")
    print(
        f"Markdown     {path.with_name('report.md')}   (with a CSV per table, a PNG and an SVG per"
        " figure)"
    )
    kept = kept_path(path.parents[1].name)  # runs/<experiment>/report/index.html
    if kept.is_file() and "kept" not in options:
        print(f"kept         gera report {experiment} kept={kept}   (the results kept in docs)")
