"""Figures of a report: recall against pairs, differences, multipliers, cost; and the curve that a
sweep leaves.

All ink (text, axes, grid) is one colour, so that a page can replace it by its own; the methods'
colours stand out on light and dark.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from gera_lightning.experiment.paired_stores import direction_names
from gera_lightning.utils.files import atomic_write

INK = "#1f2329"
GREY = "#8a919b"
CHANCE = "chance"
COLORS = (
    "#2f7ed8",
    "#e8743b",
    "#17a673",
    "#c8489e",
    "#8a6fe0",
    "#b98a12",
    "#13a0b4",
    "#d6455d",
    "#7b9130",
    "#94725c",
)
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1.5, 1.2)))
WIDTH = 4.2  # inches; a figure is one panel, so that a narrow page shows it whole
DIGIT = 0.024
"""Width of a digit of a tick's label, in widths of the axes."""


@dataclass(frozen=True)
class Series:
    """One method's values: `x`, `y` and an interval, NaN where there is none."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


Style = Mapping[str, Mapping[str, Any]]


def styles(methods: Iterable[str]) -> Style:
    """A colour, marker and line for each method, the same in every figure."""
    return {
        name: {
            "color": COLORS[n % len(COLORS)],
            "marker": MARKERS[n % len(MARKERS)],
            "linestyle": DASHES[n // len(COLORS) % len(DASHES)],
        }
        for n, name in enumerate(methods)
    }


def save(figure: Figure, target: str | Path | IO[str], kind: str, name: str) -> None:
    """Write a figure; the same figure gives the same bytes, and names inside an SVG begin from
    `name`.
    """
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        metadata = {"Date": None} if kind == "svg" else None
        figure.savefig(target, format=kind, dpi=150, metadata=metadata)
    figure.set_layout_engine(None)  # where all parts lie is found once, for all kinds


def _panel(height: float = 3.5) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained", facecolor="white")
    axes = figure.add_subplot(facecolor="none")
    axes.tick_params(colors=INK, labelsize=9)
    for side, spine in axes.spines.items():
        spine.set_color(INK)
        spine.set_linewidth(0.8)
        spine.set_visible(side in ("left", "bottom"))
    axes.grid(color=INK, alpha=0.13, linewidth=0.7)
    return figure, axes


def _finish(
    figure: Figure, axes: Axes, title: str, xlabel: str, ylabel: str, legend: bool = True
) -> Figure:
    axes.set_title(title, color=INK, fontsize=11, loc="left")
    axes.set_xlabel(xlabel, color=INK, fontsize=10)
    axes.set_ylabel(ylabel, color=INK, fontsize=10)
    handles, labels = axes.get_legend_handles_labels()
    entries = {label: handle for handle, label in zip(handles, labels, strict=True)}
    if CHANCE in entries:
        entries[CHANCE] = entries.pop(CHANCE)  # last
    if legend and entries:
        rows = (len(entries) + 1) // 2
        # a long legend makes the figure higher, not the axes smaller
        figure.set_figheight(figure.get_figheight() + 0.2 * max(0, rows - 2))
        figure.legend(
            entries.values(),
            entries.keys(),
            loc="outside lower center",
            ncols=2,
            frameon=False,
            fontsize=9,
            labelcolor=INK,
        )
    return figure


def _budget_axis(axes: Axes, budgets: Sequence[float]) -> None:
    if budgets[0] > 0:
        axes.set_xscale("log")
    else:
        axes.set_xscale("symlog", linthresh=budgets[1] if len(budgets) > 1 else 1)
    if len(budgets) == 1:
        axes.set_xlim(budgets[0] / 2, budgets[0] * 2)
    _tick(axes, budgets)


def _tick(axes: Axes, values: Sequence[float]) -> None:
    """A tick at each of the ascending values, without the labels that would touch a larger one's.

    The scale of the axis is set, and what it shows is drawn, before.
    """
    axes.get_xlim()  # scales the axis
    to_axes = axes.transScale + axes.transLimits
    labels, edge = [], np.inf
    for value in reversed(values):
        label = f"{value:g}"
        middle, half = to_axes.transform((value, 1.0))[0], DIGIT * (len(label) + 1) / 2
        labels.append(label if middle + half <= edge else "")
        edge = middle - half if labels[-1] else edge
    axes.set_xticks(list(values), labels[::-1])
    axes.minorticks_off()


def lines(
    series: Sequence[Series],
    style: Style,
    title: str,
    ylabel: str,
    *,
    level: float | None = None,
    from_zero: bool = True,
    xlabel: str = "pairs",
) -> Figure:
    """Values against the number of pairs, or what `xlabel` says.

    Intervals are bands, or bars where a method has one budget; `level` is dotted as chance.
    """
    figure, axes = _panel()
    for one in series:
        look = style[one.label]
        axes.plot(one.x, one.y, label=one.label, markersize=4.5, linewidth=1.8, **look)
        if len(one.x) > 1:
            axes.fill_between(one.x, one.low, one.high, color=look["color"], alpha=0.1, linewidth=0)
        elif np.isfinite(one.low).all():
            axes.vlines(one.x, one.low, one.high, color=look["color"], linewidth=1.5)
    if level is not None:
        axes.axhline(level, color=GREY, linestyle=":", linewidth=1.5, label=CHANCE)
    _budget_axis(axes, sorted({x for one in series for x in one.x}))
    if from_zero:
        axes.set_ylim(bottom=0)
    return _finish(figure, axes, title, xlabel, ylabel)


def forest(
    series: Sequence[Series], style: Style, title: str, xlabel: str, span: tuple[float, float]
) -> Figure:
    """One row per method: its difference `x` with the interval `low`, `high`.

    The marker is filled where 0 lies outside the interval.

    `span` are the ends of the axis, so that several figures can share it.
    """
    figure, axes = _panel(1.1 + 0.36 * len(series))
    for row, one in enumerate(series):
        look = style[one.label]
        clear = one.low[0] > 0 or one.high[0] < 0
        axes.hlines(row, one.low[0], one.high[0], color=look["color"], linewidth=2)
        axes.plot(
            one.x[0],
            row,
            marker=look["marker"],
            color=look["color"],
            markerfacecolor=look["color"] if clear else "none",
            markersize=7,
        )
    axes.axvline(0, color=INK, linewidth=0.9)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlim(span)
    axes.set_yticks(range(len(series)), [one.label for one in series])
    axes.set_ylim(len(series) - 0.5, -0.5)
    return _finish(figure, axes, title, xlabel, "", legend=False)


def multipliers(series: Sequence[Series], style: Style, title: str) -> Figure:
    """Label multipliers against pairs, on a log axis; arrows: beyond what was measured.

    `low` and `high` are `-inf` and `inf` where the interval is open, `y` where the estimate itself
    lies beyond.
    """
    figure, axes = _panel()
    finite = np.concatenate([np.asarray([*one.y, *one.low, *one.high]) for one in series])
    finite = finite[np.isfinite(finite)]
    bottom, top = (
        (min(finite.min(), 1) / 1.5, max(finite.max(), 1) * 1.5) if len(finite) else (0.5, 2.0)
    )
    for number, one in enumerate(series):
        look = style[one.label]
        shift = 1.05 ** (number - (len(series) - 1) / 2)  # side by side, not on top of each other
        x, y = np.asarray(one.x) * shift, np.clip(one.y, bottom, top)
        axes.vlines(
            x,
            np.clip(one.low, bottom, top),
            np.clip(one.high, bottom, top),
            color=look["color"],
            linewidth=1.6,
        )
        inside = np.isfinite(one.y)
        axes.plot(x[inside], y[inside], label=one.label, markersize=5, linewidth=1, **look)
        for beyond, marker in ((np.isposinf(one.y), "^"), (np.isneginf(one.y), "v")):
            axes.plot(
                x[beyond],
                y[beyond],
                marker=marker,
                color=look["color"],
                linestyle="none",
                markersize=8,
                markerfacecolor="none",
            )
        if not inside.any():
            axes.plot([], [], label=one.label, markersize=5, linewidth=1, **look)
    axes.axhline(1, color=INK, linewidth=0.9)
    axes.set_yscale("log")
    axes.set_ylim(bottom / 1.1, top * 1.1)
    ticks = [t for t in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50) if bottom / 1.1 <= t <= top * 1.1]
    axes.set_yticks(ticks, [f"{t:g}" for t in ticks])
    _budget_axis(axes, sorted({x for one in series for x in one.x}))
    return _finish(figure, axes, title, "pairs", "label multiplier")


def cost(series: Sequence[Series], style: Style, title: str, ylabel: str) -> Figure:
    """Quality against seconds on a log axis, one line per method from its least to its most
    pairs, markers growing with them.
    """
    figure, axes = _panel()
    for one in series:
        look, sizes = style[one.label], np.linspace(18, 70, len(one.x))
        axes.plot(
            one.x, one.y, linewidth=1, color=look["color"], linestyle=look["linestyle"], alpha=0.7
        )
        axes.scatter(
            one.x, one.y, s=sizes, color=look["color"], marker=look["marker"], label=one.label
        )
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_ylim(bottom=0)
    return _finish(figure, axes, title, "seconds per run (tuning included)", ylabel)


def tuning_curves(series: Sequence[Series], title: str) -> Figure:
    """Held-out scores against steps, spaced as the stopping steps are: one line per budget,
    darker with more pairs.
    """
    figure, axes = _panel(2.9)
    for number, one in enumerate(series):
        strength = 0.35 + 0.65 * (number + 1) / len(series)
        axes.plot(
            one.x,
            one.y,
            label=one.label,
            color=COLORS[0],
            alpha=strength,
            marker=MARKERS[number % len(MARKERS)],
            markersize=4,
        )
    axes.set_xscale("function", functions=(lambda x: np.sqrt(np.maximum(x, 0)), np.square))
    _tick(axes, sorted({x for one in series for x in one.x}))
    axes.axhline(0, color=INK, linewidth=0.9)
    return _finish(figure, axes, title, "steps", "held-out score less its best")


def recall_curve(
    results: pd.DataFrame,
    path: Path,
    title: str,
    modalities: Sequence[str] = ("a", "b"),
    test_items: int | None = None,
) -> None:
    """R@10 against the number of pairs, one line per method, one panel per direction; accuracy in
    place of R@10 where classes are searched by their names.

    Bands are one standard deviation over seeds; chance is dotted.

    Args:
        results: one row per run, the columns of results.jsonl.
        path: of the PNG file.
        title: of the figure; the number of test items is added.
        modalities: names of a and b.
        test_items: how many items were evaluated, where that is known.
    """
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    style = styles([str(name) for name in results["method"].unique()])
    width, height = 9 if len(style) <= 6 else 11, 4 + 0.1 * max(0, len(style) - 18)
    figure, axes = plt.subplots(1, 2, figsize=(width, height), sharey=True, layout="constrained")
    for axis, (direction, name) in zip(axes, direction_names(modalities).items(), strict=True):
        _recall_panel(axis, results, direction, style)
        axis.set(title=name, xlabel="pairs")
    axes[0].set(ylim=(0, None))
    if len(style) <= 6:
        axes[1].legend(frameon=False)
    else:
        handles = axes[1].get_legend_handles_labels()
        figure.legend(*handles, loc="outside right upper", frameon=False, fontsize=8)
    figure.suptitle(title if test_items is None else f"{title}, {test_items:,} test items")
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as scratch:  # several workers may end at once
        figure.savefig(scratch, dpi=130, format="png")
    plt.close(figure)


def _recall_panel(axis: Axes, results: pd.DataFrame, direction: str, style: Style) -> None:
    classified = f"{direction}/classes" in results
    measure, chance = ("accuracy", "accuracy_chance") if classified else ("r@10", "chance@10")
    axis.set_ylabel("accuracy" if classified else "R@10")
    for method, rows in results.groupby("method", sort=False):
        look = style[str(method)]
        at = rows.groupby("budget")[f"{direction}/{measure}"].agg(["mean", "std"]).fillna(0)
        axis.plot(at.index, at["mean"], markersize=4, label=str(method), **look)
        low, high = at["mean"] - at["std"], at["mean"] + at["std"]
        axis.fill_between(at.index, low, high, color=look["color"], alpha=0.12, linewidth=0)
    level = results[f"{direction}/{chance}"].mean()
    axis.axhline(level, color="grey", linestyle=":", label=CHANCE)
    axis.set_xscale("log")
    budgets = sorted(results["budget"].unique())
    axis.set_xticks(budgets, [str(b) for b in budgets])
    axis.minorticks_off()
    axis.grid(alpha=0.25)
