from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from gera_lightning.config import Experiment, load
from gera_lightning.experiment.plan import describe, expected_seconds, plan
from gera_lightning.experiment.results import finished_rows
from gera_lightning.experiment.run import Run, execute
from gera_lightning.geometry import neighbors
from gera_lightning.utils.errors import UserError

FILES: dict[str, dict[str, Any]] = {
    "small.yaml": {
        "data": {"synthetic": {"items": 90, "dim_a": 7, "dim_b": 6, "features": 16}},
        "budgets": [10, 20],
        "methods": ["twin", "ridge"],
        "tuning": {"folds": 2, "max_trials": 2},
        "trainer": {"max_steps": 2},
        "sweep": {"seeds": [0, 1], "methods": ["twin", "ridge"]},
    },
    "methods/ridge.yaml": {"closed_form": {"class": "gera_lightning.aligners.ridge.Ridge"}},
    "methods/geometric.yaml": {"losses": {"geometric": "geometric"}},
    "methods/twin.yaml": {},
    "methods/filtered.yaml": {
        "closed_form": {"class": "gera_lightning.aligners.ridge.Ridge"},
        "filters": {
            "b": [[], [{"class": "gera_lightning.filters.diffusion.GraphDiffusion", "k": 4}]]
        },
    },
}


@pytest.fixture
def experiment(tmp_path: Path, write_yaml):
    write_yaml(tmp_path / "experiments", FILES)

    def make(*, sweep: bool = True, **overrides: Any) -> Experiment:
        settings = {
            "runs_dir": str(tmp_path / "runs"),
            "cache_dir": str(tmp_path / "cache"),
            **overrides,
        }
        words = {key.replace("__", "."): value for key, value in settings.items()}
        return load("small", words, folder=tmp_path / "experiments", sweep=sweep)

    return make


def items(experiment) -> int:
    """Train items of the experiment with a row in both stores."""
    run = plan(experiment())[0]
    return len(set(run.stores.a.rows["item"].iloc[run.stores.split.train_a]))


def drawn(run: Run):
    return run.stores.sample_pairs(run.config, run.budget, run.seed)


# ---- the neighbour index ----


def test_auto_is_the_same_run_as_flat_where_it_is_exact(experiment, monkeypatch):
    def hashes(**settings: str) -> dict[str, str]:
        loaded = experiment(sweep=False, methods=["geometric", "ridge"], budgets=[10], **settings)
        return {run.method: run.hash for run in plan(loaded)}

    flat = hashes(graph__index="Flat")
    assert hashes() == flat
    monkeypatch.setattr(neighbors, "EXACT_POINTS", 20)
    assert hashes(graph__index="Flat") == flat
    assert hashes()["geometric"] != flat["geometric"]
    assert hashes()["ridge"] == flat["ridge"]  # which reads no graph settings


# ---- extra budgets ----


def test_extra_budgets_are_one_methods_alone_and_of_sweeps_alone(experiment):
    ordinary = {run.hash for run in plan(experiment())}
    loaded = experiment(sweep__extra_budgets={"twin": [40, 30, 20]})
    runs = plan(loaded)
    assert [(r.method, r.budget, r.seed) for r in runs[8:]] == [
        ("twin", n, s) for n in (30, 40) for s in (0, 1)
    ]
    assert {
        run.hash for run in runs[:8]
    } == ordinary  # 20 is an ordinary budget: no run of it is added, none changes
    assert (
        len(plan(experiment(sweep=False, seeds=[0, 1], sweep__extra_budgets={"twin": [40]}))) == 8
    )
    assert len(plan(experiment(sweep__only="ridge", sweep__extra_budgets={"twin": [40]}))) == 4


def test_an_extra_budget_goes_on_with_its_seeds_pairs_and_takes_them_from_the_pools(experiment):
    most = items(experiment)
    runs = {
        (r.budget, r.seed): drawn(r)
        for r in plan(experiment(sweep__extra_budgets={"twin": [30, most]}))
        if r.method == "twin"
    }
    for seed in (0, 1):
        small = runs[20, seed]
        for budget in (30, most):
            large = runs[budget, seed]
            for name in ("items", "pairs_a", "pairs_b"):
                assert len(getattr(large, name)) == budget
                np.testing.assert_array_equal(getattr(large, name)[:20], getattr(small, name))
        assert len(runs[30, seed].pool_a) < len(small.pool_a)
        assert len(runs[most, seed].pool_a) == len(runs[most, seed].pool_b) == 0


def test_a_method_without_use_for_pools_runs_on_all_train_items(experiment):
    most = items(experiment)
    [run] = [
        r
        for r in plan(experiment(sweep__extra_budgets={"twin": [most]}))
        if r.budget == most and r.seed == 0
    ]
    row = execute(run)
    assert row["budget"] == most
    assert 0 < row["ab/r@10"] <= 1


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"twn": [30]}, r"sweep\.extra_budgets\.twn.*'twin'"),
        ({"twin": [1]}, r"sweep\.extra_budgets\.twin=\[1\]"),
        ({"twin": []}, r"sweep\.extra_budgets\.twin=\[\]"),
        ({"twin": [30, 30]}, "none twice"),
        ({"twin": [9000]}, r"sweep\.extra_budgets=.*9000 pairs are more than the \d+ train items"),
    ],
)
def test_impossible_extra_budgets_are_refused(experiment, extra, words):
    with pytest.raises(UserError, match=words):
        plan(experiment(sweep__extra_budgets=extra))


