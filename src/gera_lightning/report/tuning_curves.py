"""The section on tuning: held-out curves, by which trained methods choose their stopping steps."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from gera_lightning.report import figures
from gera_lightning.report.document import Facts, Picture, Pictures, Section, Text
from gera_lightning.report.figures import Series
from gera_lightning.report.findings import Findings

TITLE = "Tuning of trained methods"


def section(findings: Findings) -> Section:
    """Held-out score against stopping step, a figure per method shown and a line per budget; and
    which methods still improved.

    Empty where none of the methods shown was trained.
    """
    pictures, undertrained = [], []
    runs = findings.sweep.runs
    for method in findings.order:
        of_method = runs[runs["method"] == method]
        series = _series(of_method) if method in findings.shown else []
        if series:
            caption = (
                f"{method}: held-out score of its chosen settings at each stopping step less that"
                " of the best step, mean over seeds."
            )
            figure = figures.tuning_curves(series, method)
            pictures.append(Picture(f"tuning_{method}", caption, figure))
        # A missing value is not False: the run cannot tell.
        improving = int(of_method["converged"].eq(False).sum()) if "converged" in of_method else 0
        if improving:
            undertrained.append(
                f"{method}: {improving} of {len(of_method)} runs still improved at their last step,"
                " where the learning rate falls to 0: more steps may help it."
            )
    if not pictures:
        return Section(TITLE, [])
    note = (
        "The score is minus the logarithm of the held-out partner's rank, in cross-validation"
        " inside each run's own pairs, less that of the curve's best step: -0.1 means ranks 10 %"
        " worse. A curve that falls at its end has over-fitted, one that still rises had too few"
        " steps."
    )
    facts = [Facts(undertrained)] if undertrained else []
    return Section(TITLE, [Text(note), *facts, Pictures(pictures)], folded=True)


def _series(runs: pd.DataFrame) -> list[Series]:
    """The mean curve of each budget of one method, less its best score."""
    series = []
    for budget, folders in runs.groupby("budget")["folder"]:
        curve = mean_curve(_record(folder) for folder in folders)
        if curve is not None:
            steps, scores = curve
            no_interval = [np.nan] * len(steps)
            less_best = [score - max(scores) for score in scores]
            series.append(Series(f"{budget} pairs", steps, less_best, no_interval, no_interval))
    return series


def _record(folder: Path) -> Mapping[str, Any]:
    path = folder / "tuning.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def mean_curve(records: Iterable[Mapping[str, Any]]) -> tuple[list[float], list[float]] | None:
    """Steps and mean scores of the curves of the chosen values; None where there are none.

    Args:
        records: what `tuning.json` holds of each run: the chosen `values`, and `curves` of
            `values`, `steps`, `scores`.
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
