"""Make the aligner to put to use, from all pairs, the test items too.

    gera align EXPERIMENT [method=ridge out=FOLDER key=value ...]

Its settings are chosen by folds of the pairs; nothing is held out for a test.

Legend: `n` pairs, `N_a`, `N_b` unpaired rows, `D_a`, `D_b` frozen widths.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from rich.console import Console

from gera_lightning import config
from gera_lightning.aligners.aligner import Aligner
from gera_lightning.config import Config
from gera_lightning.config.merging import flat
from gera_lightning.config.overrides import split_overrides, split_target
from gera_lightning.config.schema import DEFAULT_METHOD
from gera_lightning.data import splits
from gera_lightning.data.training_rows import TrainingRows, digest, load_rows, modality_of
from gera_lightning.experiment.paired_stores import open_stores, store_metadata
from gera_lightning.experiment.plan import FEW_UNPAIRED, at_budget
from gera_lightning.training.fit import fit
from gera_lightning.training.method import Method
from gera_lightning.training.preflight import check
from gera_lightning.training.training_set import TrainingSet
from gera_lightning.utils.arrays import Array, finite_rows
from gera_lightning.utils.errors import UserError
from gera_lightning.utils.progress import Display, ProgressCallback, no_progress

log = logging.getLogger(__name__)
OF_BUDGETS = (
    "methods",
    "budgets",
    "sweep",
    "evaluation",
    "overwrite",
    "data.test_share",
    "data.split",
    "data.folds",
    "data.reserved_pairs",
    "data.shared_pools",
)
"""Settings of measured runs."""
OF_STORES = (
    "seeds",
    "runs_dir",
    "data.a",
    "data.b",
    "data.synthetic",
    "data.pool_size",
    "data.extra_views",
)
"""Settings of rows that come from stores."""


def align(
    a: Array,
    b: Array,
    pool_a: Array | None = None,
    pool_b: Array | None = None,
    *,
    method: str = "",
    items: Sequence[object] | None = None,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> Aligner:
    """Align two frozen spaces from arrays of embeddings.

    Args:
        a, b: pairs, `[n, D_a]` and `[n, D_b]`: row i of one belongs to row i of the other.
        pool_a, pool_b: unpaired rows, `[N_a, D_a]` and `[N_b, D_b]`; none of them partners of each
            other or copies of paired rows.
        method: a preset; `coupled_ridge` by default. Without unpaired rows, or by default with
            fewer than `FEW_UNPAIRED` of a modality, what reads them is left out, as at
            `data.pool_size=0`.
        items: what each pair is of `[n]`; rows of one item are kept in one fold and are positives
            of each other. By default each is its own.
        seed: fixes folds, start and batches.
        settings: dotted keys to values, such as `{"tuning.folds": 3}`.
        progress: show a bar with the time left, where standard error is a terminal.

    Returns:
        The aligner, to `encode_a`, `encode_b`, `search` and `save`.

    Raises:
        UserError: an unknown preset or key, shapes that do not fit, values that are not finite, or
            a method that reads unpaired rows and is given none.
    """
    pairs = {side: finite_rows(x, side).cpu() for side, x in (("a", a), ("b", b))}
    if len(pairs["a"]) != len(pairs["b"]):
        raise UserError(
            f"a has {len(pairs['a'])} rows and b {len(pairs['b'])}: row i of one must belong to row"
            " i of the other"
        )
    pools = {
        side: pairs[side][:0]
        if pool is None
        else finite_rows(pool, f"pool_{side}", pairs[side].shape[1]).cpu()
        for side, pool in (("a", pool_a), ("b", pool_b))
    }
    items = range(len(pairs["a"])) if items is None else items
    if not isinstance(method, str):
        raise UserError(f"method={method!r}: name one preset, such as method='coupled_ridge'")
    method, fewest = _preset(method)
    if len(pairs["a"]) < 2:
        raise UserError(f"{len(pairs['a'])} pairs are too few: two at least")
    if len(items) != len(pairs["a"]):
        raise UserError(f"items names {len(items)} rows, but there are {len(pairs['a'])} pairs")
    names = np.array([f"pair {item}" for item in items])
    _check_used(flat(settings or {}), *OF_STORES)
    chosen = config.load({}, {"methods": [method], **(settings or {})}).methods[method]
    sides = {}
    for side in "ab":
        x, alone = torch.cat([pairs[side], pools[side]]), np.repeat("unpaired", len(pools[side]))
        key = {"data": digest(x.numpy()), "pairs": str(len(names))}
        sides[side] = modality_of(x, len(names), alone, key, center=chosen.data.center)
    families = pd.Series({name: name for name in ("unpaired", *names)})
    widths = {f"dim_{side}": rows.shape[1] for side, rows in pairs.items()}
    rows = TrainingRows(**sides, items=names, units=names)
    with Display(Console(stderr=True, quiet=not progress), 1, 0) as display:
        told = display.start(1, method)
        return _fitted(chosen, rows, families, method, seed, widths, fewest, told)


def align_experiment(
    experiment: str,
    overrides: Sequence[str] = (),
    progress: ProgressCallback = no_progress,
    *,
    method: str = "",
    out: str = "",
) -> Path:
    """Align an experiment's two stores from all their pairs, the sealed items' among them, and all
    their unpaired rows.

    Args:
        experiment, overrides: as `config.load`; `seeds` gives the seed, the first of them.
        progress: told of what is under way.
        method: a preset or variant; by default as in `align`.
        out: the aligner's folder; by default `runs/<experiment>/aligner`.

    Returns:
        The aligner's folder.

    Raises:
        UserError: as `config.load` and `align`, or a missing store, or stores that share no item.
    """
    _check_used(word.partition("=")[0] for word in overrides)
    method, fewest = _preset(method)
    loaded = config.load(experiment, [*overrides, f"methods=[{method}]"])
    a, b = open_stores(loaded.common)
    split = splits.train_on_all(a.rows, b.rows)
    count = splits.count_pairs(a.rows, b.rows, split)
    if count < 2:
        raise UserError(
            f"{a.path} and {b.path} share {count} items: rows that belong together carry the same"
            " `item`"
        )
    seed, chosen = loaded.common.seeds[0], loaded.methods[method]
    draw = splits.sample_pairs(
        a.rows,
        b.rows,
        split,
        budget=count,
        reserved_pairs=count,
        seed=seed,
        pool_size=chosen.data.pool_size,
        extra_views=chosen.data.extra_views,
    )
    training = load_rows(a, b, draw, center=chosen.data.center, residency=chosen.data.residency)
    aligner = _fitted(
        chosen,
        training,
        split.families,
        method,
        seed,
        {"experiment": loaded.name, **store_metadata(a, b)},
        fewest,
        progress,
    )
    folder = Path(out) if out else Path(loaded.common.runs_dir) / loaded.name / "aligner"
    aligner.save(folder)
    return folder


def _preset(method: str) -> tuple[str, int]:
    """The preset to take, and the unpaired rows below which it does without them: a preset that was
    named makes do with few.
    """
    return (method, 2) if method else (DEFAULT_METHOD, FEW_UNPAIRED)


def _check_used(keys: Iterable[str], *more: str) -> None:
    """Refuse settings that an aligner of all pairs has no use for.

    Raises:
        UserError: naming the key, and `method` where methods are named.
    """
    for key in keys:
        if any(key == unused or key.startswith(f"{unused}.") for unused in (*OF_BUDGETS, *more)):
            remedy = "name the preset by method" if key == "methods" else "leave it out"
            raise UserError(
                f"{key}: an aligner to put to use is of one method and of all the rows it is given,"
                f" so it would do nothing: {remedy}"
            )


def _fitted(
    chosen: Config,
    rows: TrainingRows,
    families: pd.Series,
    method: str,
    seed: int,
    about: Mapping[str, Any],
    fewest: int,
    progress: ProgressCallback = no_progress,
) -> Aligner:
    """The method's aligner of these rows; with fewer than `fewest` unpaired ones it does without.

    Raises:
        UserError: a part that refuses its settings, or unpaired rows that are needed and missing.
    """
    dims = rows.a.pairs.shape[1], rows.b.pairs.shape[1]
    parts = Method.from_config(at_budget(chosen, len(np.unique(rows.items))))
    unpaired = len(rows.a.pool), len(rows.b.pool)
    if parts.requires_unpaired and min(unpaired) < fewest:
        parts = parts.without_unpaired()
        if reader := parts.requires_unpaired:
            raise UserError(
                f"has a {reader} that is made of unpaired rows: {fewest} of each modality at least,"
                f" not {unpaired[0]} and {unpaired[1]}",
                key="method",
                value=method,
                remedy="give more (pool_a, pool_b, or rows whose item the other modality lacks), or"
                " take another method",
            )
        log.warning(
            "%d and %d unpaired rows are too few for the geometry of %s: it is left out",
            *unpaired,
            method,
        )
        rows = replace(  # their mean is not taken either
            rows,
            a=rows.a.pool_subset(np.zeros(unpaired[0], dtype=bool)),
            b=rows.b.pool_subset(np.zeros(unpaired[1], dtype=bool)),
        )
    check(parts, dims, len(rows.items))
    with tempfile.TemporaryDirectory() as folder:
        fitted = fit(TrainingSet(parts, rows, families, seed, Path(folder), progress))
    known = {"method": method, "seed": seed, "pairs": len(rows.items), "chosen": fitted.chosen}
    return Aligner(rows.a.preprocess, rows.b.preprocess, fitted.space, {**known, **about})


def run(words: Sequence[str]) -> None:
    """The command line's `gera align`."""
    experiment, rest = split_target(words)
    options, overrides = split_overrides(rest, align_experiment)
    with Display(Console(), 1, 0) as display:
        folder = align_experiment(
            experiment, overrides, display.start(1, options.get("method", "aligner")), **options
        )
    print(
        f"aligner      {folder}   (Aligner.load, gera search {folder} QUERY, gera export {folder})"
    )
