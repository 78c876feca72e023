"""Sections of a report on each modality's geometry, on hubness, and on cost."""

from __future__ import annotations

import numpy as np

from gera_lightning.report import figures
from gera_lightning.report.document import Picture, Pictures, Section
from gera_lightning.report.figures import Series
from gera_lightning.report.findings import Findings, Lines, number, with_sd

UNIMODAL = {
    "knn_overlap": "kNN overlap",
    "trustworthiness": "trustworthiness",
    "continuity": "continuity",
}
SAME_MODALITY = {"label_p@10": "label P@10", "group_r@10": "group R@10"}


def unimodal(findings: Findings) -> Section:
    """Each modality's own neighbourhoods before and after the map."""
    table, title = findings.table, "Geometry of each modality"
    sides = dict(zip("ab", findings.modalities, strict=True))
    kept = {
        f"{side}/{name}": f"{head} {modality}"
        for side, modality in sides.items()
        for name, head in UNIMODAL.items()
        if f"{side}/{name}" in table
    }
    moved = {
        f"{side}/{name}": f"{head} {modality}"
        for side, modality in sides.items()
        for name, head in SAME_MODALITY.items()
        if f"{side}/{name}/after" in table
    }
    if not kept and not moved:
        return Section(title, [])
    lines = Lines()
    columns = [*kept, *(f"{name}/{when}" for name in moved for when in ("before", "after"))]
    for budget in findings.sweep.budgets:
        for _, row in findings.rows(budget).iterrows():
            cells = [number(row[name]) for name in kept]
            cells += [
                f"{number(row[f'{name}/before'])} → {number(row[f'{name}/after'])}"
                for name in moved
            ]
            lines.add(
                budget,
                [str(row["method"]), *cells],
                {name: row[name] for name in ("method", *columns)},
            )
    caption = (
        "How much of the frozen neighbourhoods the maps keep (1: all), and retrieval within a"
        " modality, before → after the map. Label P@10: share of the 10 nearest rows of other items"
        " that have the row's label. Group R@10: how often the item's row of another group is among"
        " the 10 nearest."
    )
    shown = lines.table("geometry", caption, ["method", *kept.values(), *moved.values()])
    pictures = [
        Picture(
            f"overlap_{side}",
            f"Share of the nearest neighbours in {modality} that the map keeps.",
            figures.lines(
                findings.series(f"{side}/knn_overlap"), findings.style, modality, "kNN overlap"
            ),
        )
        for side, modality in sides.items()
        if f"{side}/knn_overlap" in table
    ]
    return Section(title, [Pictures(pictures), shown], folded=True)


def hubs(findings: Findings) -> Section:
    """How unevenly the rows are found."""
    if "both/hubness" not in findings.table:
        return Section("Hubness", [])
    pictures = [
        Picture(
            f"hubness_{way}",
            f"{name}: skewness of how often a row is among the 10 best. 0: all rows alike.",
            figures.lines(
                findings.series(f"{way}/hubness"), findings.style, name, "hubness", from_zero=False
            ),
        )
        for way, name in findings.ways.items()
    ]
    lines, columns = Lines(), [f"{way}/hubness" for way in findings.ways]
    for budget in findings.sweep.budgets:
        for _, row in findings.rows(budget).iterrows():
            cells = [with_sd(row, name, "{:.2f}") for name in columns]
            numbers = {name: row[name] for name in ("method", *columns)}
            lines.add(budget, [str(row["method"]), *cells], numbers)
    caption = "Mean ± standard deviation over seeds."
    table = lines.table("hubness", caption, ["method", *findings.ways.values()])
    return Section("Hubness", [Pictures(pictures), table], folded=True)


def cost(findings: Findings) -> Section:
    """Seconds and memory against recall."""
    table, measure = findings.table, findings.measure
    if "seconds" not in table:
        return Section("Cost", [])
    series = []
    for method in findings.shown:
        rows = table[(table["method"] == method) & table["seconds"].notna()]
        if len(rows):
            seconds, recall = rows["seconds"].clip(lower=1e-3), rows[measure.column]
            no_interval = [np.nan] * len(rows)
            series.append(
                Series(method, seconds.to_list(), recall.to_list(), no_interval, no_interval)
            )
    names = {"seconds": ("seconds", "{:.1f}"), "peak_rss_mb": ("peak memory, MiB", "{:.0f}")}
    names |= {"steps": ("steps", "{:.0f}"), "n_trials": ("settings tried", "{:.0f}")}
    names = {name: head for name, head in names.items() if name in table}
    lines = Lines()
    for budget in findings.sweep.budgets:
        for _, row in findings.rows(budget).iterrows():
            cells = [
                number(row[measure.column]),
                *(with_sd(row, name, form) for name, (_, form) in names.items()),
            ]
            lines.add(
                budget,
                [str(row["method"]), *cells],
                {name: row[name] for name in ("method", measure.column, *names)},
            )
    header = ["method", measure.name, *(head for head, _ in names.values())]
    shown = lines.table(
        "cost", "Mean ± standard deviation over seeds of one run, its tuning included.", header
    )
    caption = (
        "Recall against time, one line per method, markers growing with the number of pairs."
        " Timings of one machine."
    )
    picture = Picture(
        "cost",
        caption,
        figures.cost(
            series, findings.style, "Cost against quality", f"{measure.name}, {measure.words}"
        ),
    )
    return Section("Cost", [Pictures([picture]), shown], folded=True)
