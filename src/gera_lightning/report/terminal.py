"""Results for people at a terminal."""

from __future__ import annotations

from io import StringIO

import pandas as pd
from rich.console import Console
from rich.table import Table

COLUMNS = {
    "ab/r@1": ("R@1", "a→b", "{:.3f}"),
    "ba/r@1": ("R@1", "b→a", "{:.3f}"),
    "ab/r@10": ("R@10", "a→b", "{:.3f}"),
    "ba/r@10": ("R@10", "b→a", "{:.3f}"),
    "ab/median_rank": ("median rank", "a→b", "{:.0f}"),
    "ba/median_rank": ("median rank", "b→a", "{:.0f}"),
    "seconds": ("seconds", "", "{:.1f}"),
}
UNSEEN = {
    "ab/unseen/r@10": ("R@10 unseen", "a→b", "{:.3f}"),
    "ba/unseen/r@10": ("R@10 unseen", "b→a", "{:.3f}"),
}


def results_table(results: pd.DataFrame, width: int = 120) -> str:
    """One row a budget and method; over several seeds the mean and, behind it, the standard
    deviation.
    """
    columns = {**COLUMNS, **{name: head for name, head in UNSEEN.items() if name in results}}
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("pairs", justify="right")
    table.add_column("method")
    for measure, direction, _ in columns.values():
        table.add_column(f"{measure}\n{direction}", justify="right")
    for budget, at_budget in results.groupby("budget", sort=True):
        groups = list(at_budget.groupby("method", sort=False))
        for number, (method, rows) in enumerate(groups):
            cells = [_cell(rows[name], form) for name, (_, _, form) in columns.items()]
            table.add_row(
                str(budget) if number == 0 else "",
                str(method),
                *cells,
                end_section=number == len(groups) - 1,
            )
    chance = results[["ab/chance@10", "ba/chance@10"]].mean()
    table.add_row("", "chance", "", "", f"{chance.iloc[0]:.3f}", f"{chance.iloc[1]:.3f}")
    buffer = StringIO()
    Console(file=buffer, width=width).print(table)
    return buffer.getvalue().rstrip()


def _cell(values: pd.Series, form: str) -> str:
    text = form.format(values.mean())
    return text if len(values) == 1 else f"{text} ±{form.format(values.std(ddof=1))}"