@pytest.mark.parametrize(
    ("method", "reader"), [("geometric", "losses.geometric"), ("filtered", "filters")]
)
def test_a_method_that_reads_unpaired_rows_is_refused_where_there_are_none(
    experiment, method, reader
):
    most = items(experiment)
    chosen = {"sweep__methods": [method], "sweep__seeds": [0]}
    with pytest.raises(
        UserError,
        match=rf"data\.reserved_pairs={most} leaves no unpaired rows for the {reader} of {method}",
    ):
        plan(experiment(**chosen, sweep__extra_budgets={method: [most]}))
    assert len(plan(experiment(**chosen, sweep__extra_budgets={method: [most - 10]}))) == 3


def test_a_handful_of_unpaired_rows_is_told(experiment, caplog):
    count = items(experiment)
    plan(experiment(sweep=False, methods=["filtered"], data__reserved_pairs=count - 20))
    assert "filtered: 10 unpaired rows are too few for its filters" in caplog.text
    caplog.clear()
    plan(experiment(sweep=False, methods=["filtered", "ridge"], data__synthetic__items=200))
    assert not caplog.text


def test_a_budget_beyond_a_given_reserve_is_refused(experiment):
    with pytest.raises(UserError, match=r"20 must lie between 2 and data\.reserved_pairs=15"):
        plan(experiment(data__reserved_pairs=15))


def test_a_reserve_beyond_the_items_is_named_not_the_budgets(experiment):
    with pytest.raises(UserError, match=f"{items(experiment)} train items") as caught:
        plan(experiment(data__reserved_pairs=5000))
    assert (caught.value.key, caught.value.value) == ("data.reserved_pairs", 5000)


def test_choices_of_filters_count_as_settings(experiment):
    assert plan(experiment(sweep__methods=["filtered"], tuning__max_trials=2))
    with pytest.raises(
        UserError,
        match=(
            r"filters: 2 combinations are tried, more than tuning\.max_trials=1: .*\(method"
            r" filtered\)"
        ),
    ):
        plan(experiment(sweep__methods=["filtered"], tuning__max_trials=1))


# ---- variants ----


def test_a_variant_is_its_preset_with_some_keys_changed(experiment):
    variants = {
        "plain_k4": {"of": "geometric", "graph.k": 4, "data.shared_pools": True},
        "off": {"of": "geometric", "losses": {"geometric": None}},
    }
    loaded = experiment(sweep=False, methods=["geometric", "twin", *variants], variants=variants)
    assert (loaded.methods["plain_k4"].graph.k, loaded.methods["geometric"].graph.k) == (4, 16)
    assert loaded.methods["plain_k4"].data.shared_pools
    assert loaded.methods["off"] == loaded.methods["twin"]
    runs = {(r.method, r.budget): r for r in plan(loaded)}
    assert runs["plain_k4", 10].folder.parent.name == "plain_k4"
    np.testing.assert_array_equal(
        drawn(runs["plain_k4", 10]).items, drawn(runs["geometric", 10]).items
    )
    assert len(drawn(runs["plain_k4", 10]).pool_a) > len(drawn(runs["geometric", 10]).pool_a)
    assert runs["off", 20].hash == runs["twin", 20].hash


def test_a_sweep_of_an_experiment_with_variants_runs_its_own_methods(experiment):
    variants = {"plain_k4": {"of": "geometric", "graph.k": 4}}
    assert experiment(
        sweep__methods=[], variants=variants, methods=["twin", "plain_k4"]
    ).common.methods == ["twin", "plain_k4"]


@pytest.mark.parametrize(
    ("variant", "words"),
    [
        ({"graph.k": 4}, r"variants\.v\.of=None"),
        ({"of": "geometrik"}, r"geometrik.*'geometric'"),
        ({"of": "geometric", "graph.kk": 4}, r"graph\.kk.*'graph\.k'"),
        ({"of": "geometric", "budgets": [10]}, "budgets is no setting of a method"),
        (
            {"of": "geometric", "data.reserved_pairs": 30},
            r"data\.reserved_pairs=30 of method v.*all methods",
        ),
        ({"of": "geometric", "data.split": "dev"}, r"data\.split='dev' of method v.*all methods"),
    ],
)
def test_impossible_variants_are_refused(experiment, variant, words):
    with pytest.raises(UserError, match=words):
        experiment(sweep=False, methods=["v"], variants={"v": variant})


# ---- how long it takes ----


def finish(run: Run, seconds: float | None) -> None:
    run.folder.mkdir(parents=True)
    row = {
        "method": run.method,
        "budget": run.budget,
        **({} if seconds is None else {"seconds": seconds}),
    }
    (run.folder / "metrics.json").write_text(json.dumps(row))


