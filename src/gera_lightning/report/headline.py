"""The one table to show first: recall by method and budget, with what is significant, as the page's
opening and as Markdown to paste.
"""

from __future__ import annotations

import pandas as pd

from gera_lightning.evaluation.comparisons import compare
from gera_lightning.report import markdown
from gera_lightning.report.document import Table
from gera_lightning.report.findings import Findings

BETTER, WORSE = "*", "†"


def table(findings: Findings) -> Table:
    """Mean R@10 over seeds and directions, a row a method, a column a budget, the reference first.

    Behind a method's value: a star where the reference is significantly better, a dagger where it
    is significantly worse (Holm over the methods of a column).
    """
    sweep, level = findings.sweep, findings.bootstrap.level if findings.bootstrap else 0.05
    marks: dict[tuple[str, int], str] = {}
    for budget in sweep.compared:
        for found in (
            compare(findings.bootstrap, findings.reference, budget) if findings.bootstrap else []
        ):
            if found.p_holm <= level:
                marks[found.difference.reference, budget] = (
                    BETTER if found.difference.estimate.value > 0 else WORSE
                )
    values = findings.table.pivot_table(index="method", columns="budget", values="both/r@10")
    rows, numbers, strong = [], [], set()
    for place, method in enumerate(
        [findings.reference, *(name for name in sweep.methods if name != findings.reference)]
    ):
        cells = [method]
        for column, budget in enumerate(sweep.compared, start=1):
            value, mark = (
                float(values[budget].get(method, float("nan"))),
                marks.get((method, budget), ""),
            )
            cells.append(
                "–"
                if pd.isna(value)
                else f"{value:.3f}".removeprefix("0") + (f" {mark}" if mark else "")
            )
            if value == values[budget].max():
                strong.add((place, column))
            numbers.append({"method": method, "budget": budget, "both/r@10": value, "mark": mark})
        rows.append(cells)
    counts = (
        sweep.runs[sweep.runs["budget"].isin(sweep.compared)]
        .groupby(["method", "budget"])["seed"]
        .nunique()
    )
    few, many = int(counts.min()), int(counts.max())
    seeds = (
        f"{few} seed{'s' if few > 1 else ''}"
        if few == many
        else "as many seeds as stand in its row"
    )
    caption = (
        f"R@10, mean of both directions and of {seeds}. {BETTER} {findings.reference} is"
        f" significantly better, {WORSE} significantly worse (paired bootstrap over seeds and"
        " families of test items, Holm over a column's methods); bold: a column's highest."
    )
    header = [
        "R@10 at",
        *(
            f"{budget} pairs" if not number else str(budget)
            for number, budget in enumerate(sweep.compared)
        ),
    ]
    if few != many:  # a difference is of the seeds that both have, these means are not
        header.append("seeds")
        for cells in rows:
            mine = counts[counts.index.get_level_values("method") == cells[0]]
            least, most = int(mine.min()), int(mine.max())
            cells.append(str(most) if least == most else f"{least} to {most}")
    return Table("headline", caption, header, rows, pd.DataFrame(numbers), 1, frozenset(strong))


def pasted(shown: Table, picture: str) -> str:
    """The table and the curve as Markdown by themselves, for a README; `picture` is the curve's
    path.
    """
    grid = markdown.grid(shown)
    for name, *_ in shown.rows:
        grid = grid.replace(f"| {markdown.plain(name)} |", f"| `{name}` |", 1)
    return (
        f"{grid}\n\n{markdown.plain(shown.caption)}\n\n![R@10 against the number of"
        f" pairs]({picture})\n"
    )
