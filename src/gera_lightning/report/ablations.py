"""The section on ablations: methods that differ from a base method in a few settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
import yaml

from gera_lightning.config.merging import flat
from gera_lightning.config.schema import DEFAULT_METHOD
from gera_lightning.evaluation.comparisons import Comparison, compare
from gera_lightning.report.document import Block, Section, Table
from gera_lightning.report.findings import Findings, number

BASES = (DEFAULT_METHOD, "gera")
MAX_CHANGES = 3
"""An ablation changes at most so many settings: more make another method."""
METHOD_KEYS = ("closed_form", "closed_form.class", "mixup")
"""To change one of these makes another method."""
GEOMETRY = "losses.geometric.class"
RUN_KEYS = ("experiment", "method", "budget", "seed", "data.reserved_pairs")
"""Settings that differ between runs of one method."""


def section(findings: Findings) -> Section:
    """A table per base: the changed settings, recall, and the difference to the base."""
    blocks: list[Block] = []
    for base in dict.fromkeys((findings.reference, *BASES)):
        changed = ablations(findings.sweep.settings, base)
        if changed:
            blocks.append(_table(findings, base, changed))
    return Section("Ablations", blocks)


def ablations(settings: Mapping[str, Mapping[str, Any]], base: str) -> dict[str, dict[str, Any]]:
    """Methods that differ from `base` in a few settings, with their values of these settings.

    At most `MAX_CHANGES` settings, none of `METHOD_KEYS`. The value of a setting that only the base
    has is None. A setting that is tuned counts by its choices.

    Args:
        settings: method to its settings, as a run's config.yaml has them.
        base: one of the methods; where it did not run there are no ablations.
    """
    if base not in settings:
        return {}
    base_settings, found = flat_settings(settings[base]), {}
    for name, other in settings.items():
        changes = dict(_changes(base_settings, flat_settings(other)))
        if GEOMETRY in changes:  # its settings belong to the loss
            changes = {
                key: value
                for key, value in changes.items()
                if key == GEOMETRY or not key.startswith("losses.geometric.")
            }
        if (
            name != base
            and 0 < len(changes) <= MAX_CHANGES
            and not any(_of_another_method(key) for key in changes)
        ):
            found[name] = changes
    return found


def _of_another_method(key: str) -> bool:
    """Whether a change of this setting makes another method, as another loss does."""
    loss = key.startswith("losses.") and key.endswith(".class")
    return key in METHOD_KEYS or (loss and key != GEOMETRY)


def flat_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A run's settings by dotted key, without those that it does not read.

    The value of a tuned setting is `tuned: ` and its choices.
    """
    values = {
        key: value
        for key, value in flat(settings).items()
        if key not in RUN_KEYS and not key.startswith("tuning.grid")
    }
    for key, choices in (settings.get("tuning", {}).get("grid") or {}).items():
        values[key] = f"tuned: {', '.join(map(str, choices))}"
    return values


def _changes(base: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Keys whose values differ, with those of `other`; a section that only one has is one key."""
    base_sections, other_sections = (
        {key.partition(".")[0] for key in settings if "." in key} for settings in (base, other)
    )
    one_sided = base_sections ^ other_sections
    for name in sorted(one_sided):
        inside = {
            key.partition(".")[2]: value
            for key, value in other.items()
            if key.startswith(f"{name}.")
        }
        yield name, inside or None
    for key in sorted({*base, *other}):
        if key.partition(".")[0] not in one_sided and base.get(key) != other.get(key):
            yield key, other.get(key)


def _table(findings: Findings, base: str, changed: Mapping[str, Mapping[str, Any]]) -> Table:
    budgets = [n for n in findings.sweep.compared if not pd.isna(_recall(findings, base, n))]
    differences = _differences(findings, base, list(changed), budgets)
    rows, numbers, strong = [], [], set()
    for place, name in enumerate((base, *changed)):
        changes = changed.get(name, {})
        words = "; ".join(f"{key}: {_in_words(value)}" for key, value in changes.items())
        cells = [name, words or "–"]
        for budget in budgets:
            difference, recall = differences.get((name, budget)), _recall(findings, name, budget)
            cells += [number(recall), _difference(difference)]
            if difference and findings.bootstrap and difference.p_holm <= findings.bootstrap.level:
                strong.add((place, len(cells) - 1))
            record: dict[str, object] = {
                "method": name,
                "of": base,
                "changed": words,
                "budget": budget,
            }
            record[findings.measure.column] = recall
            numbers.append({**record, **_difference_numbers(difference)})
        rows.append(cells)
    caption = (
        f"{base} with a few settings changed: {findings.measure.name}"
        f" ({findings.measure.words}) at each number of pairs, and the difference to {base} with"
        " Holm's interval (over the rows of this table); bold where 0 lies outside it."
    )
    titles = [title for n in budgets for title in (f"{n} pairs", "difference")]
    return Table(
        f"ablations_{base}",
        caption,
        ["method", "changed", *titles],
        rows,
        pd.DataFrame(numbers),
        2,
        frozenset(strong),
    )


def _differences(
    findings: Findings, base: str, methods: Sequence[str], budgets: Sequence[int]
) -> dict[tuple[str, int], Comparison]:
    """The methods' differences to the base, by method and budget."""
    if findings.bootstrap is None:
        return {}
    return {
        (comparison.difference.method, budget): comparison
        for budget in budgets
        for comparison in compare(findings.bootstrap, base, budget, sign=-1, peers=methods)
    }


def _recall(findings: Findings, method: str, budget: int) -> float:
    table = findings.table
    rows = table[(table["method"] == method) & (table["budget"] == budget)]
    return float(rows[findings.measure.column].iloc[0]) if len(rows) else float("nan")


def _difference(comparison: Comparison | None) -> str:
    if comparison is None:
        return ""
    value = comparison.difference.estimate.value
    return f"{value:+.3f} ({comparison.low:+.3f} to {comparison.high:+.3f})"


def _difference_numbers(comparison: Comparison | None) -> dict[str, float]:
    if comparison is None:
        return {}
    return {
        "difference": comparison.difference.estimate.value,
        "low": comparison.low,
        "high": comparison.high,
        "p_holm": comparison.p_holm,
    }


def _in_words(value: Any) -> str:
    """A setting in a line, classes by their names alone."""
    if value is None or value == []:
        return "none"
    if isinstance(value, Mapping):
        class_name = [str(value["class"]).rpartition(".")[2]] if "class" in value else []
        arguments = [f"{k} {_in_words(inner)}" for k, inner in value.items() if k != "class"]
        return " ".join([*class_name, *arguments])
    if isinstance(value, list):
        return " | ".join(_in_words(inner) or "none" for inner in value)
    return yaml.safe_dump(value, default_flow_style=True).strip().removesuffix("...").strip()
