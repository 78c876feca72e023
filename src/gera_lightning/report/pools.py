"""The section on unpaired rows: recall against how many of them a method may use."""

from __future__ import annotations

from collections.abc import Sequence

from gera_lightning.report import ablations, figures
from gera_lightning.report.document import Picture, Pictures, Section
from gera_lightning.report.figures import Series
from gera_lightning.report.findings import Findings

POOL_SIZE = "data.pool_size"
COUNTS = ["pool_a", "pool_b"]
"""Columns of a result row: the unpaired rows that the run had."""


def section(findings: Findings) -> Section:
    """A curve per base whose `data.pool_size` was changed and nothing else."""
    pictures = []
    for base in dict.fromkeys((findings.reference, *ablations.BASES)):
        changed = ablations.ablations(findings.sweep.settings, base)
        sized = [name for name, changes in changed.items() if set(changes) == {POOL_SIZE}]
        if sized and set(COUNTS) <= set(findings.table):
            pictures.append(_picture(findings, base, [base, *sized]))
    return Section("What unpaired rows are worth", [Pictures(pictures)] if pictures else [])


def _picture(findings: Findings, base: str, methods: Sequence[str]) -> Picture:
    table, measure = findings.table[findings.table["method"].isin(methods)], findings.measure
    table = table.assign(most=table[COUNTS].max(axis=1)).sort_values("most")
    series = []
    for budget in findings.sweep.compared:
        rows = table[table["budget"] == budget]
        recall, deviation = rows[measure.column], rows[f"{measure.column}/sd"].fillna(0)
        ends = (recall - deviation).to_list(), (recall + deviation).to_list()
        series.append(Series(f"{budget} pairs", rows["most"].to_list(), recall.to_list(), *ends))
    style = figures.styles([one.label for one in series])
    xlabel = "unpaired rows per modality, at most"
    figure = figures.lines(series, style, base, measure.name, xlabel=xlabel, from_zero=False)
    caption = (
        f"{measure.name} of {base}, {measure.words}, against the unpaired rows it has of each"
        " modality. Bands: one standard deviation over seeds."
    )
    return Picture(f"pools_{base}", caption, figure)
