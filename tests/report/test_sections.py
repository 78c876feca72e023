from __future__ import annotations

from pathlib import Path

import pandas as pd

from gera_lightning.experiment.results import Sweep
from gera_lightning.report import lead, sections
from gera_lightning.report.document import Fold, Pictures, Report
from gera_lightning.report.findings import MAX_SHOWN, Findings

METHODS = (
    "coupled_ridge",
    "coupled_ridge_off",
    "gera",
    "contrastive",
    *(f"m{n}" for n in range(8)),
)


def findings() -> Findings:
    """Recall falls from the first method to the last; at 100 pairs GeRA is the best."""
    rows = []
    for place, method in enumerate(METHODS):
        for budget in (100, 300):
            recall = 0.9 if (method, budget) == ("gera", 100) else 0.6 - 0.01 * place
            both = {f"{way}/r@10": recall for way in ("ab", "ba")}
            rows.append({"method": method, "budget": budget, "seed": 0, "folder": Path(), **both})
    return Findings(Sweep("e", Path(), pd.DataFrame(rows)), None, METHODS[0], METHODS[-1])


def drawn(pictures: Pictures) -> list[set[str]]:
    """Labels of the curves of each figure."""
    return [{line.get_label() for line in p.figure.axes[0].get_lines()} for p in pictures.pictures]


def test_figures_show_the_methods_to_look_at_and_one_on_demand_shows_all():
    section = sections.recall(findings())
    first, fold = section.blocks
    assert len(METHODS) > MAX_SHOWN
    shown = {*METHODS[:7], METHODS[-1]}  # the baseline is the last
    assert drawn(first) == [shown] * 3
    assert isinstance(fold, Fold)
    assert drawn(fold.blocks[0]) == [set(METHODS)]
    pictures = Report("r", [], "", [section]).pictures()
    assert [p.name for p in pictures] == ["recall_both", "recall_ab", "recall_ba", "recall_all"]


def test_the_finding_names_the_best_of_each_budget_and_what_gera_gives():
    assert lead.finding(findings()) == (
        "Highest R@10, mean of both directions: coupled_ridge at 300 pairs (0.600); gera at 100"
        " pairs (0.900). For comparison, at 100 and 300 pairs: coupled_ridge 0.600, 0.600; gera"
        " 0.900, 0.580; m7 0.490, 0.490."
    )
