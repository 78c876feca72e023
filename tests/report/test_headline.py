from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from gera_lightning.evaluation.comparisons import Bootstrap, Hits
from gera_lightning.experiment.results import Sweep
from gera_lightning.report import headline
from gera_lightning.report.findings import Findings

BEST, TWIN = "coupled_ridge", "coupled_ridge_off"
RECALL = {
    BEST: (0.5, 0.6),
    TWIN: (0.5, 0.6),
    "far": (0.2, 0.3),
    "near": (0.5, 0.8),
}
BUDGETS = (50, 100)


@pytest.fixture
def findings(tmp_path: Path) -> Findings:
    """Four methods of recalls that are known, the same items found first by all; one method has a
    third budget.
    """
    rows, hits = [], np.full((4, 3, 3, 2, 300), np.nan)
    order = np.random.default_rng(0).random((2, 300))
    for m, (method, values) in enumerate(RECALL.items()):
        for n, (budget, value) in enumerate(
            zip((*BUDGETS, 400), (*values, 0.9) if method == "near" else values, strict=False)
        ):
            for seed in range(3):
                rows.append(
                    {
                        "method": method,
                        "budget": budget,
                        "seed": seed,
                        "ab/r@10": value + 0.1,
                        "ba/r@10": value - 0.1,
                    }
                )
                hits[m, n, seed] = order < value
    bootstrap = Bootstrap(
        Hits(list(RECALL), [*BUDGETS, 400], [0, 1, 2], hits, np.ones((2, 300))), draws=199
    )
    return Findings(
        Sweep("e", tmp_path, pd.DataFrame(rows).assign(folder=tmp_path)),
        bootstrap,
        BEST,
        "near",
    )


def test_the_reference_is_first_and_marks_say_who_is_significantly_apart(findings):
    shown = headline.table(findings)
    assert shown.header == ["R@10 at", "50 pairs", "100"]  # 400 pairs is one method's alone
    assert shown.rows == [
        [BEST, ".500", ".600"],
        ["near", ".500", ".800 †"],
        [TWIN, ".500", ".600"],
        ["far", ".200 *", ".300 *"],
    ]
    assert shown.strong == {(0, 1), (1, 1), (2, 1), (1, 2)}
    assert "of 3 seeds" in shown.caption


def test_without_ranks_nothing_is_marked_and_a_method_may_lack_a_budget_or_seeds(findings):
    runs = findings.sweep.runs
    runs = runs[(runs["method"] != "far") | (runs["budget"] == 50)]
    shown = headline.table(Findings(Sweep("e", findings.sweep.folder, runs), None, BEST, "near"))
    assert shown.rows[-1] == ["far", ".200", "–"]
    assert "of 3 seeds" in shown.caption
    runs = runs[(runs["method"] != "near") | (runs["seed"] == 0)]
    uneven = headline.table(Findings(Sweep("e", findings.sweep.folder, runs), None, BEST, TWIN))
    assert "as many seeds as its row says" in uneven.caption
    assert uneven.header[-1] == "seeds"
    assert {row[0]: row[-1] for row in uneven.rows} == {
        BEST: "3",
        TWIN: "3",
        "near": "1",
        "far": "3",
    }
    assert not any(mark in cell for row in shown.rows for cell in row for mark in "*†")


def test_the_markdown_for_a_readme(findings):
    text = headline.for_readme(headline.table(findings), "docs/results/e.png")
    lines = text.splitlines()
    assert lines[:3] == [
        "| R@10 at | 50 pairs | 100 |",
        "| --- | ---: | ---: |",
        "| `coupled_ridge` | **.500** | .600 |",
    ]
    assert lines[4] == "| `coupled_ridge_off` | **.500** | .600 |"
    assert lines[5] == "| `far` | .200 \\* | .300 \\* |"
    assert lines[-1] == "![R@10 against the number of pairs](docs/results/e.png)"
