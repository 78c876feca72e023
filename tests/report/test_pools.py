from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from gera_lightning.experiment.results import Sweep
from gera_lightning.report.document import Pictures
from gera_lightning.report.findings import Findings
from gera_lightning.report.pools import section

SIZES = {"base": None, "none": 0, "some": 50}
HELD = {"base": (400, 300), "none": (0, 0), "some": (50, 50)}


def findings(**changes: object) -> Findings:
    rows = [
        {"method": name, "budget": budget, "seed": seed, "pool_a": a, "pool_b": b}
        | {f"{way}/{name}": 0.1 for way in ("ab", "ba") for name in ("r@1", "r@5", "mrr")}
        | {f"{way}/r@10": 0.001 * budget + 0.0001 * a + 0.01 * seed for way in ("ab", "ba")}
        for name, (a, b) in HELD.items()
        for budget in (10, 20)
        for seed in (0, 1)
    ]
    sweep = Sweep("e", Path(), pd.DataFrame(rows).assign(folder=""))
    closed = {"closed_form": {"class": "ridge"}, "graph": {"k": 16}}
    settings = {name: {**closed, "data": {"pool_size": size}} for name, size in SIZES.items()}
    settings["none"].update(changes)
    object.__setattr__(sweep, "settings", settings)
    return Findings(sweep, None, "base", "base")


def test_recall_is_drawn_against_the_unpaired_rows_of_each_run():
    [pictures] = section(findings()).blocks
    assert isinstance(pictures, Pictures)
    [picture] = pictures.pictures
    [axes] = picture.figure.axes
    curves = {line.get_label(): line for line in axes.get_lines()}
    assert set(curves) == {"10 pairs", "20 pairs"}
    assert list(curves["10 pairs"].get_xdata()) == [0, 50, 400]
    np.testing.assert_allclose(curves["20 pairs"].get_ydata(), [0.025, 0.03, 0.065])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "50", "400"]


def test_a_method_with_another_change_is_no_point_of_the_curve():
    [pictures] = section(findings(graph={"k": 4})).blocks
    [picture] = pictures.pictures
    assert list(picture.figure.axes[0].get_lines()[0].get_xdata()) == [50, 400]


def test_without_such_methods_there_is_no_section():
    found = findings()
    object.__setattr__(found.sweep, "settings", {"base": found.sweep.settings["base"]})
    assert section(found).blocks == []
