"""The sections of a report on what else the maps do: each modality's geometry, hubness, cost."""

from __future__ import annotations

import numpy as np

from gera_lightning.report import figures
from gera_lightning.report.document import Picture, Pictures, Section, Text
from gera_lightning.report.figures import Series
from gera_lightning.report.findings import WAYS, Findings, Lines, number, with_sd

UNIMODAL = {
    "knn_overlap": "kNN overlap",
    "trustworthiness": "trustworthiness",
    "continuity": "continuity",
}
SAME_MODALITY = {"label_p@10": "label P@10", "group_r@10": "group R@10"}


def unimodal(findings: Findings) -> Section:
    """Each modality's own neighbourhoods before and after the map."""
    table, title = findings.table, "Geometry of each modality"
    kept = {
        f"{side}/{name}": f"{head} {side}"
        for side in "ab"
        for name, head in UNIMODAL.items()
        if f"{side}/{name}" in table
    }
    moved = {
        f"{s}/{name}": f"{head} {s}"
        for s in "ab"
        for name, head in SAME_MODALITY.items()
        if f"{s}/{name}/after" in table
    }
    if not kept and not moved:
        return Section(title, [Text("These runs did not measure it.")])
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
        "What the maps kept of the frozen neighbourhoods (1: all of them), and retrieval within a"
        " modality, before → after the map: the share of the 10 nearest rows of other items with"
        " the same label, and how often the same item's row of another group is among the 10"
        " nearest."
    )
    shown = lines.table("geometry", caption, ["method", *kept.values(), *moved.values()])
    pictures = [
        Picture(
            f"overlap_{side}",
            f"Share of the nearest neighbours in modality {side} that the map keeps.",
            figures.lines(
                findings.series(f"{side}/knn_overlap"),
                findings.style,
                f"modality {side}",
                "kNN overlap",
            ),
        )
        for side in "ab"
        if f"{side}/knn_overlap" in table
    ]
    return Section(title, [Pictures(pictures), shown])


def hubs(findings: Findings) -> Section:
    """How uneven the answers are."""
    if "both/hubness" not in findings.table:
        return Section("Hubness", [Text("These runs did not measure it.")])
    pictures = [
        Picture(
            f"hubness_{way}",
            f"Skewness of how often a row of {way[1]} is among the 10 answers, {name}. 0: all rows"
            " alike.",
            figures.lines(
                findings.series(f"{way}/hubness"), findings.style, name, "hubness", from_zero=False
            ),
        )
        for way, name in WAYS.items()
    ]
    return Section("Hubness", [Pictures(pictures)])


def cost(findings: Findings) -> Section:
    """Seconds and memory against recall."""
    table = findings.table
    if "seconds" not in table:
        return Section("Cost", [Text("These runs did not measure it.")])
    series = []
    for method in findings.order:
        rows = table[(table["method"] == method) & table["seconds"].notna()]
        if len(rows):
            nothing = [np.nan] * len(rows)
            series.append(
                Series(
                    method,
                    rows["seconds"].clip(lower=1e-3).to_list(),
                    rows["both/r@10"].to_list(),
                    nothing,
                    nothing,
                )
            )
    names = {"seconds": ("seconds", "{:.1f}"), "peak_rss_mb": ("peak memory, MiB", "{:.0f}")}
    names |= {"steps": ("steps", "{:.0f}"), "n_trials": ("settings tried", "{:.0f}")}
    names = {name: head for name, head in names.items() if name in table}
    lines = Lines()
    for budget in findings.sweep.budgets:
        for _, row in findings.rows(budget).iterrows():
            cells = [
                number(row["both/r@10"]),
                *(with_sd(row, name, form) for name, (_, form) in names.items()),
            ]
            lines.add(
                budget,
                [str(row["method"]), *cells],
                {name: row[name] for name in ("method", "both/r@10", *names)},
            )
    header = ["method", "R@10 both", *(head for head, _ in names.values())]
    shown = lines.table(
        "cost", "Mean ± standard deviation over seeds of one run, its tuning included.", header
    )
    caption = (
        "Recall against time, a line a method from its least to its most pairs (growing markers)."
        " Timings of one machine."
    )
    picture = Picture(
        "cost",
        caption,
        figures.cost(series, findings.style, "Cost against quality", "R@10, both directions"),
    )
    return Section("Cost", [Pictures([picture]), shown])
