"""The section on what each choice is worth: methods that differ from `gera` or `gera_plain` in a
setting or a few, found by their settings.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd
import yaml

from gera_lightning.config.merging import flat
from gera_lightning.evaluation.comparisons import Comparison, compare
from gera_lightning.report.document import Block, Section, Table, Text
from gera_lightning.report.findings import Findings, number

BASES = ("gera", "gera_plain")
MOST = 3
"""Settings that an ablation changes at most: more make another method."""
METHOD_KEYS = ("closed_form", "closed_form.class", "pair_loss.class", "unpaired_loss", "mixup")
"""Settings of which one alone makes another method."""
ABOUT_A_RUN = ("experiment", "method", "budget", "seed", "data.reserved_pairs")


def section(findings: Findings) -> Section:
    """A table for each base: what was changed, recall at each budget, the difference to the base
    with its interval.
    """
    blocks: list[Block] = []
    for base in dict.fromkeys((findings.reference, *BASES)):
        changed = ablations(findings.sweep.settings, base)
        if changed:
            blocks.append(_table(findings, base, changed))
    if not blocks:
        blocks.append(
            Text(f"No method that ran differs from {findings.reference} in only a few settings.")
        )
    return Section("Ablations", blocks)


def ablations(settings: Mapping[str, Mapping[str, Any]], base: str) -> dict[str, dict[str, Any]]:
    """Methods that differ from `base` in `MOST` settings or fewer, none of `METHOD_KEYS`, with
    their values; what only the base has is None.

    What `tuning.grid` names is tuned, so its fixed value counts for nothing.
    """
    if base not in settings:
        return {}
    mine, out = flat_settings(settings[base]), {}
    for name, other in settings.items():
        theirs = flat_settings(other)
        changes = dict(_changes(mine, theirs))
        if "geometric_loss" in changes:  # a weight belongs to its loss
            changes.pop("geometric_weight", None)
        if name != base and 0 < len(changes) <= MOST and not changes.keys() & set(METHOD_KEYS):
            out[name] = changes
    return out


def flat_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A run's settings by dotted key, what was tuned as `tuned: values`, what a run does not read
    left out.
    """
    values = {
        key: value
        for key, value in flat(settings).items()
        if key not in ABOUT_A_RUN and not key.startswith("tuning.grid")
    }
    for key, choices in (settings.get("tuning", {}).get("grid") or {}).items():
        values[key] = f"tuned: {', '.join(map(str, choices))}"
    if settings.get("geometric_loss") is None:
        values.pop("geometric_weight", None)
    return values


def _changes(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Keys of `theirs` that differ, with their values; a section that one of them lacks altogether
    is one key.
    """
    sections = [
        {key.partition(".")[0] for key, value in side.items() if "." in key}
        for side in (mine, theirs)
    ]
    one_sided = sections[0] ^ sections[1]
    for name in sorted(one_sided):
        inside = {
            key.partition(".")[2]: value
            for key, value in theirs.items()
            if key.startswith(f"{name}.")
        }
        yield name, inside or None
    for key in sorted({*mine, *theirs}):
        if key.partition(".")[0] not in one_sided and mine.get(key) != theirs.get(key):
            yield key, theirs.get(key)


def _table(findings: Findings, base: str, changed: Mapping[str, Mapping[str, Any]]) -> Table:
    budgets = [n for n in findings.sweep.compared if not pd.isna(_recall(findings, base, n))]
    found: dict[tuple[str, int], Comparison] = {}
    for budget in budgets if findings.bootstrap else []:
        assert findings.bootstrap is not None
        for one in compare(findings.bootstrap, base, budget, sign=-1, peers=list(changed)):
            found[one.difference.method, budget] = one
    rows, numbers, strong = [], [], set()
    for place, name in enumerate((base, *changed)):
        said = (
            "; ".join(f"{key}: {_word(value)}" for key, value in changed[name].items())
            if name != base
            else "as it is"
        )
        cells = [name, said]
        for budget in budgets:
            its, recall = found.get((name, budget)), _recall(findings, name, budget)
            cells += [number(recall), _difference(its)]
            if (
                its is not None
                and findings.bootstrap is not None
                and its.p_holm <= findings.bootstrap.level
            ):
                strong.add((place, len(cells) - 1))
            ends = (
                {
                    "difference": its.difference.estimate.value,
                    "low": its.low,
                    "high": its.high,
                    "p_holm": its.p_holm,
                }
                if its
                else {}
            )
            numbers.append(
                {
                    "method": name,
                    "of": base,
                    "changed": said,
                    "budget": budget,
                    "both/r@10": recall,
                    **ends,
                }
            )
        rows.append(cells)
    caption = (
        f"{base} with one or a few settings changed: R@10 (mean of both directions) at each number"
        f" of pairs, and the difference to {base} with Holm's interval (over the rows of this"
        " table); bold where it leaves 0 out."
    )
    header = [
        "method",
        "changed",
        *(title for n in budgets for title in (f"{n} pairs", "difference")),
    ]
    return Table(
        f"ablations_{base}", caption, header, rows, pd.DataFrame(numbers), 2, frozenset(strong)
    )


def _recall(findings: Findings, method: str, budget: int) -> float:
    table = findings.table
    rows = table[(table["method"] == method) & (table["budget"] == budget)]
    return float(rows["both/r@10"].iloc[0]) if len(rows) else float("nan")


def _difference(one: Comparison | None) -> str:
    return (
        ""
        if one is None
        else f"{one.difference.estimate.value:+.3f} ({one.low:+.3f} to {one.high:+.3f})"
    )


def _word(value: Any) -> str:
    """A setting in a line, classes by their names alone."""
    if value is None or value == []:
        return "none"
    if isinstance(value, Mapping):
        inside = [str(value["class"]).rpartition(".")[2]] if "class" in value else []
        return " ".join(
            [*inside, *(f"{key} {_word(inner)}" for key, inner in value.items() if key != "class")]
        )
    if isinstance(value, list):
        return " | ".join(_word(inner) or "none" for inner in value)
    return yaml.safe_dump(value, default_flow_style=True).strip().removesuffix("...").strip()
