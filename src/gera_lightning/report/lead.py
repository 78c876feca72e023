"""The first lines of a report: what the data are, what ran on them, and what was found."""

from __future__ import annotations

from collections.abc import Sequence

from gera_lightning.config import Experiment
from gera_lightning.data.store import EmbeddingStore
from gera_lightning.experiment.paired_stores import joint_hash, open_stores
from gera_lightning.report.findings import Findings
from gera_lightning.utils.errors import UserError

SPLITS = {
    "test": "sealed test items",
    "dev": "dev items, split off the train items for design",
    "folds": "all items, each seed on another part (cross-validation)",
}


def paragraphs(findings: Findings, loaded: Experiment) -> list[str]:
    """What was run and evaluated, what chance would give, the two stores, and the methods."""
    return [_counts(findings), *_data(findings, loaded), _methods(findings)]


def _counts(findings: Findings) -> str:
    sweep, (a, b) = findings.sweep, findings.modalities
    numbers = {
        "method": len(sweep.methods),
        "budget": len(sweep.budgets),
        "seed": len(sweep.seeds),
        "run": len(sweep.runs),
    }
    counted = ", ".join(f"{n} {word}" if n == 1 else f"{n} {word}s" for word, n in numbers.items())
    items = SPLITS.get(sweep.split, sweep.split)
    return f"{a} and {b}: {counted}, evaluated on {items}.{findings.chance}"


def _data(findings: Findings, loaded: Experiment) -> list[str]:
    """The encoders and rows of the stores, where they still are those of the runs."""
    try:
        stores = open_stores(loaded.common)
        if joint_hash(*stores) != findings.sweep.data_hash:
            return []
    except UserError:
        return []
    sides = [_store(*side) for side in zip(findings.modalities, stores, strict=True)]
    names = [(store.manifest.get("source") or {}).get("name") for store in stores]
    known = dict.fromkeys(str(name) for name in names if name)
    return [f"Data: {'; '.join(sides)}." + (f" Source: {'; '.join(known)}." if known else "")]


def _store(modality: str, store: EmbeddingStore) -> str:
    encoder = store.encoder.get("name", "an unnamed encoder")
    return f"{modality}, {len(store):,} rows of {store.dim} numbers by {encoder}"


def _methods(findings: Findings) -> str:
    roles = {findings.baseline: "baseline", findings.reference: "reference"}
    named = [f"{name} ({roles[name]})" if name in roles else name for name in findings.shown]
    if others := len(findings.order) - len(named):
        named.append(f"and {others} others" if others > 1 else "and another")
    least, most = findings.sweep.budgets[0], findings.sweep.budgets[-1]
    pairs = f"{least:,}" if least == most else f"{least:,} to {most:,}"
    return f"Methods, from {pairs} pairs: {', '.join(named)}."


def finding(findings: Findings) -> str:
    """Which method is the best at which budgets, where it is significantly so, and what GeRA gives
    beside it.
    """
    measure, budgets = findings.measure, findings.sweep.compared
    best = {n: next(iter(findings.near_best[n])) for n in budgets}
    parts = []
    for method in dict.fromkeys(best[n] for n in reversed(budgets)):
        at = [n for n in budgets if best[n] == method]
        values = ", ".join(f"{_value(findings, method, n):.3f}" for n in at)
        parts.append(f"{method} at {_listed(at)} pairs ({values})")
    sentences = [f"Highest {measure.name}, {measure.words}: {'; '.join(parts)}."]
    if findings.bootstrap and len(findings.sweep.methods) > 1:
        clear = [n for n in budgets if len(findings.near_best[n]) == 1]
        words = f"at {_listed(clear)} pairs" if clear else "at no number of pairs"
        sentences.append(f"The best is significantly better than all others {words}.")
    shown = dict.fromkeys((findings.reference, "gera", findings.baseline))
    beside = [
        f"{method} {', '.join(f'{_value(findings, method, n):.3f}' for n in budgets)}"
        for method in shown
        if method in findings.sweep.methods and any(best[n] != method for n in budgets)
    ]
    if beside:
        sentences.append(f"For comparison, at {_listed(budgets)} pairs: {'; '.join(beside)}.")
    return " ".join(sentences)


def _value(findings: Findings, method: str, budget: int) -> float:
    rows = findings.rows(budget)
    values = rows[findings.measure.column][rows["method"] == method]
    return float(values.iloc[0]) if len(values) else float("nan")


def _listed(numbers: Sequence[int]) -> str:
    """`100, 300 and 1,000`."""
    words = [f"{n:,}" for n in numbers]
    return " and ".join(part for part in (", ".join(words[:-1]), words[-1]) if part)
