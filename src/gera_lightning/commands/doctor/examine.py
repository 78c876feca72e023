"""The examination of two stores, from their files to a recommended preset and what to do next."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from gera_lightning import config
from gera_lightning.commands.doctor.checks import (
    ERROR,
    FEW_PAIRS,
    NOTE,
    OK,
    SUGGESTION,
    Finding,
    leak_findings,
    neighbor_findings,
    pair_findings,
    row_findings,
    spread_findings,
)
from gera_lightning.commands.doctor.evidence import (
    Evidence,
    gather,
    pairing_p_value,
    smallest_budget,
)
from gera_lightning.config.schema import DEFAULT_METHOD
from gera_lightning.data.inspection import Scan, scan
from gera_lightning.data.leaks import Leaks
from gera_lightning.data.splits import (
    count_pairs,
    matched_items,
    pairs_in_words,
    split_items,
    split_units,
)
from gera_lightning.data.store import EmbeddingStore
from gera_lightning.data.training_rows import load_modality
from gera_lightning.experiment.paired_stores import Stores, modality_names
from gera_lightning.utils.errors import UserError

PROBE = "ridge"
"""The preset that finds the smallest sensible budget: simple and quick."""
COMPARED = (DEFAULT_METHOD, PROBE, "kernel_ridge", "cca", "procrustes")
"""Presets that are compared by default."""
BUDGETS = (10, 25, 50, 100, 200)
DISTRACTORS = 500
"""Pool rows in the galleries of cross-validation: fewer than in a run, to save time."""
MAX_BUDGET = 300
"""The largest budget to look at by default."""


def doctor(
    store_a: str | os.PathLike[str],
    store_b: str | os.PathLike[str],
    *,
    budget: int | None = None,
    k: int = 16,
    most: int = 20_000,
    seed: int = 0,
    methods: Sequence[str] | None = None,
    folder: str = "experiments",
) -> Iterator[Finding]:
    """Say whether two stores can be aligned, and how: findings, one after the other.

    Test rows are checked for damage and copies, never for anything that could choose a method.
    Where rows are damaged, checks that need whole rows are left out.

    Args:
        store_a, store_b: folders of the stores.
        budget: pairs that there will be; by default 300, or half of the train items where there
            are few.
        k: neighbours.
        most: train rows in a neighbour graph at most.
        seed: of what is drawn.
        methods: closed-form presets to compare; by default `COMPARED`.
        folder: where experiments and presets lie.

    Raises:
        UserError: a value that is refused, or a method that is no closed form.
    """
    _check_arguments(budget, k, most, seed)
    presets = COMPARED if methods is None else methods
    presets = presets.split(",") if isinstance(presets, str) else list(presets)
    if methods is not None:  # a misspelt one is reported at once
        _closed_forms({"methods": presets}, folder)
    names = _modalities(store_a, store_b)
    stores = yield from _opened(names, store_a, store_b)
    if len(stores) < 2:
        return
    (a, scan_a), (b, scan_b) = stores
    try:
        split = split_items(a.rows, b.rows)
    except UserError as error:
        yield Finding(ERROR, f"split: {error}")
        return
    codes = {"a": scan_a.codes, "b": scan_b.codes}
    yield from leak_findings(Leaks.of({"a": a.rows, "b": b.rows}, codes, split), names)
    if len(scan_a.damaged) or len(scan_b.damaged):
        yield Finding(NOTE, "pairs, neighbours and presets are checked when every row is finite")
        return
    yield from pair_findings(a, b, split, names)
    if not len(split.train_a) or not len(split.train_b):
        return
    collapsed = False
    for name, store, rows in zip(names, (a, b), (split.train_a, split.train_b), strict=True):
        for finding in _geometry(store, name, rows, k, most, seed):
            yield finding
            collapsed |= finding.level == ERROR
    pairs = count_pairs(a.rows, b.rows, split)
    if pairs >= FEW_PAIRS and not collapsed:
        yield from _presets(Stores(a, b, split), pairs, budget, seed, presets, folder)


def _check_arguments(budget: int | None, k: int, most: int, seed: int) -> None:
    given = [("k", k, 1), ("most", most, 100), ("seed", seed, 0)]
    for key, value, least in given + ([] if budget is None else [("budget", budget, 4)]):
        if not isinstance(value, int) or value < least:
            raise UserError(f"must be a whole number of at least {least}", key=key, value=value)


def _modalities(a: str | os.PathLike[str], b: str | os.PathLike[str]) -> tuple[str, str]:
    """Names of the two modalities, by their folders where a store cannot be opened."""
    try:
        return modality_names(EmbeddingStore(a), EmbeddingStore(b))
    except UserError:
        return modality_names(a, b)


def _opened(
    names: Sequence[str], *paths: str | os.PathLike[str]
) -> Generator[Finding, None, list[tuple[EmbeddingStore, Scan]]]:
    """The stores that can be opened, with a scan of each."""
    stores = []
    for name, path in zip(names, paths, strict=True):
        try:
            store = EmbeddingStore(path)
            found = scan(store)
            yield from row_findings(store, name, found)
            stores.append((store, found))
        except UserError as error:
            yield Finding(ERROR, f"{name}: {error}")
    return stores


def _geometry(
    store: EmbeddingStore, name: str, rows: np.ndarray, k: int, most: int, seed: int
) -> Iterator[Finding]:
    """Findings on the directions and neighbours of some train rows."""
    chosen = np.sort(np.random.default_rng(seed).permutation(rows)[:most])
    x = load_modality(store, chosen, chosen[:0]).pairs
    yield from spread_findings(torch.from_numpy(store.read(chosen[:2000])), name)
    if len(x) > 2:
        table = store.rows.iloc[chosen].reset_index(drop=True)
        yield from neighbor_findings(x, table, name, min(k, len(x) - 1))


def _closed_forms(settings: Mapping[str, Any], folder: str) -> config.Experiment:
    """The experiment of these settings.

    Raises:
        UserError: an unknown preset, or one that is trained.
    """
    experiment = config.load(settings, folder=folder)
    trained = next(
        (name for name, method in experiment.methods.items() if method.closed_form is None), None
    )
    if trained:
        raise UserError(
            f"names {trained}, which is trained",
            key="methods",
            value=settings["methods"],
            remedy="name closed forms alone",
        )
    return experiment


def _presets(
    stores: Stores, pairs: int, budget: int | None, seed: int, names: Sequence[str], folder: str
) -> Iterator[Finding]:
    """Sizes of the pools, the smallest budget, and how the presets compare within the budget."""
    train = ((stores.a, stores.split.train_a), (stores.b, stores.split.train_b))
    unpaired = min(store.rows["item"].iloc[rows].nunique() for store, rows in train) - pairs
    largest = budget or min(MAX_BUDGET, pairs if unpaired >= pairs else pairs // 2)
    if largest > pairs:
        matched = len(matched_items(stores.a.rows, stores.b.rows, stores.split))
        yield Finding(
            ERROR,
            f"budget={largest} pairs are more than {pairs_in_words(pairs, matched)}: lower it",
        )
        return
    settings = {
        "data": {"a": str(stores.a.path), "b": str(stores.b.path)},
        "budgets": [largest],
        "seeds": [seed],
        "methods": names,
        "tuning": {"distractors": DISTRACTORS},
    }
    try:
        experiment = _closed_forms(settings, folder)
    except UserError as error:
        yield Finding(NOTE, f"presets are not compared: {error}")
        return
    yield _pools(stores, experiment, largest)
    budgets = [
        n
        for n in sorted({*BUDGETS, max(largest // 3, FEW_PAIRS), largest})
        if n <= largest and _foldable(stores, experiment, n)
    ]
    if not budgets:
        yield Finding(
            ERROR,
            f"budget={largest}: the pairs hold fewer families than the"
            f" {experiment.common.tuning.folds} folds of tuning",
        )
        return
    probed = _least(experiment, stores, budgets, PROBE if PROBE in names else names[0])
    yield probed
    if probed.level == ERROR:
        return
    evidence = gather(experiment, stores, budgets[-1], names)
    yield _compared(evidence)
    runs = [n for n in budgets if n in (max(largest // 3, FEW_PAIRS), largest)]
    yield from _next_steps(stores, evidence, runs, folder)


def _foldable(stores: Stores, experiment: config.Experiment, budget: int) -> bool:
    """Whether the pairs hold at least as many families as there are folds."""
    sample = stores.sample_pairs(experiment.common, budget, experiment.common.seeds[0])
    units = split_units(stores.a.rows, stores.b.rows)[sample.pairs_a]
    return stores.split.families[units].nunique() >= experiment.common.tuning.folds


def _pools(stores: Stores, experiment: config.Experiment, budget: int) -> Finding:
    """Sizes of the pools, and items that are in both."""
    drawn = stores.sample_pairs(experiment.common, budget, experiment.common.seeds[0])
    units = split_units(stores.a.rows, stores.b.rows)  # a class is no secret of its names
    shared = len(set(units[drawn.pool_a]) & set(stores.b.rows["item"].iloc[drawn.pool_b]))
    text = (
        f"pools: {len(drawn.pool_a):,} and {len(drawn.pool_b):,} unpaired rows beside {budget}"
        f" pairs, {shared:,} items in both"
    )
    few = min(len(drawn.pool_a), len(drawn.pool_b)) < budget
    return Finding(
        NOTE if few or shared else OK,
        text + (": with few unpaired rows geometry cannot help much" if few else ""),
    )


def _least(
    experiment: config.Experiment, stores: Stores, budgets: Sequence[int], probe: str
) -> Finding:
    """The smallest sensible budget, where the pairs say anything at all."""
    tested = max(n for n in budgets if n <= max(MAX_BUDGET, budgets[0]))
    if pairing_p_value(experiment, stores, tested, probe) > 0.05:
        return Finding(
            ERROR,
            f"budget: even at {tested} pairs {probe} finds held-out partners no better than where"
            " pairs are shuffled: check that `item` pairs the right rows, or take more pairs",
        )
    probes = [n for n in budgets if n <= tested]
    least = smallest_budget(experiment, stores, probes, probe)
    return Finding(
        OK,
        f"budget: from {least.budget} pairs on {probe} is above chance (held-out partner's typical"
        f" rank {least.rank(probe):.0f}, chance {np.exp(-least.chance.mean()):.0f})",
    )


def _compared(evidence: Evidence) -> Finding:
    """The presets, best first: by how much their log rank is worse, and whether that is clear."""
    ranked = sorted(evidence.scores, key=evidence.rank)
    chance = np.exp(-evidence.chance.mean())
    text = (
        f"{evidence.budget} pairs: {evidence.best} is best, held-out partner's typical rank"
        f" {evidence.rank(evidence.best):.0f} (chance {chance:.0f})"
    )
    as_good = evidence.as_good()
    if ranked[1:]:
        text += (
            "; the others, and by how much their log rank is worse:"
            if as_good
            else "; all others are significantly worse in log rank, by:"
        )
    for name in ranked[1:]:
        lead, error = evidence.lead(evidence.best, name)
        note = "   not significantly" if name in as_good else ""
        text += f"\n       {name:<24}{evidence.rank(name):4.0f}   {lead:.2f} ± {error:.2f}{note}"
    return Finding(OK, text)


def _next_steps(
    stores: Stores, evidence: Evidence, budgets: Sequence[int], folder: str
) -> Iterator[Finding]:
    """Lines to copy, which run the best preset beside the default and the probe."""
    usual = [name for name in (DEFAULT_METHOD, PROBE) if name in evidence.scores]
    names = list(dict.fromkeys([evidence.best, *usual]))
    settings = {"budgets": list(budgets), "methods": names}
    words = " ".join(f"{key}={_flow(value)}" for key, value in settings.items())
    known = _experiment_of(stores, folder)
    if not known:
        data = {"data": {"a": str(stores.a.path), "b": str(stores.b.path)}, **settings}
        yield Finding(SUGGESTION, f"write {folder}/mine.yaml: {_flow(data)}")
    if not len(stores.split.test_a):  # nothing to measure a run on
        yield Finding(
            SUGGESTION,
            f"make align EXP={known or 'mine'}"
            + (f" ARGS=method={names[0]}" if names[0] != DEFAULT_METHOD else ""),
        )
    else:
        yield Finding(
            SUGGESTION, f'make train EXP={known} ARGS="{words}"' if known else "make train EXP=mine"
        )


def _flow(value: object) -> str:
    return (
        yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000)
        .strip()
        .replace(", ", "," if isinstance(value, list) else ", ")
    )


def _experiment_of(stores: Stores, folder: str) -> str | None:
    """The experiment whose stores these are."""
    for path in sorted(Path(folder).glob("*.yaml")):
        try:
            data = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("data")
        except (yaml.YAMLError, AttributeError):
            continue
        if isinstance(data, dict) and all(
            data.get(side) and Path(data[side]).resolve() == getattr(stores, side).path.resolve()
            for side in "ab"
        ):
            return path.stem
    return None


def verdict(findings: Sequence[Finding]) -> str:
    """One sentence that sums findings up."""
    errors, notes = (sum(one.level == level for one in findings) for level in (ERROR, NOTE))
    if errors:
        return f"alignment will not work as it is: first mend what is marked {ERROR} ({errors})"
    return "alignment will work" + (f"; mind what is marked {NOTE} ({notes})" if notes else "")
