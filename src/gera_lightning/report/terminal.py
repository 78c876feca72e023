"""Results for people at a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from io import StringIO

import pandas as pd
from rich.console import Console
from rich.table import Table

from gera_lightning.experiment.paired_stores import direction_names

ACCURACIES = {
    "accuracy": ("accuracy", "{:.3f}"),
    "accuracy@5": ("top 5", "{:.3f}"),
    "balanced_accuracy": ("mean of classes", "{:.3f}"),
}
"""Of rows that are classified by names, see `evaluation.classification`."""
MEASURES = {
    "r@1": ("R@1", "{:.3f}"),
    "r@10": ("R@10", "{:.3f}"),
    "median_rank": ("median rank", "{:.0f}"),
    "unseen/r@10": ("R@10 unseen", "{:.3f}"),
}


def results_table(
    results: pd.DataFrame,
    modalities: Sequence[str] = ("a", "b"),
    test_items: int | None = None,
    width: int = 120,
) -> str:
    """One row per budget and method, chance and the number of test items below.

    Where classes are searched by their names, accuracy takes the place of recall.

    Over several seeds each cell holds the mean and the standard deviation.

    Args:
        results: one row per run, the columns of results.jsonl.
        modalities: names of a and b, for the header.
        test_items: how many items were evaluated, where that is known.
        width: characters of a line at most.
    """
    columns = _columns(results, modalities)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("pairs", justify="right")
    table.add_column("method")
    for head, _ in columns.values():
        table.add_column(head, justify="right")
    for budget, at_budget in results.groupby("budget", sort=True):
        groups = list(at_budget.groupby("method", sort=False))
        for number, (method, rows) in enumerate(groups):
            cells = [_cell(rows[name], form) for name, (_, form) in columns.items()]
            table.add_row(
                str(budget) if number == 0 else "",
                str(method),
                *cells,
                end_section=number == len(groups) - 1,
            )
    buffer = StringIO()
    console = Console(file=buffer, width=width)
    console.print(table)
    console.print(chance_line(results, modalities, test_items), highlight=False)
    return buffer.getvalue().rstrip()


def _columns(results: pd.DataFrame, modalities: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Columns of results to their heads and number formats."""
    columns, ways = {}, direction_names(modalities)
    classified = [way for way in ways if f"{way}/classes" in results]
    recalls = {"r@10": MEASURES["r@10"]} if classified else MEASURES
    for name, (measure, form) in {**accuracies(results), **recalls}.items():
        for way, words in ways.items():
            if name in MEASURES and way in classified:
                continue
            narrow = words.replace(" → ", "\n→ ")
            columns[f"{way}/{name}"] = (f"{measure}\n{narrow}", form)
    columns["seconds"] = ("seconds", "{:.1f}")
    # those of unseen groups last, and only where there are such groups
    unseen = [name for name in columns if "unseen" in name]
    columns |= {name: columns.pop(name) for name in unseen}
    return {name: column for name, column in columns.items() if name in results}


def accuracies(results: pd.DataFrame) -> dict[str, tuple[str, str]]:
    """Heads and formats of `ACCURACIES`, and of the accuracy of each condition."""
    names = sorted({str(name).partition("/")[2] for name in results})
    of_conditions = [name for name in names if name.endswith("/accuracy")]
    heads = {name: (f"accuracy {name.split('/')[0]}", "{:.3f}") for name in of_conditions}
    return {**ACCURACIES, **heads}


def chance_line(
    results: pd.DataFrame, modalities: Sequence[str], test_items: int | None = None
) -> str:
    """What accuracy and R@10 a random order has, on how many items, and whether R@10 says anything
    then.

    Args:
        results: rows of runs, with `ab/accuracy_chance`, `ab/chance@10` and so on.
        modalities: names of a and b.
        test_items: how many items were evaluated, where that is known.

    >>> rows = pd.DataFrame({"ab/chance@10": [0.05], "ba/chance@10": [0.04]})
    >>> chance_line(rows, ("speech", "text"), 250)
    'chance R@10: speech → text 0.050, text → speech 0.040; 250 test items'
    """
    known: dict[str, dict[str, float]] = {"accuracy": {}, "R@10": {}}
    for way, words in direction_names(modalities).items():
        if f"{way}/accuracy_chance" in results:
            known["accuracy"][words] = float(results[f"{way}/accuracy_chance"].mean())
        if f"{way}/chance@10" in results and f"{way}/classes" not in results:
            known["R@10"][words] = float(results[f"{way}/chance@10"].mean())
    parts = [
        f"chance {measure}: " + ", ".join(f"{words} {value:.3f}" for words, value in ways.items())
        for measure, ways in known.items()
        if ways
    ]
    line = "; ".join(parts + ([] if test_items is None else [f"{test_items:,} test items"]))
    if max(known["R@10"].values(), default=0) >= 0.5:
        line += "; with so few rows to search, R@10 says little: look at R@1 and the median rank"
        line += ", or cross-validate over all items (data.split=folds seeds=[0,1,2,3,4])"
    return line


def _cell(values: pd.Series, form: str) -> str:
    text = form.format(values.mean())
    return text if len(values) == 1 else f"{text} ±{form.format(values.std(ddof=1))}"
