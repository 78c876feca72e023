"""The one table to show first: recall by method and budget, with what is significant, for the page
and as Markdown for a README.
"""

from __future__ import annotations

import pandas as pd

from gera_lightning.report import markdown
from gera_lightning.report.document import Table
from gera_lightning.report.findings import Findings

BETTER, WORSE = "*", "†"


def table(findings: Findings) -> Table:
    """Mean R@10 (or accuracy) over seeds and directions, one row per method, one column per budget.

    The reference comes first. A star behind another method's value says that the reference is
    significantly better, a dagger that it is significantly worse (Holm over a column's methods).
    """
    sweep, marks, measure = findings.sweep, _marks(findings), findings.measure
    values = findings.table.pivot_table(index="method", columns="budget", values=measure.column)
    others = [name for name in sweep.methods if name != findings.reference]
    rows, numbers, strong = [], [], set()
    for place, method in enumerate([findings.reference, *others]):
        cells = [method]
        for column, budget in enumerate(sweep.compared, start=1):
            value = float(values[budget].get(method, float("nan")))
            mark = marks.get((method, budget), "")
            cells.append(_cell(value, mark))
            if value == values[budget].max():
                strong.add((place, column))
            numbers.append(
                {"method": method, "budget": budget, measure.column: value, "mark": mark}
            )
        rows.append(cells)
    header = [f"{measure.name} at", *map(str, sweep.compared)]
    header[1] += " pairs"
    seeds = _seeds(findings)
    counts = set().union(*seeds.values())
    if len(counts) == 1:
        of_seeds = f"{max(counts)} seed{'s' if max(counts) > 1 else ''}"
    else:  # a difference is taken over the seeds that both methods have, these means are not
        of_seeds = "as many seeds as its row says"
        header.append("seeds")
        for cells in rows:
            least, most = min(seeds[cells[0]]), max(seeds[cells[0]])
            cells.append(str(most) if least == most else f"{least} to {most}")
    tested = (
        f" {BETTER} {findings.reference} is significantly better, {WORSE} significantly worse"
        " (paired bootstrap over seeds and families of test items, Holm over a column's methods)."
    )
    caption = (
        f"{measure.name}, {measure.words}; mean of {of_seeds}."
        f"{tested if findings.bootstrap else ''} Bold: a column's highest.{findings.chance}"
    )
    return Table("headline", caption, header, rows, pd.DataFrame(numbers), 1, frozenset(strong))


def _marks(findings: Findings) -> dict[tuple[str, int], str]:
    """The mark of each (method, budget) from which the reference differs significantly."""
    marks: dict[tuple[str, int], str] = {}
    if findings.bootstrap is None:
        return marks
    for budget in findings.sweep.compared:
        for comparison in findings.against_reference[budget]:
            if comparison.p_holm <= findings.bootstrap.level:
                difference = comparison.difference
                mark = BETTER if difference.estimate.value > 0 else WORSE
                marks[difference.reference, budget] = mark
    return marks


def _seeds(findings: Findings) -> dict[str, set[int]]:
    """Numbers of seeds that a method has at its budgets."""
    runs = findings.sweep.runs
    runs = runs[runs["budget"].isin(findings.sweep.compared)]
    counts = runs.groupby(["method", "budget"])["seed"].nunique()
    return {str(name): {int(n) for n in rows} for name, rows in counts.groupby(level="method")}


def _cell(value: float, mark: str) -> str:
    """`.812 *`."""
    if pd.isna(value):
        return "–"
    return f"{value:.3f}".removeprefix("0") + (f" {mark}" if mark else "")


def for_readme(shown: Table, picture: str) -> str:
    """The table and the curve as Markdown; `picture` is the path of the curve's file."""
    grid, measure = markdown.grid(shown), shown.header[0].removesuffix(" at")
    for name, *_ in shown.rows:
        grid = grid.replace(f"| {markdown.plain(name)} |", f"| `{name}` |", 1)
    return (
        f"{grid}\n\n{markdown.plain(shown.caption)}\n\n![{measure} against the number of"
        f" pairs]({picture})\n"
    )
