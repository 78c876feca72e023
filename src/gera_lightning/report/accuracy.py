"""The section of a report on classification by names: accuracy by method and budget, and by class.

Only where items are the classes and the gallery holds nothing but their names: the ranks of its
queries are then those of classification.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from gera_lightning.report import figures
from gera_lightning.report.document import Block, Picture, Pictures, Section, Table
from gera_lightning.report.findings import Findings, Lines, with_sd
from gera_lightning.report.terminal import accuracies


def section(findings: Findings, way: str) -> Section:
    """Curve and tables of the direction that classifies."""
    name = findings.ways[way]
    level = float(findings.sweep.runs[f"{way}/accuracy_chance"].mean())
    series = findings.series(f"{way}/accuracy", findings.bootstrap)
    figure = figures.lines(series, findings.style, name, "accuracy", level=level)
    caption = f"Accuracy against labelled rows, {name}. Chance {level:.3f}."
    blocks: list[Block] = [
        Pictures([Picture(f"accuracy_{way}", caption, figure)]),
        _by_budget(findings, way, name, level),
    ]
    by_class = _by_class(findings, way)
    return Section("Accuracy", blocks + ([] if by_class is None else [by_class]))


def _by_budget(findings: Findings, way: str, name: str, level: float) -> Table:
    """All methods at all budgets, the most accurate first."""
    heads_of = {f"{way}/{key}": head for key, (head, _) in accuracies(findings.sweep.runs).items()}
    columns = {key: head for key, head in heads_of.items() if key in findings.table}
    lines = Lines()
    for budget in findings.sweep.budgets:
        for _, row in findings.rows(budget).iterrows():
            method = str(row["method"])
            found = findings.bootstrap.recall(method, budget) if findings.bootstrap else None
            interval = f"{found.low:.3f} to {found.high:.3f}" if found else "–"
            cells = [with_sd(row, key) for key in columns]
            lines.add(
                budget,
                [method, cells[0], interval, *cells[1:]],
                {
                    "method": method,
                    "low": found.low if found else np.nan,
                    "high": found.high if found else np.nan,
                    **{key: row[key] for key in columns},
                },
            )
    heads = list(columns.values())
    caption = (
        f"{name}: share of rows whose best class name is right, with a 95 % bootstrap interval; a"
        " right one among the best five; the mean over classes of their accuracies. Chance"
        f" {level:.3f}."
    )
    return lines.table("accuracy", caption, ["method", heads[0], "95 % interval", *heads[1:]])


def _by_class(findings: Findings, way: str) -> Table | None:
    """Accuracy of each class at the largest budget that all methods have, the lowest first."""
    sweep = findings.sweep
    budget = max(sweep.compared)
    found = {}
    for method in findings.order:
        runs = sweep.runs[(sweep.runs["method"] == method) & (sweep.runs["budget"] == budget)]
        paths = [Path(folder) / "ranks.parquet" for folder in runs["folder"]]
        ranks = [pd.read_parquet(path) for path in paths if path.exists()]
        if ranks:
            asked = pd.concat([table[table["direction"] == way] for table in ranks])
            found[method] = (asked["rank"] <= 1).groupby(asked["item"]).mean()
    if not found:
        return None
    table = pd.DataFrame(found).sort_values(next(iter(found)), kind="stable")
    rows = [
        [str(item), *(f"{value:.3f}" for value in values)] for item, *values in table.itertuples()
    ]
    caption = f"Accuracy of each class at {budget} labelled rows, mean over seeds."
    numbers = table.rename_axis("class").reset_index()
    return Table("per_class", caption, ["class", *table], rows, numbers)
