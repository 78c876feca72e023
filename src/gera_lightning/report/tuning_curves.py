"""The section on tuning: the held-out curves by which trained methods chose their stopping steps."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from gera_lightning.report import figures
from gera_lightning.report.document import Block, Facts, Picture, Pictures, Section, Text
from gera_lightning.report.figures import Series
from gera_lightning.report.findings import Findings


def section(findings: Findings) -> Section:
    """A small figure a trained method: the held-out score at each stopping step, a line a budget,
    mean over seeds.
    """
    title = "Tuning of trained methods"
    pictures, facts = [], []
    runs = findings.sweep.runs
    for method in findings.order:
        mine = runs[runs["method"] == method]
        budgets = sorted({int(n) for n in mine["budget"]})
        found = {
            n: mean_curve(_record(folder) for folder in mine["folder"][mine["budget"] == n])
            for n in budgets
        }
        curves = {n: curve for n, curve in found.items() if curve is not None}
        if not curves:
            continue
        empty = [np.nan]
        series = [
            Series(
                f"{n} pairs",
                steps,
                [score - max(scores) for score in scores],
                empty * len(steps),
                empty * len(steps),
            )
            for n, (steps, scores) in curves.items()
        ]
        caption = (
            f"{method}: held-out score of its chosen settings at each stopping step less the best"
            " step's, mean over seeds."
        )
        pictures.append(Picture(f"tuning_{method}", caption, figures.tuning_curves(series, method)))
        if "converged" in mine and (rising := int((mine["converged"] == False).sum())):  # noqa: E712  a missing value is not False
            facts.append(
                f"{method}: {rising} of {len(mine)} runs were still getting better at their last"
                " step, where the learning rate falls to 0: more steps may help it."
            )
    if not pictures:
        return Section(title, [Text("No run kept a tuning curve: closed forms have none.")])
    note = (
        "Inside each run's own pairs: minus the logarithm of the held-out partner's rank, mean over"
        " folds, less that of the curve's best step. -0.1: ranks 10 % worse than there. A curve"
        " that falls at its end has over-fitted, one that still rises had too few steps."
    )
    blocks: list[Block] = [Text(note), *([Facts(facts)] if facts else []), Pictures(pictures)]
    return Section(title, blocks)


def _record(folder: Path) -> Mapping[str, Any]:
    path = folder / "tuning.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def mean_curve(records: Iterable[Mapping[str, Any]]) -> tuple[list[float], list[float]] | None:
    """Steps and mean scores over runs of the curves that belong to the chosen values; None where no
    record has one.

    Args:
        records: of `tuning.json`: `values`, and `curves` of `values`, `steps`, `scores`.
    """
    curves = [
        pd.Series(curve["scores"], index=curve["steps"])
        for record in records
        for curve in record.get("curves", ())
        if curve["values"] == record["values"]
    ]
    if not curves:
        return None
    mean = pd.concat(curves, axis=1).mean(axis=1).sort_index()
    return [float(step) for step in mean.index], mean.to_list()