def test_expected_time_is_the_median_at_the_budget_nearest_by_ratio(experiment):
    runs = [r for r in plan(experiment(sweep__extra_budgets={"twin": [35]})) if r.seed == 0]
    finished = pd.DataFrame(
        [("twin", 10, 1.0), ("twin", 10, 2.0), ("twin", 10, 9.0), ("twin", 100, 50.0)],
        columns=["method", "budget", "seconds"],
    )
    found = {
        (r.method, r.budget): seconds
        for r, seconds in zip(runs, expected_seconds(runs, finished), strict=True)
    }
    assert found["twin", 10] == found["twin", 20] == 2.0
    assert found["twin", 35] == 50.0  # 35 is nearer to 100 than to 10 by ratio
    assert np.isnan([found["ridge", 10], found["ridge", 20]]).all()


def test_the_time_of_what_is_to_do_is_said_where_it_is_known(experiment):
    loaded = experiment(sweep__workers=2)
    runs = plan(loaded)
    assert (
        describe(loaded, runs)
        == "8 of 8 runs are to do; how long they take is unknown until the first are in"
    )
    finish(runs[0], 600.0)  # twin at 10 pairs
    finish(runs[1], None)  # a row of an older version
    assert (
        describe(loaded, runs)
        == "6 of 8 runs are to do; about 15 min with 2 workers, and 3 runs of methods that have"
        " none finished yet"
    )
    submitted = experiment(sweep__workers=2, sweep__jobs=3, sweep__submit="local")
    assert "; about 5 min with 6 workers," in describe(submitted, runs)
    finish(runs[3], 5.0)
    assert describe(experiment(), runs) == "5 of 8 runs are to do; about 30 min"
    assert len(finished_rows(runs[0].folder.parents[1])) == 3
    assert (
        describe(experiment(overwrite=True, sweep__only="ridge"), runs[3:4])
        == "1 of 1 runs are to do; about 5 s"
    )
    for run in runs:
        if not run.finished:
            finish(run, 1.0)
    assert describe(loaded, runs) == "0 of 8 runs are to do"


def test_before_the_first_run_those_elsewhere_say_how_long_it_takes(experiment):
    loaded = experiment()
    runs = plan(loaded)
    rows = [
        {"method": method, "budget": budget, "seconds": 60.0}
        for method in ("twin", "ridge")
        for budget in (10, 20)
    ]
    assert describe(loaded, runs, rows) == "8 of 8 runs are to do; about 8 min"
    finish(runs[0], 600.0)  # what ran here counts more
    assert runs[0].method == "twin"
    assert describe(loaded, runs, rows) == "7 of 8 runs are to do; about 34 min"


# ---- steps by the number of pairs ----


def test_a_run_has_steps_for_the_least_passes_over_its_pairs(experiment):
    runs = {
        run.budget: run
        for run in plan(experiment(batch__min_epochs=3, batch__pairs=8))
        if run.method == "twin"
    }
    assert {budget: run.config.trainer.max_steps for budget, run in runs.items()} == {
        10: 3 * 2,
        20: 3 * 3,
    }


def test_where_the_steps_are_enough_already_a_run_is_the_same(experiment):
    def hashes(**words: Any) -> dict[int, str]:
        return {
            run.budget: run.hash
            for run in plan(experiment(batch__pairs=10, **words))
            if run.method == "twin"
        }

    plain, longer, named = hashes(), hashes(batch__min_epochs=2), hashes(trainer__max_steps=4)
    assert longer[10] == plain[10]
    assert longer[20] == named[20] != plain[20]


def test_passes_below_none_are_refused(experiment):
    with pytest.raises(UserError, match=r"batch\.min_epochs=-1 must be at least 0"):
        experiment(batch__min_epochs=-1)


def test_test_items_of_one_store_alone_are_refused_before_anything_runs(
    make_store, tmp_path, write_yaml
):
    x = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
    split = ["test" if n % 4 == 0 else "train" for n in range(40)]
    for name in "ab":
        items = [f"i{n}-{name}" if n % 4 == 0 else f"i{n}" for n in range(40)]
        make_store(name, x, item=items, split=split)
    write_yaml(
        tmp_path,
        {
            "experiments/small.yaml": {
                "data": {s: str(tmp_path / s) for s in "ab"},
                "budgets": [10],
                "methods": ["ridge"],
            }
        },
    )
    write_yaml(tmp_path, {"experiments/methods/ridge.yaml": FILES["methods/ridge.yaml"]})
    with pytest.raises(UserError, match="no test item has a row in both stores"):
        plan(load("small", folder=tmp_path / "experiments"))


def test_more_pairs_than_kernels_have_room_for_are_refused_before_anything_runs(
    experiment, monkeypatch
):
    kernel = {"class": "gera_lightning.aligners.kernel_ridge.KernelRidge"}
    assert plan(experiment(sweep=False, methods=["ridge"], closed_form=kernel))
    monkeypatch.setattr("gera_lightning.aligners.kernel_ridge.MATRICES", 10**12)
    with pytest.raises(
        UserError, match=r"^pairs=20 .*their kernel matrices take about .*\(method ridge\)$"
    ):
        plan(experiment(sweep=False, methods=["ridge"], closed_form=kernel))
