"""Results for people: the table in the terminal, and the recall-against-budget curve."""

from __future__ import annotations

import os
from io import StringIO
from pathlib import Path

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
    """One row a budget and method; over several seeds the mean and, behind it, the standard deviation."""
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
            table.add_row(str(budget) if number == 0 else "", str(method), *cells, end_section=number == len(groups) - 1)
    chance = results[["ab/chance@10", "ba/chance@10"]].mean()
    table.add_row("", "chance", "", "", f"{chance.iloc[0]:.3f}", f"{chance.iloc[1]:.3f}")
    buffer = StringIO()
    Console(file=buffer, width=width).print(table)
    return buffer.getvalue().rstrip()


def _cell(values: pd.Series, form: str) -> str:
    text = form.format(values.mean())
    return text if len(values) == 1 else f"{text} ±{form.format(values.std(ddof=1))}"


def recall_curve(results: pd.DataFrame, path: Path, title: str) -> None:
    """R@10 against the number of pairs, one line a method, one panel a direction, chance dotted; a band is one standard deviation."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 4), sharey=True, layout="constrained")
    for axis, direction, name in ((axes[0], "ab", "a → b"), (axes[1], "ba", "b → a")):
        for method, rows in results.groupby("method", sort=False):
            at = rows.groupby("budget")[f"{direction}/r@10"].agg(["mean", "std"]).fillna(0)
            (line,) = axis.plot(at.index, at["mean"], marker="o", markersize=4, label=str(method))
            axis.fill_between(at.index, at["mean"] - at["std"], at["mean"] + at["std"], color=line.get_color(), alpha=0.15, linewidth=0)
        axis.axhline(results[f"{direction}/chance@10"].mean(), color="grey", linestyle=":", label="chance")
        axis.set_xscale("log")
        budgets = sorted(results["budget"].unique())
        axis.set_xticks(budgets, [str(b) for b in budgets])
        axis.minorticks_off()
        axis.set(title=name, xlabel="pairs")
        axis.grid(alpha=0.25)
    axes[0].set(ylabel="R@10", ylim=(0, None))
    axes[1].legend(frameon=False)
    figure.suptitle(title)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".tmp.png")
    figure.savefig(scratch, dpi=130)
    plt.close(figure)
    os.replace(scratch, path)
