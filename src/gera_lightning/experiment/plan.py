"""What an experiment runs: the list of its runs, checked before any of them starts, and how long
they may take.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from gera_lightning.config import Config, Experiment
from gera_lightning.data import splits
from gera_lightning.experiment.paired_stores import Stores
from gera_lightning.experiment.results import finished_rows
from gera_lightning.experiment.run import Run
from gera_lightning.training.method import Method, search_settings
from gera_lightning.training.preflight import check
from gera_lightning.utils.errors import UserError

log = logging.getLogger(__name__)
FEW_UNPAIRED = 30
"""Unpaired rows of a modality below which their means and neighbours cost more than they bring."""


def plan(experiment: Experiment) -> list[Run]:
    """All runs of an experiment, small budgets first, methods' extra budgets last; what a user can
    get wrong is checked here.

    Raises:
        UserError: a missing store, a budget beyond the items, a method's refused setting, or one
            that lacks unpaired rows.
    """
    common = experiment.common
    stores = Stores.open(common)
    parts = [(stores, common.seeds)]  # the seeds that share a split
    if common.data.split == "folds":
        parts = [(Stores.of_stores(stores.a, stores.b, common, s), [s]) for s in common.seeds]
    of_seed = {seed: part for part, seeds in parts for seed in seeds}
    for name, config in experiment.methods.items():
        try:
            smallest = Method.from_config(at_budget(config, min(common.budgets)))
            check(smallest, (stores.a.dim, stores.b.dim), max(common.budgets))
        except UserError as error:
            raise UserError(f"{error} (method {name})") from error

    def run(name: str, budget: int, seed: int, *, extra: bool = False) -> Run:
        part = of_seed[seed]
        config = with_index(at_budget(experiment.methods[name], budget, extra=extra), part)
        return Run(experiment.name, name, budget, seed, config, part)

    runs = [
        run(name, budget, seed)
        for budget in common.budgets
        for seed in common.seeds
        for name in experiment.methods
    ]
    extra = sorted(
        (n, name)
        for name, budgets in experiment.extra_budgets.items()
        for n in budgets
        if n not in common.budgets
    )
    runs += [run(name, n, seed, extra=True) for n, name in extra for seed in common.seeds]
    for part, seeds in parts:
        _check_pairs(experiment, part, seeds, max(run.budget for run in runs))
    _check_pools(runs)
    return runs


def at_budget(config: Config, budget: int, *, extra: bool = False) -> Config:
    """The settings of a run on so many pairs.

    `trainer.max_steps` is `batch.min_epochs` passes over them, one row per modality each, where it
    was fewer. A budget that is `extra` goes beyond `data.reserved_pairs`: all its items are set
    aside, the pools are what is left. Its first items are those of the smaller budgets of its seed,
    since the reserve has no part in their order.
    """
    trainer, data, batch = config.trainer, config.data, config.batch
    steps = max(batch.min_epochs * math.ceil(budget / batch.pairs), trainer.max_steps)
    return dataclasses.replace(
        config,
        trainer=dataclasses.replace(trainer, max_steps=steps),
        batch=dataclasses.replace(batch, min_epochs=0),
        data=(
            dataclasses.replace(data, reserved_pairs=max(budget, data.reserved_pairs or 0))
            if extra
            else data
        ),
    )


def with_index(config: Config, stores: Stores) -> Config:
    """The settings with `graph.index: Flat` for `auto` where that is exact for any pool of these
    stores: both are then the same run.
    """
    settings = search_settings(config.graph).of_points(max(len(stores.a), len(stores.b)))
    return dataclasses.replace(
        config, graph=dataclasses.replace(config.graph, index=settings.index)
    )


def _check_pairs(experiment: Experiment, stores: Stores, seeds: Sequence[int], most: int) -> None:
    """There are as many pairs as the largest budget asks for, and enough families in the smallest
    for every fold of tuning.
    """
    common, tables = experiment.common, (stores.a.rows, stores.b.rows, stores.split)
    matched, pairs = len(splits.matched_items(*tables)), splits.count_pairs(*tables)
    if not matched:
        raise UserError(
            f"no train item has a row in both stores ({common.data.a or 'a'},"
            f" {common.data.b or 'b'}): rows that belong together carry the same `item`; gera"
            " doctor says what the stores share"
        )
    if not len(splits.matched_items(*tables, test=True)):
        raise UserError(
            "no test item has a row in both stores, so nothing could be measured: let the `split`"
            " columns and items of both agree, or take gera align"
        )
    if most > pairs:
        key = (
            f"budgets={common.budgets}"
            if most in common.budgets
            else f"sweep.extra_budgets={dict(experiment.extra_budgets)}"
        )
        raise UserError(
            f"{key}: {most} pairs are more than {splits.pairs_in_words(pairs, matched)}: lower it"
        )
    count = max(config.tuning.folds for config in experiment.methods.values())
    for seed in seeds:  # budgets are nested: the smallest has the fewest families
        largest = stores.sample_pairs(common, max(common.budgets), seed).pairs_a
        units = pd.unique(splits.split_units(stores.a.rows, stores.b.rows)[largest])
        splits.folds(units[: min(common.budgets)], stores.split.families, count, seed)


def _check_pools(runs: Sequence[Run]) -> None:
    """A method that reads unpaired rows has some. How many rows a pool holds may depend on the
    seed, not whether there are any.
    """
    sizes: dict[str, int] = {}
    for run in runs:
        reader = run.parts.requires_unpaired
        data = repr(run.config.data)
        if reader is not None and data not in sizes:
            drawn = run.stores.sample_pairs(run.config, run.budget, run.seed)
            sizes[data] = min(len(drawn.pool_a), len(drawn.pool_b))
            if 2 <= sizes[data] < FEW_UNPAIRED and reader in ("filters", "correction"):
                log.warning(
                    "%s: %d unpaired rows are too few for its %s: expect less of it than of the"
                    " same at data.pool_size=0",
                    run.method,
                    sizes[data],
                    reader,
                )
        if reader is not None and sizes[data] < 2:
            patches = "patches" in run.parts.requires
            more = ", or set batch.paired_anchors=true" if patches else ""
            raise UserError(
                f"data.reserved_pairs={run.config.data.reserved_pairs} leaves no unpaired rows for"
                f" the {reader} of {run.method}: lower it and the largest budget{more}"
            )


def of_shard(experiment: Experiment, runs: Sequence[Run]) -> list[int]:
    """Numbers of the runs in the experiment's shard. Shards share out the seeds of each method and
    budget, which take as long as each other.
    """
    alike = sorted(range(len(runs)), key=lambda number: (runs[number].budget, runs[number].method))
    return alike[experiment.common.sweep.part]


def to_do(experiment: Experiment, runs: Sequence[Run]) -> list[int]:
    """Numbers of those of `runs` that are not finished, or of all under `overwrite`."""
    return [
        number for number, run in enumerate(runs) if experiment.common.overwrite or not run.finished
    ]


def describe(
    experiment: Experiment, runs: Sequence[Run], elsewhere: Sequence[Mapping[str, object]] = ()
) -> str:
    """How many of these runs are to do, and about how long they take on the sweep's workers, in a
    line.

    A run is expected to take as long as the finished runs of its method at the nearest budget took,
    or, where there are none here, as those of `elsewhere`, on whatever machine that was.

    Args:
        experiment, runs: what is swept.
        elsewhere: result rows of runs that do not lie here, such as kept ones.
    """
    waiting = [runs[number] for number in to_do(experiment, runs)]
    text = f"{len(waiting)} of {len(runs)} runs are to do"
    if not waiting:
        return text
    here, there = (
        pd.DataFrame(rows).reindex(columns=["method", "budget", "seconds"]).dropna()
        for rows in (finished_rows(Path(experiment.common.runs_dir) / experiment.name), elsewhere)
    )
    expected = expected_seconds(
        waiting, pd.concat([here, there[~there["method"].isin(here["method"])]])
    )
    unknown = sum(math.isnan(seconds) for seconds in expected)
    if unknown == len(waiting):
        return f"{text}; how long they take is unknown until the first are in"
    sweep = experiment.common.sweep
    workers = sweep.workers * (sweep.jobs if sweep.submit else 1)
    known = sum(seconds for seconds in expected if not math.isnan(seconds)) / workers
    text += f"; about {_duration(known)}" + (f" with {workers} workers" if workers > 1 else "")
    return text + (
        f", and {unknown} runs of methods that have none finished yet" if unknown else ""
    )


def expected_seconds(runs: Sequence[Run], finished: pd.DataFrame) -> list[float]:
    """Median seconds of the finished runs (`method`, `budget`, `seconds`) of each run's method at
    the budget nearest by ratio.

    NaN for a method without a finished run.
    """
    out = []
    for run in runs:
        mine = finished[finished["method"] == run.method]
        far = abs((mine["budget"] / run.budget).map(math.log))
        out.append(float(mine["seconds"][far == far.min()].median()) if len(mine) else math.nan)
    return out


def _duration(seconds: float) -> str:
    """`40 s`, `12 min`, `3 h 20 min`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
