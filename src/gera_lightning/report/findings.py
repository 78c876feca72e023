"""What all sections of a report read: means, intervals, looks, and how tables by budget are put
together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from gera_lightning.evaluation import statistics
from gera_lightning.evaluation.comparisons import Bootstrap, compare
from gera_lightning.experiment.results import Sweep
from gera_lightning.report import figures
from gera_lightning.report.document import Table
from gera_lightning.report.figures import Series

MEASURES = (
    "r@1",
    "r@5",
    "r@10",
    "mrr",
    "map",
    "median_rank",
    "hubness",
    "unseen/r@10",
    "zero_shot",
)
SHOWN = 8
PLAIN_FORM = ("gera_plain", "gera_off")
WAYS = {"ab": "a → b", "ba": "b → a"}


@dataclass(frozen=True)
class Findings:
    """What all sections read.

    Attributes:
        sweep: the runs.
        bootstrap: over them; None where no run left ranks.
        reference: the method that others are compared with.
        baseline: the method whose labels are counted.
    """

    sweep: Sweep
    bootstrap: Bootstrap | None
    reference: str
    baseline: str

    @cached_property
    def table(self) -> pd.DataFrame:
        """Mean and deviation of every measure, a row a budget and method, the mean of both
        directions as `both/r@10` and the like.
        """
        runs = self.sweep.runs.copy()
        for name in MEASURES:
            if {f"ab/{name}", f"ba/{name}"} <= set(runs):
                runs[f"both/{name}"] = (runs[f"ab/{name}"] + runs[f"ba/{name}"]) / 2
        numbers = [str(c) for c in runs.select_dtypes("number") if c not in ("budget", "seed")]
        return statistics.summary(runs, numbers)

    @cached_property
    def style(self) -> figures.Style:
        """Looks of the methods, the reference first; of many methods only the shown ones stand out."""
        return figures.styles(self.order, [name for name in self.order if name not in self.shown])

    @cached_property
    def shown(self) -> list[str]:
        """Methods that stand out in figures: the reference, the baseline, and the best others,
        eight at most.
        """
        wanted = [
            self.reference,
            self.baseline,
            *(name for name in PLAIN_FORM if name in self.sweep.methods),
            *self.sweep.methods,
        ]
        return list(dict.fromkeys(wanted))[:SHOWN]

    @cached_property
    def order(self) -> list[str]:
        """The reference, then the others by name."""
        return [self.reference, *sorted(m for m in self.sweep.methods if m != self.reference)]

    def rows(self, budget: int) -> pd.DataFrame:
        """The table at a budget, the best recall first."""
        return self.table[self.table["budget"] == budget].sort_values(
            "both/r@10", ascending=False, kind="stable"
        )

    def series(self, column: str, bootstrap: Bootstrap | None = None) -> list[Series]:
        """A measure against pairs for every method that has it, intervals from a bootstrap or else
        one deviation.
        """
        out = []
        for method in self.order:
            rows = self.table[(self.table["method"] == method) & self.table[column].notna()]
            if len(rows):
                found = [
                    bootstrap.recall(method, int(n)) if bootstrap else None for n in rows["budget"]
                ]
                spread = rows[f"{column}/sd"].to_numpy()
                low = (
                    [e.low if e else np.nan for e in found]
                    if bootstrap
                    else (rows[column] - spread).to_list()
                )
                high = (
                    [e.high if e else np.nan for e in found]
                    if bootstrap
                    else (rows[column] + spread).to_list()
                )
                out.append(
                    Series(method, rows["budget"].to_list(), rows[column].to_list(), low, high)
                )
        return out

    @cached_property
    def near_best(self) -> dict[int, dict[str, float]]:
        """For each budget the best method and those not significantly worse (Holm over all others),
        with their p-values.
        """
        out = {}
        for budget in self.sweep.budgets:
            best = str(self.rows(budget)["method"].iloc[0])
            found = compare(self.bootstrap, best, budget) if self.bootstrap else []
            level = self.bootstrap.level if self.bootstrap else 0.05
            out[budget] = {
                best: 1.0,
                **{c.difference.reference: c.p_holm for c in found if c.p_holm > level},
            }
        return out


def number(value: float, form: str = "{:.3f}") -> str:
    """A value in a table, a dash where there is none."""
    return "–" if pd.isna(value) else form.format(value)


def with_sd(row: pd.Series, name: str, form: str = "{:.3f}") -> str:
    """Mean ± standard deviation, the latter where seeds differ."""
    if name not in row or pd.isna(row[name]):
        return "–"
    sd = row[f"{name}/sd"]
    return form.format(row[name]) + ("" if pd.isna(sd) or sd == 0 else f" ±{form.format(sd)}")


@dataclass
class Lines:
    """A table by budget as it grows: the budget stands before the first of its rows."""

    rows: list[list[str]] = field(default_factory=list)
    numbers: list[Mapping[str, Any]] = field(default_factory=list)
    strong: set[tuple[int, int]] = field(default_factory=set)
    breaks: set[int] = field(default_factory=set)
    budget: int | None = None

    def add(
        self,
        budget: int,
        cells: Sequence[str],
        numbers: Mapping[str, Any],
        strong: Sequence[int] = (),
    ) -> None:
        """One more row; `strong` are columns to stand out, the budget's is 0."""
        if self.budget not in (None, budget):
            self.breaks.add(len(self.rows))
        self.strong |= {(len(self.rows), column) for column in strong}
        self.rows.append([str(budget) if budget != self.budget else "", *cells])
        self.numbers.append({"budget": budget, **numbers})
        self.budget = budget

    def table(self, name: str, caption: str, header: Sequence[str]) -> Table:
        """The whole."""
        return Table(
            name,
            caption,
            ["pairs", *header],
            self.rows,
            pd.DataFrame(self.numbers),
            2,
            frozenset(self.strong),
            frozenset(self.breaks),
        )
