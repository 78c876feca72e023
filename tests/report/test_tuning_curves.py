from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from gera_lightning.experiment.results import Sweep
from gera_lightning.report import tuning_curves as tuning
from gera_lightning.report.document import Facts, Pictures
from gera_lightning.report.findings import Findings


def record(low: float, high: float, chosen: float = 10.0):
    """Two curves, of weights 1 and 10."""
    curves = [
        {"values": {"w": w}, "steps": [2, 8], "scores": [s, s + 1], "errors": [0, 0]}
        for w, s in ((1.0, low), (10.0, high))
    ]
    return {"steps": 8, "values": {"w": chosen}, "converged": True, "curves": curves}


def test_the_curve_is_the_mean_of_those_of_the_chosen_values():
    assert tuning.mean_curve([record(-9, -3), record(-5, -1, chosen=1.0)]) == (
        [2.0, 8.0],
        [-4.0, -3.0],
    )
    assert tuning.mean_curve([{}, {"steps": 3}, record(-9, -3)]) == ([2.0, 8.0], [-3.0, -2.0])
    assert tuning.mean_curve([{}, {"steps": 3}]) is None


@pytest.fixture
def findings(tmp_path: Path) -> Findings:
    rows = []
    for method, budget, converged in (
        ("m", 10, True),
        ("m", 20, False),
        ("closed", 10, None),
        ("closed", 20, None),
    ):
        folder = tmp_path / f"{method}{budget}"
        folder.mkdir()
        if method == "m":
            (folder / "tuning.json").write_text(json.dumps(record(-9, -budget)))
        rows.append(
            {
                "method": method,
                "budget": budget,
                "seed": 0,
                "folder": folder,
                "converged": converged,
                "ab/r@10": 0.1,
                "ba/r@10": 0.1,
            }
        )
    return Findings(Sweep("e", tmp_path, pd.DataFrame(rows)), None, "m", "closed")


def test_every_trained_method_has_a_figure_with_a_line_a_budget(findings):
    section = tuning.section(findings)
    [pictures] = [block for block in section.blocks if isinstance(block, Pictures)]
    [picture] = pictures.pictures
    assert picture.name == "tuning_m"
    lines = {
        line.get_label(): line
        for line in picture.figure.axes[0].get_lines()
        if len(line.get_xdata()) == 2 and line.get_marker() != "None"
    }
    assert list(lines) == ["10 pairs", "20 pairs"]
    assert lines["20 pairs"].get_xdata().tolist() == [2, 8]
    assert lines["20 pairs"].get_ydata().tolist() == [-1, 0]
    [facts] = [block for block in section.blocks if isinstance(block, Facts)]
    [fact] = facts.items
    assert fact.startswith("m: 1 of 2 runs still improved")


def test_without_curves_the_section_is_empty(findings, tmp_path):
    for path in tmp_path.rglob("tuning.json"):
        path.unlink()
    assert not tuning.section(findings).blocks
