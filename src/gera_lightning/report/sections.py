"""The sections of a report on how methods compare: in short, recall, results, differences, label
multipliers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from gera_lightning.evaluation.comparisons import Comparison, multipliers
from gera_lightning.report import figures, headline
from gera_lightning.report.document import Block, Fold, Picture, Pictures, Section, Table, Text
from gera_lightning.report.figures import Series
from gera_lightning.report.findings import Findings, Lines, with_sd


def short(findings: Findings) -> Section:
    """The best methods of each budget, and the one table to show first."""
    shown = replace(headline.table(findings), unfolded=True)
    blocks: list[Block] = [_best_table(findings), shown]
    seeds = len(findings.sweep.seeds)
    if seeds == 1:
        blocks.append(
            Text(
                "One seed: intervals are over families of test items alone and say nothing about"
                " other draws of the pairs."
            )
        )
    elif seeds < 5:
        blocks.append(
            Text(
                f"{seeds} seeds: intervals over so few seeds are too narrow. At least 5 are needed"
                " to report, 10 for claims."
            )
        )
    return Section("In short", blocks)


def _best_table(findings: Findings) -> Table:
    """For each budget the best method, its recall, and which others are as good."""
    lines, measure = Lines(), findings.measure
    for budget in findings.sweep.compared:
        rows, near = findings.rows(budget), findings.near_best[budget]
        best = rows.iloc[0]
        method, recall = str(best["method"]), float(best[measure.column])
        interval = findings.bootstrap.recall(method, budget) if findings.bootstrap else None
        others = [str(m) for m in rows["method"] if m in near and m != method]
        cells = [
            method,
            _named(others) if findings.bootstrap and others else "–",
            f"{recall:.3f}",
            f"{interval.low:.3f} to {interval.high:.3f}" if interval else "–",
        ]
        numbers = {"method": method, measure.column: recall, "not_worse": " ".join(others)}
        lines.add(budget, cells, numbers)
    caption = (
        f"The best method at each number of pairs by {measure.name}, {measure.words}."
        f"{findings.chance}"
    )
    header = ["best", "not significantly worse", measure.name, "95 % interval"]
    return replace(lines.table("best", caption, header), words=3)


def _named(methods: Sequence[str], most: int = 5) -> str:
    """`x, y and z`, or the first few and the number of others."""
    if len(methods) > most + 1:
        return f"{', '.join(methods[:most])} and {len(methods) - most} others"
    return " and ".join(part for part in (", ".join(methods[:-1]), methods[-1]) if part)


def recall(findings: Findings) -> Section:
    """Recall against the number of pairs; that of all methods is folded."""
    pictures = []
    for way, name in (("both", "mean of both directions"), *findings.ways.items()):
        bootstrap = findings.bootstrap
        if bootstrap and way != "both":
            bootstrap = replace(bootstrap, hits=bootstrap.hits.of(findings.shown).only(way))
        runs = findings.sweep.runs
        ways = [way] if way != "both" else list(findings.ways)
        level = (
            float(runs[[f"{w}/chance@10" for w in ways]].mean().mean())
            if all(f"{w}/chance@10" in runs for w in ways)
            else None
        )
        figure = figures.lines(
            findings.series(f"{way}/r@10", bootstrap), findings.style, name, "R@10", level=level
        )
        pictures.append(
            Picture(f"recall_{way}", f"R@10 against pairs, {name}. {_bands(findings)}", figure)
        )
    blocks: list[Block] = [Pictures(pictures)]
    if len(findings.order) > len(findings.shown):
        blocks.append(_of_all(findings))
    return Section("Recall against pairs", blocks)


def _of_all(findings: Findings) -> Fold:
    """The curves of all methods, without bands."""
    series = []
    for one in findings.series("both/r@10", every=True):
        no_interval = [np.nan] * len(one.x)
        series.append(replace(one, low=no_interval, high=no_interval))
    figure = figures.lines(series, findings.style, "mean of both directions", "R@10")
    title = f"All {len(series)} methods"
    caption = "R@10 against pairs, mean of both directions. The table of results has the numbers."
    return Fold(title, [Pictures([Picture("recall_all", caption, figure)])])


def _bands(findings: Findings) -> str:
    if findings.bootstrap is None:
        return "Bands: one standard deviation over seeds."
    over = (
        "seeds and families of test items"
        if len(findings.sweep.seeds) > 1
        else "families of test items"
    )
    return f"Bands: 95 % bootstrap intervals over {over}."


def results(findings: Findings) -> Section:
    """All methods at all budgets, with intervals, the best ones marked."""
    more = {
        "both/map": ("mAP both", "{:.3f}"),
        "foscttm": ("FOSCTTM", "{:.3f}"),
        "both/unseen/r@10": ("R@10 unseen groups", "{:.3f}"),
    }
    more |= {
        f"{way}/median_rank": (f"median rank {name}", "{:.0f}")
        for way, name in findings.ways.items()
    }
    more = {name: head for name, head in more.items() if name in findings.table}
    lines = Lines()
    for budget in findings.sweep.budgets:
        near = findings.near_best[budget]
        for place, (_, row) in enumerate(findings.rows(budget).iterrows()):
            method = str(row["method"])
            found = findings.bootstrap.recall(method, budget) if findings.bootstrap else None
            known = findings.bootstrap is not None and budget in findings.sweep.compared
            mark = "" if method not in near or not known else "best" if place == 0 else "≈ best"
            values = {str(name): value for name, value in row.items()}
            cells = [
                method,
                str(row["seeds"]),
                with_sd(row, "both/r@10"),
                f"{found.low:.3f} to {found.high:.3f}" if found else "–",
                mark,
            ]
            cells += [
                with_sd(row, name)
                for name in ("ab/r@10", "ba/r@10", "both/r@1", "both/r@5", "both/mrr")
            ]
            cells += [with_sd(row, name, form) for name, (_, form) in more.items()]
            ends = {
                "both/r@10/low": found.low if found else np.nan,
                "both/r@10/high": found.high if found else np.nan,
            }
            lines.add(
                budget,
                cells,
                {**values, **ends, "p_against_best": near.get(method, np.nan)},
                (1, 3, 5) if mark else (),
            )
    header = [
        "method",
        "seeds",
        "R@10 both",
        "95 % interval",
        "note",
        *(f"R@10 {name}" for name in findings.ways.values()),
        "R@1 both",
        "R@5 both",
        "MRR both",
    ]
    caption = (
        "Mean ± standard deviation over seeds; the interval is of the mean R@10 of both directions."
        " best: highest; ≈ best: not significantly worse than it (paired bootstrap, Holm over the"
        f" other methods).{findings.chance}"
    )
    return Section(
        "Results",
        [lines.table("results", caption, [*header, *(head for head, _ in more.values())])],
    )


def differences(findings: Findings) -> Section:
    """The reference against every other method."""
    title = f"{findings.reference} against the others"
    if findings.bootstrap is None or len(findings.sweep.methods) < 2:
        return Section(title, [])
    lines = Lines()
    pictures: dict[int, Picture] = {}
    peers: dict[int, list[Comparison]] = {}
    for budget in findings.sweep.budgets:
        peers[budget] = sorted(
            findings.against_reference[budget],
            key=lambda c: c.difference.estimate.value,
        )
        for comparison in peers[budget]:
            strong = (1, 2, 5, 6) if comparison.p_holm <= findings.bootstrap.level else ()
            lines.add(
                budget, _difference_cells(comparison), _difference_numbers(comparison), strong
            )
    if not lines.rows:
        return Section(title, [])  # no other method has a seed in common with it
    compared = [c for n in peers for c in peers[n] if c.difference.reference in findings.shown]
    ends = [0.0, *(end for c in compared for end in (c.low, c.high))]
    margin = 0.06 * max(max(ends) - min(ends), 1e-3)
    for budget, found in peers.items():
        series = [
            Series(c.difference.reference, [c.difference.estimate.value], [0.0], [c.low], [c.high])
            for c in found
            if c.difference.reference in findings.shown
        ]
        if series:
            span = (min(ends) - margin, max(ends) + margin)
            figure = figures.forest(
                series,
                findings.style,
                f"{budget} pairs",
                f"difference in {findings.measure.name}",
                span,
            )
            caption = (
                f"{findings.measure.name} of {findings.reference} less the method's at {budget}"
                " pairs, with Holm's intervals; filled where 0 lies outside."
            )
            pictures[budget] = Picture(f"differences_{budget}", caption, figure)
    header = [
        "against",
        "difference",
        "95 % interval",
        "p",
        "Holm's interval",
        "p (Holm)",
        "detectable",
        "seeds",
    ]
    caption = (
        f"{findings.measure.name} ({findings.measure.words}) of {findings.reference} less the"
        " other's, over the seeds that both have. 0 lies outside Holm's interval exactly when p"
        " (Holm) is at most 0.05. Detectable: the true difference that would be found 4 times out"
        " of 5."
    )
    blocks: list[Block] = []
    if pictures:
        blocks.append(Pictures([pictures.pop(max(pictures))]))
    if pictures:
        blocks.append(Fold("At the other budgets", [Pictures(list(pictures.values()))]))
    return Section(title, [*blocks, lines.table("differences", caption, header)])


def _difference_cells(comparison: Comparison) -> list[str]:
    plain = comparison.difference
    return [
        plain.reference,
        f"{plain.estimate.value:+.3f}",
        f"{plain.estimate.low:+.3f} to {plain.estimate.high:+.3f}",
        f"{plain.p:.3f}",
        f"{comparison.low:+.3f} to {comparison.high:+.3f}",
        f"{comparison.p_holm:.3f}",
        f"{comparison.detectable:.3f}",
        str(plain.seeds),
    ]


def _difference_numbers(comparison: Comparison) -> dict[str, object]:
    plain = comparison.difference
    ends = {
        "low": plain.estimate.low,
        "high": plain.estimate.high,
        "low_holm": comparison.low,
        "high_holm": comparison.high,
    }
    about = {"method": plain.method, "against": plain.reference, "difference": plain.estimate.value}
    return {
        **about,
        **ends,
        "p": plain.p,
        "p_holm": comparison.p_holm,
        "detectable": comparison.detectable,
        "seeds": plain.seeds,
    }


def labels(findings: Findings) -> Section:
    """How many times the pairs the baseline needs for the same recall."""
    title = f"Label multipliers over {findings.baseline}"
    found = multipliers(findings.bootstrap, findings.baseline) if findings.bootstrap else []
    if not found:
        return Section(title, [])
    budgets = [
        n
        for n in findings.sweep.budgets
        if findings.bootstrap and findings.bootstrap.seeds_of(findings.baseline, n)
    ]
    series = []
    for method in findings.shown:
        mine = [m for m in found if m.method == method]
        if mine:
            columns = (
                [float(m.budget) for m in mine],
                *([getattr(m, name) for m in mine] for name in ("value", "low", "high")),
            )
            series.append(Series(method, *columns))
    note = (
        f"How many times the method's pairs {findings.baseline} needs for the same"
        f" {findings.measure.name}: at 2 the method needs half the labels. {findings.baseline} was"
        f" run at {budgets[0]} to {budgets[-1]} pairs; between them its curve is isotonic and"
        " linear in log n, and beyond them a value is given as > or <."
    )
    lines = Lines()
    for m in sorted(found, key=lambda m: m.budget):
        numbers = {
            name: getattr(m, name)
            for name in ("method", "baseline", "value", "low", "high", "least", "most")
        }
        lines.add(
            m.budget, [m.method, m.text(m.value), f"{m.text(m.low)} to {m.text(m.high)}"], numbers
        )
    table = lines.table(
        "multipliers",
        "With 95 % intervals of the same bootstrap.",
        ["method", "multiplier", "interval"],
    )
    figure = figures.multipliers(
        series, findings.style, f"Pairs of {findings.baseline} that one pair is worth"
    )
    picture = Picture(
        "multipliers",
        f"Label multipliers; hollow arrows lie beyond the budgets of {findings.baseline}.",
        figure,
    )
    return Section(title, [Text(note), Pictures([picture]), table])
