"""What all sections of a report share: means, intervals, colours, and tables grouped by budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from gera_lightning.config.schema import DEFAULT_METHOD
from gera_lightning.evaluation import statistics
from gera_lightning.evaluation.comparisons import Bootstrap, Comparison, compare
from gera_lightning.experiment.paired_stores import direction_names
from gera_lightning.experiment.results import Sweep
from gera_lightning.report import figures
from gera_lightning.report.document import Table
from gera_lightning.report.figures import Series
from gera_lightning.report.terminal import chance_line

MEASURES = (
    "r@1",
    "r@5",
    "r@10",
    "mrr",
    "map",
    "median_rank",
    "hubness",
    "unseen/r@10",
)
MAX_SHOWN = 8
"""Methods in a figure, at most."""
ALWAYS_SHOWN = ("gera", "contrastive", f"{DEFAULT_METHOD}_off")


@dataclass(frozen=True)
class Measure:
    """What methods are compared by.

    Attributes:
        column: of the table of findings.
        name, words: what it is called, and over what it is taken.
    """

    column: str
    name: str
    words: str


def classified(runs: pd.DataFrame) -> str | None:
    """The direction in which classes are searched by their names alone, `ab` or `ba`; mostly none.

    Ranks of its queries are those of classification.
    """
    return next((way for way in ("ab", "ba") if f"{way}/classes" in runs), None)


@dataclass(frozen=True)
class Findings:
    """What all sections read.

    Attributes:
        sweep: the runs.
        bootstrap: of `measure`, over the runs; None where no run left ranks.
        reference: the method that others are compared with.
        baseline: the method that label multipliers are relative to.
        modalities: names of a and b.
    """

    sweep: Sweep
    bootstrap: Bootstrap | None
    reference: str
    baseline: str
    modalities: tuple[str, str] = ("a", "b")

    @cached_property
    def ways(self) -> dict[str, str]:
        """Names of the two directions, such as `{"ab": "speech → text", ...}`."""
        return direction_names(self.modalities)

    @cached_property
    def measure(self) -> Measure:
        """Accuracy where classes are searched by their names, else R@10."""
        way = classified(self.sweep.runs)
        if way is None:
            return Measure("both/r@10", "R@10", "mean of both directions")
        return Measure(f"{way}/accuracy", "accuracy", self.ways[way])

    @cached_property
    def chance(self) -> str:
        """A sentence to end a caption with: chance R@10 and the number of test items."""
        line = chance_line(self.sweep.runs, self.modalities, self.sweep.test_items)
        return f" {line[0].upper()}{line[1:]}." if line else ""

    @cached_property
    def table(self) -> pd.DataFrame:
        """Mean and standard deviation of every measure, one row per budget and method.

        Means of both directions are named `both/r@10` and so on.
        """
        runs = self.sweep.runs.copy()
        for name in MEASURES:
            if {f"ab/{name}", f"ba/{name}"} <= set(runs):
                runs[f"both/{name}"] = (runs[f"ab/{name}"] + runs[f"ba/{name}"]) / 2
        numbers = [str(c) for c in runs.select_dtypes("number") if c not in ("budget", "seed")]
        return statistics.summary(runs, numbers)

    @cached_property
    def style(self) -> figures.Style:
        """Colours and markers of the methods; those of the `shown` differ most."""
        return figures.styles(dict.fromkeys([*self.shown, *self.order]))

    @cached_property
    def shown(self) -> list[str]:
        """Methods in figures: reference, baseline, GeRA, the twins, and the best of the others."""
        wanted = [
            self.reference,
            self.baseline,
            *(name for name in ALWAYS_SHOWN if name in self.sweep.methods),
            *self.sweep.methods,
        ]
        return list(dict.fromkeys(wanted))[:MAX_SHOWN]

    @cached_property
    def order(self) -> list[str]:
        """The reference, then the others by name."""
        return [self.reference, *sorted(m for m in self.sweep.methods if m != self.reference)]

    def rows(self, budget: int) -> pd.DataFrame:
        """The table at a budget, the best first."""
        return self.table[self.table["budget"] == budget].sort_values(
            self.measure.column, ascending=False, kind="stable"
        )

    def series(
        self, column: str, bootstrap: Bootstrap | None = None, *, every: bool = False
    ) -> list[Series]:
        """A measure against the number of pairs, for each method `shown`, or for `every` one, that
        has it.

        Intervals come from the bootstrap, or else are one standard deviation.
        """
        series = []
        for method in self.order if every else self.shown:
            rows = self.table[(self.table["method"] == method) & self.table[column].notna()]
            if not len(rows):
                continue
            if bootstrap:
                found = [bootstrap.recall(method, int(n)) for n in rows["budget"]]
                low = [estimate.low if estimate else np.nan for estimate in found]
                high = [estimate.high if estimate else np.nan for estimate in found]
            else:
                deviation = rows[f"{column}/sd"]
                low = (rows[column] - deviation).to_list()
                high = (rows[column] + deviation).to_list()
            series.append(
                Series(method, rows["budget"].to_list(), rows[column].to_list(), low, high)
            )
        return series

    @cached_property
    def against_reference(self) -> dict[int, list[Comparison]]:
        """The reference less every other method at each budget; empty without a bootstrap."""
        if self.bootstrap is None:
            return {}
        return {n: compare(self.bootstrap, self.reference, n) for n in self.sweep.budgets}

    @cached_property
    def near_best(self) -> dict[int, dict[str, float]]:
        """The best method of each budget and those not significantly worse, with p-values.

        Holm-corrected over all other methods.
        """
        near = {}
        for budget in self.sweep.budgets:
            best = str(self.rows(budget)["method"].iloc[0])
            if best == self.reference:
                found = self.against_reference.get(budget, [])
            else:
                found = compare(self.bootstrap, best, budget) if self.bootstrap else []
            level = self.bootstrap.level if self.bootstrap else 0.05
            near[budget] = {
                best: 1.0,
                **{c.difference.reference: c.p_holm for c in found if c.p_holm > level},
            }
        return near


def number(value: float, form: str = "{:.3f}") -> str:
    """A value in a table, a dash where there is none."""
    return "–" if pd.isna(value) else form.format(value)


def with_sd(row: pd.Series, name: str, form: str = "{:.3f}") -> str:
    """Mean ± standard deviation; without the latter where all seeds agree."""
    if name not in row or pd.isna(row[name]):
        return "–"
    sd = row[f"{name}/sd"]
    return form.format(row[name]) + ("" if pd.isna(sd) or sd == 0 else f" ±{form.format(sd)}")


@dataclass
class Lines:
    """A table grouped by budget, row by row; only the first row of a budget shows it."""

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
        """Add a row; `strong` are the columns to stand out, counting the budget's as 0."""
        if self.budget not in (None, budget):
            self.breaks.add(len(self.rows))
        self.strong |= {(len(self.rows), column) for column in strong}
        self.rows.append([str(budget) if budget != self.budget else "", *cells])
        self.numbers.append({"budget": budget, **numbers})
        self.budget = budget

    def table(self, name: str, caption: str, header: Sequence[str]) -> Table:
        """The finished table."""
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
