from __future__ import annotations

import json
import re
import sys
from collections import Counter
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from gera_lightning.commands.train import train
from gera_lightning.config import Experiment, load
from gera_lightning.experiment import run as running
from gera_lightning.experiment import runner
from gera_lightning.experiment.plan import of_shard
from gera_lightning.experiment.results import collect
from gera_lightning.experiment.run import Run
from gera_lightning.experiment.runner import plan, run_experiment
from gera_lightning.report.outcome import summarize, undertrained
from gera_lightning.utils.errors import UserError

FILES: dict[str, dict[str, Any]] = {
    "small.yaml": {
        "data": {"synthetic": {"items": 90, "dim_a": 7, "dim_b": 6, "features": 16}},
        "budgets": [20, 10],
        "seeds": [1, 0],
        "methods": ["ridge", "procrustes"],
        "tuning": {"folds": 2, "max_trials": 2},
    },
    "methods/ridge.yaml": {"closed_form": {"class": "gera_lightning.aligners.ridge.Ridge"}},
    "methods/procrustes.yaml": {
        "closed_form": {"class": "gera_lightning.aligners.procrustes.Procrustes"}
    },
    "methods/geometric.yaml": {"losses": {"geometric": "geometric"}},
    "methods/twin.yaml": {},
}


def small(tmp_path: Path, *, sweep: bool = False, **overrides: Any) -> Experiment:
    settings = {
        "runs_dir": str(tmp_path / "runs"),
        "cache_dir": str(tmp_path / "cache"),
        **overrides,
    }
    return load(
        "small",
        {key.replace("__", "."): value for key, value in settings.items()},
        folder=tmp_path / "experiments",
        sweep=sweep,
    )


@pytest.fixture
def experiment(tmp_path: Path, write_yaml):
    write_yaml(tmp_path / "experiments", FILES)

    return partial(small, tmp_path)


# ---- the plan ----


def test_every_method_runs_at_every_budget_and_seed(experiment):
    runs = plan(experiment())
    assert sorted((r.method, r.budget, r.seed) for r in runs) == sorted(
        (m, b, s) for m in ("ridge", "procrustes") for b in (10, 20) for s in (0, 1)
    )
    assert len({r.hash for r in runs}) == len({r.folder for r in runs}) == 8
    assert {r.folder.parent.parent.name for r in runs} == {"small"}


def test_budgets_are_nested_and_the_pools_are_those_of_the_seed(experiment):
    drawn = {
        (r.budget, r.seed): r.stores.sample_pairs(r.config, r.budget, r.seed)
        for r in plan(experiment(methods=["ridge"]))
    }
    for seed in (0, 1):
        small, large = drawn[10, seed], drawn[20, seed]
        np.testing.assert_array_equal(large.items[:10], small.items)
        np.testing.assert_array_equal(large.pairs_a[:10], small.pairs_a)
        np.testing.assert_array_equal(large.pool_a, small.pool_a)
        np.testing.assert_array_equal(large.pool_b, small.pool_b)
    assert not np.array_equal(drawn[20, 0].items, drawn[20, 1].items)


def test_a_run_keeps_its_folder_when_only_where_and_what_else_runs_changes(experiment, tmp_path):
    [run] = plan(experiment(methods=["ridge"], budgets=[10], seeds=[0]))
    [other] = plan(
        experiment(methods=["ridge"], budgets=[10], seeds=[0], runs_dir=str(tmp_path / "elsewhere"))
    )
    assert other.hash == run.hash
    assert run.hash in {r.hash for r in plan(experiment())}
    data = (
        {"center": False},
        {"reserved_pairs": 25},
        {"synthetic__noise": 0.6},
        {"split": "dev"},
        {"shared_pools": True},
        {"extra_views": True},
    )
    changes = [
        {"tuning__max_trials": 3},
        *({f"data__{key}": value for key, value in change.items()} for change in data),
    ]
    for change in changes:
        [changed] = plan(experiment(methods=["ridge"], budgets=[10], seeds=[0], **change))
        assert changed.hash != run.hash, change


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"budgets": [10, 5000]}, "5000 pairs are more than the"),
        ({"budgets": [10], "data__reserved_pairs": 5}, "data.reserved_pairs=5"),
        ({"budgets": [4], "tuning__folds": 5}, "tuning.folds=5"),
        ({"data__synthetic": None}, "data.a is empty"),
        (
            {"data__synthetic": None, "data__a": "nowhere", "data__b": "nowhere"},
            "no embedding store at 'nowhere'",
        ),
        ({"closed_form__smallest": -1.0, "methods": ["ridge"]}, r"smallest=-1\.0.*method ridge"),
    ],
)
def test_mistakes_are_refused_before_anything_runs(
    experiment, monkeypatch, tmp_path, overrides, words
):
    monkeypatch.setattr(runner, "execute", lambda *_: pytest.fail("a run was executed"))
    with pytest.raises(UserError, match=words):
        run_experiment(experiment(**overrides))
    assert not (tmp_path / "runs").exists()


def test_a_geometric_loss_without_unpaired_rows_is_refused_and_its_twin_is_not(experiment):
    [one] = plan(experiment(methods=["ridge"], budgets=[10], seeds=[0]))
    matched = len(set(one.stores.a.rows["item"].iloc[one.stores.split.train_a]))
    everything = {"budgets": [matched], "seeds": [0]}
    with pytest.raises(UserError, match=r"no unpaired rows for the losses\.geometric of"):
        plan(experiment(methods=["geometric"], **everything))
    assert len(plan(experiment(methods=["twin"], **everything))) == 1
    assert (
        len(plan(experiment(methods=["geometric"], batch__paired_anchors=True, **everything))) == 1
    )


# ---- running ----


def fake_row(run: Run) -> dict[str, Any]:
    row: dict[str, Any] = {
        "experiment": "small",
        "method": run.method,
        "budget": run.budget,
        "seed": run.seed,
        "config_hash": run.hash,
    }
    for direction in ("ab", "ba"):
        row |= {f"{direction}/{m}": 0.5 for m in ("r@1", "r@10", "chance@10")} | {
            f"{direction}/median_rank": 3.0
        }
    return {**row, "seconds": 0.1}


def write_row(run: Run, **more: Any) -> dict[str, Any]:
    row = {**fake_row(run), **more}
    run.folder.mkdir(parents=True, exist_ok=True)
    (run.folder / "metrics.json").write_text(json.dumps(row))
    return row


@pytest.fixture
def executed(monkeypatch) -> list[Run]:
    """Runs that `execute` was called with; each leaves a result and nothing else."""
    done: list[Run] = []

    def execute(run: Run, progress: Any) -> dict[str, Any]:
        done.append(run)
        progress("training", 1, 2)
        return write_row(run)

    monkeypatch.setattr(runner, "execute", execute)
    return done


def test_stores_without_a_common_item_are_refused_by_that_name(experiment, make_store, tmp_path):
    x = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    paths = {
        f"data__{side}": str(make_store(side, x, item=[f"{side}{n}" for n in range(40)]).path)
        for side in "ab"
    }
    with pytest.raises(
        UserError,
        match=r"no train item has a row in both stores .*carry the same `item`; gera doctor",
    ):
        run_experiment(experiment(data__synthetic=None, **paths))


def test_a_damaged_result_is_named(experiment, executed):
    run_experiment(experiment())
    record = plan(experiment())[0].folder / "metrics.json"
    record.write_text(record.read_text()[:10])
    with pytest.raises(
        UserError,
        match=(
            rf"{re.escape(str(record))} is no result .*: remove {re.escape(str(record.parent))}"
            r" and run that again"
        ),
    ):
        run_experiment(experiment())


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"methods": ["ridge"]}, r"sweep\.methods=\[\.\.\.\], or sweep\.only"),
        ({"seeds": [3]}, r"sweep\.seeds=\[3\]"),
    ],
)
def test_a_sweep_refuses_what_would_do_nothing_in_it(experiment, tmp_path, overrides, words):
    experiment()
    with pytest.raises(UserError, match=words):
        small(tmp_path, sweep=True, **overrides)


def names(runs: list[Run]) -> list[tuple[str, int, int]]:
    return [(r.method, r.budget, r.seed) for r in runs]


def test_finished_runs_are_skipped_partial_ones_are_not(experiment, executed):
    run_experiment(experiment())
    planned = names(plan(experiment()))
    assert names(executed) == planned
    executed.clear()
    run_experiment(experiment())
    assert not executed
    gone = plan(experiment())[3]
    gone.folder.rename(gone.partial_folder)
    run_experiment(experiment())
    assert names(executed) == [planned[3]]
    executed.clear()
    run_experiment(experiment(budgets=[20, 10, 15]))
    assert sorted(names(executed)) == sorted(
        (m, 15, s) for m in ("ridge", "procrustes") for s in (0, 1)
    )
    executed.clear()
    run_experiment(experiment(overwrite=True))
    assert names(executed) == planned


def test_results_are_the_finished_runs_of_all_sweeps_and_the_outcome_those_of_this_one(
    experiment, executed, tmp_path
):
    run_experiment(experiment())
    loaded = experiment(budgets=[10], methods=["ridge"], data__reserved_pairs=20)
    outcome = summarize(loaded, run_experiment(loaded))
    assert [(r.method, r.budget, r.seed) for r in outcome.results.itertuples()] == [
        ("ridge", 10, s) for s in outcome.results["seed"]
    ]
    assert len(outcome.results) == 2
    folder = tmp_path / "runs" / "small"
    assert (outcome.folder, outcome.curve) == (folder, folder / "curve.png")
    assert outcome.curve.is_file()
    lines = (folder / "results.jsonl").read_text().splitlines()
    assert len(lines) == 8
    assert sorted(json.loads(line)["config_hash"] for line in lines) == sorted(
        r.hash for r in plan(experiment())
    )
    assert "ridge" in outcome.table
    assert "procrustes" not in outcome.table


def test_results_are_rebuilt_from_finished_folders_alone(tmp_path):
    for name, value in (("ridge/b10-s0-a", 1), ("cca/b10-s0-b", 2), ("cca/b20-s0-c.partial", 3)):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "metrics.json").write_text(json.dumps({"value": value}, indent=1))
    (tmp_path / "results.jsonl").write_text("what an older version left\n")
    path = collect(tmp_path)
    assert path == tmp_path / "results.jsonl"
    assert [json.loads(line)["value"] for line in path.read_text().splitlines()] == [2, 1]
    pd.testing.assert_frame_equal(pd.read_json(path, lines=True), pd.DataFrame({"value": [2, 1]}))


def test_without_a_terminal_progress_is_one_line_a_run(experiment, executed):
    out = StringIO()
    run_experiment(experiment(seeds=[0]), Console(file=out, width=100))
    lines = out.getvalue().splitlines()
    assert [line.split()[:3] for line in lines] == [
        [r.method, f"b{r.budget}", f"s{r.seed}"] for r in executed
    ]
    assert all("R@10 0.500 / 0.500" in line for line in lines)
    again = StringIO()
    run_experiment(experiment(seeds=[0]), Console(file=again, width=100))
    assert again.getvalue() == "4 of 4 runs are finished already (overwrite=true runs them again)\n"


def test_on_a_terminal_the_bars_count_runs_and_steps(experiment, executed):
    out = StringIO()
    run_experiment(experiment(seeds=[0]), Console(file=out, width=120, force_terminal=True))
    assert "4/4" in out.getvalue()
    assert "run 4 of 4" in out.getvalue()


# ---- sweeps ----


def test_a_sweep_takes_all_presets_and_its_own_seeds_or_what_is_named(experiment, tmp_path):
    experiment()
    everything = small(tmp_path, sweep=True, sweep__seeds=[4, 7])
    assert everything.common.methods == ["geometric", "procrustes", "ridge", "twin"]
    assert everything.common.seeds == [4, 7]
    assert small(tmp_path, sweep=True, sweep__only="ridge, procrustes").common.methods == [
        "ridge",
        "procrustes",
    ]
    assert small(
        tmp_path, sweep=True, sweep__only="quick", sweep__quick=["ridge"]
    ).common.methods == ["ridge"]
    with pytest.raises(UserError, match=r"ridgge.*ridge"):
        small(tmp_path, sweep=True, sweep__only="ridgge")
    with pytest.raises(UserError, match=r"sweep.shard='3/2'"):
        small(tmp_path, sweep=True, sweep__shard="3/2")


def test_shards_take_as_many_seeds_of_each_method(experiment, tmp_path):
    """A fast and a slow method by turns on two workers: one of them would have all that is slow."""
    experiment()
    taken = []
    for shard in ("1/2", "2/2"):
        loaded = small(
            tmp_path,
            sweep=True,
            sweep__only="ridge,procrustes",
            sweep__seeds=[0, 1, 2, 3],
            sweep__shard=shard,
        )
        runs = plan(loaded)
        mine = [runs[number] for number in of_shard(loaded, runs)]
        counts = Counter((run.method, run.budget) for run in mine)
        assert set(counts.values()) == {2}
        assert len(counts) == 2 * len(loaded.common.budgets)
        taken += [(run.method, run.budget, run.seed) for run in mine]
    assert len(set(taken)) == len(taken) == len(runs)


def test_shards_part_the_runs_whatever_is_finished(experiment, tmp_path):
    experiment()
    seen: list[str] = []
    for shard in ("1/3", "2/3", "3/3"):
        loaded = small(
            tmp_path,
            sweep=True,
            sweep__only="ridge,procrustes",
            sweep__seeds=[0, 1],
            sweep__shard=shard,
        )
        before = {run.folder for run in plan(loaded) if run.finished}
        run_experiment(loaded)
        after = {run.folder for run in plan(loaded) if run.finished}
        assert not before & (after - before)
        seen += [str(folder) for folder in after - before]
    assert len(seen) == len(set(seen)) == 8
    assert all(run.finished for run in plan(loaded))


def test_a_dry_run_lists_what_would_run_and_runs_nothing(experiment, tmp_path, capsys):
    experiment()
    loaded = small(tmp_path, sweep=True, sweep__only="ridge", sweep__seeds=[0], sweep__dry_run=True)
    assert runner.run_sweep(loaded, ["small"]) is None
    out = capsys.readouterr().out
    assert out.count("ridge b") == 2
    assert "2 of 2 runs are to do" in out
    assert not any(run.folder.exists() for run in plan(loaded))


def test_before_the_first_run_its_kept_results_say_how_long_a_sweep_takes(
    experiment, tmp_path, monkeypatch, capsys
):
    experiment()
    loaded = small(tmp_path, sweep=True, sweep__only="ridge", sweep__seeds=[0], sweep__dry_run=True)
    rows = [{"method": "ridge", "budget": 10, "seconds": 60.0}]
    monkeypatch.setattr(
        runner, "kept_rows", lambda path: rows if path.name == f"{loaded.name}.zip" else []
    )
    runner.run_sweep(loaded, ["small"])
    assert "2 of 2 runs are to do; about 2 min" in capsys.readouterr().out


def test_a_run_that_fails_is_named_and_stops_no_other(experiment, monkeypatch):
    honest = runner.execute

    def broken(run: Run, progress: Any) -> dict[str, Any]:
        if run.method == "ridge" and run.budget == 10 and run.seed == 0:
            raise FloatingPointError("planted")
        return honest(run, progress)

    monkeypatch.setattr(runner, "execute", broken)
    screen = Console(file=StringIO(), width=200)
    with pytest.raises(
        UserError,
        match=(
            r"1 of 8 runs failed.*ridge b10 s0 \(FloatingPointError: planted, see .*error\.txt\)$"
        ),
    ):
        run_experiment(experiment(), screen)
    runs = plan(experiment())
    assert sum(run.finished for run in runs) == 7
    assert "ridge b10 s0" in screen.file.getvalue()
    assert len((runs[0].folder.parents[1] / "results.jsonl").read_text().splitlines()) == 7
    monkeypatch.setattr(runner, "execute", honest)
    assert len(run_experiment(experiment())) == 8


def test_an_unexpected_failure_leaves_its_traceback_until_the_run_is_whole(experiment, monkeypatch):
    experiment(methods=["ridge"], budgets=[10], seeds=[0])
    loaded = experiment(methods=["ridge"], budgets=[10], seeds=[0])
    [run] = plan(loaded)
    with monkeypatch.context() as patch:
        patch.setattr(running, "evaluate", lambda *_: 1 // 0)
        screen = Console(file=StringIO(), width=300)
        with pytest.raises(UserError, match=r"ZeroDivisionError: .*, see .*\.partial/error\.txt"):
            run_experiment(loaded, screen)
    kept = run.partial_folder / "error.txt"
    assert f"see {kept}" in screen.file.getvalue().replace("\n", "")
    assert "1 // 0" in kept.read_text()
    with monkeypatch.context() as patch:
        patch.setattr(running, "evaluate", lambda *_: (_ for _ in ()).throw(UserError("yours")))
        with pytest.raises(UserError, match=r"\(UserError: yours\)$"):
            run_experiment(loaded)
    assert not kept.exists()
    run_experiment(loaded)
    assert run.finished
    assert not list(run.folder.rglob("error.txt"))


def test_worker_processes_share_a_sweep(experiment, tmp_path, monkeypatch):
    """Two processes of the real command, in a folder of its own."""
    experiment()
    monkeypatch.chdir(tmp_path)
    words = [
        "small",
        "sweep.only=ridge,procrustes",
        "sweep.seeds=[0]",
        f"runs_dir={tmp_path / 'runs'}",
        f"cache_dir={tmp_path / 'cache'}",
        "sweep.workers=2",
    ]
    loaded = load("small", words[1:], sweep=True)
    screen = Console(file=StringIO(), width=200)
    outcome = summarize(loaded, runner.run_sweep(loaded, words, screen))
    assert outcome is not None
    assert len(outcome.results) == 4
    assert all(
        f"{m} b{b} s0" in screen.file.getvalue() for m in ("ridge", "procrustes") for b in (10, 20)
    )


@pytest.mark.parametrize(("gpus", "expected"), [([], [None] * 3), (["4", "7"], ["4", "7", "4"])])
def test_each_worker_has_a_gpu_of_its_own_where_there_are_enough(
    experiment, tmp_path, monkeypatch, gpus, expected
):
    experiment()
    monkeypatch.setattr(runner.distributed, "gpus", lambda: gpus)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    note = (
        "import os, sys; open(sys.argv[1], 'w').write(os.environ.get('CUDA_VISIBLE_DEVICES',"
        " 'none'))"
    )
    monkeypatch.setattr(
        runner,
        "_shard_command",
        lambda words, shard: [sys.executable, "-c", note, str(tmp_path / f"worker{shard[0]}")],
    )
    with pytest.raises(UserError, match="some runs failed"):  # these workers run nothing
        runner.run_sweep(
            small(tmp_path, sweep=True, sweep__only="ridge", sweep__seeds=[0], sweep__workers=3), []
        )
    assert [(tmp_path / f"worker{number}").read_text() for number in (1, 2, 3)] == [
        gpu or "none" for gpu in expected
    ]


def test_a_worker_that_failed_counts_though_results_of_before_are_there(
    experiment, executed, tmp_path, monkeypatch
):
    experiment()
    loaded = small(tmp_path, sweep=True, sweep__only="ridge", sweep__seeds=[0], sweep__workers=2)
    run_experiment(loaded)
    monkeypatch.setattr(
        runner,
        "_shard_command",
        lambda words, shard: [sys.executable, "-c", f"raise SystemExit({shard[0]})"],
    )
    with pytest.raises(
        UserError,
        match=r"exit codes of the workers: 1, 2\); the same command runs only those again",
    ):
        runner.run_sweep(loaded, [])
    loaded.common.overwrite = True
    with pytest.raises(UserError, match=r"workers: 1, 2\); overwrite=true runs all of them again"):
        runner.run_sweep(loaded, [])


# ---- at rest ----


def plateaus(**methods: list[bool | None]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"method": name, "budget": 10, "seed": seed, "converged": rest}
            for name, seeds in methods.items()
            for seed, rest in enumerate(seeds)
        ]
    )


def test_a_method_is_named_where_most_of_its_seeds_still_rose():
    table = plateaus(
        gera=[False, True, False], twin=[False, True], ridge=[None, None], rested=[True, True]
    )
    said = undertrained(pd.concat([table, table.assign(budget=20, converged=True)]), "small")
    assert said.startswith("most runs of gera at 10 pairs")
    assert "trainer.max_steps or batch.min_epochs in the experiment small" in said
    for quiet in (
        plateaus(twin=[False, True]),
        plateaus(ridge=[None]),
        table.drop(columns="converged"),
        table[:0],
    ):
        assert undertrained(quiet, "small") == ""


def test_a_finished_sweep_shows_its_table_though_methods_still_rose(
    experiment, executed, monkeypatch, tmp_path
):
    monkeypatch.setattr(runner, "execute", lambda run, progress: write_row(run, converged=False))
    experiment()
    loaded = small(tmp_path, sweep=True, sweep__only="ridge", sweep__seeds=[0])
    outcome = summarize(loaded, runner.run_sweep(loaded, []))
    assert "ridge" in outcome.table
    assert outcome.note.startswith("most runs of ridge at 10 pairs, ridge at 20 pairs")
    loaded = small(tmp_path, sweep=True, sweep__only="ridge", sweep__seeds=[0], sweep__shard="1/2")
    assert summarize(loaded, runner.run_sweep(loaded, [])).note == ""


def test_the_same_words_are_keyword_arguments(experiment, tmp_path):
    places = {"runs_dir": str(tmp_path / "runs"), "cache_dir": str(tmp_path / "cache")}
    path = str(tmp_path / "experiments" / "small.yaml")
    found = train(path, budgets=[10], methods=["ridge"], tuning={"folds": 3}, **places)
    assert found.results[["method", "budget", "seed"]].to_dict("list") == {
        "method": ["ridge"] * 2,
        "budget": [10] * 2,
        "seed": [1, 0],
    }
    same = plan(
        load(
            path,
            [
                "budgets=[10]",
                "methods=[ridge]",
                "tuning.folds=3",
                *(f"{key}={value}" for key, value in places.items()),
            ],
        )
    )
    assert all(run.finished for run in same)
    arrays = {
        "budgets": np.array([10]),
        "seeds": range(2),
        "methods": ("ridge",),
        "runs_dir": tmp_path / "runs",
    }
    again = train(Path(path), **{**places, **arrays}, tuning={"folds": np.int64(3)})
    assert (
        again.results["config_hash"].sort_values().tolist()
        == found.results["config_hash"].sort_values().tolist()
    )


def test_a_place_that_cannot_hold_runs_is_told_before_the_first(experiment, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(
        UserError,
        match=r"^runs_dir=.*file: .* cannot be made \(Not a directory\): name another place",
    ):
        run_experiment(experiment(runs_dir=str(tmp_path / "file")))


def test_a_misspelt_part_of_a_sweep_is_named(experiment, tmp_path):
    experiment()
    with pytest.raises(UserError, match=r"sweep\.only: 'quik' is no preset; did you mean 'quick'"):
        small(tmp_path, sweep=True, sweep__only="quik")


@pytest.mark.parametrize(
    ("word", "expected"),
    [(["ridge", "procrustes"], ["ridge", "procrustes"]), ("ridge", ["ridge"]), ("", None)],
)
def test_a_part_of_a_sweep_may_be_a_list_or_empty(experiment, tmp_path, word, expected):
    experiment()
    whole = list(small(tmp_path, sweep=True).methods)
    assert list(small(tmp_path, sweep=True, sweep__only=word).methods) == (expected or whole)


def test_a_vector_that_is_not_finite_is_told_before_the_first_run(make_store, tmp_path, write_yaml):
    x = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
    split = ["test" if n % 4 == 0 else "train" for n in range(40)]
    for name in "ab":
        x[8, 1] = np.nan if name == "b" else 0.0  # of a test item
        make_store(name, x, split=split)
    data = {side: str(tmp_path / side) for side in "ab"}
    write_yaml(
        tmp_path,
        {
            "e/small.yaml": {
                "data": data,
                "budgets": [10],
                "methods": ["ridge"],
                "runs_dir": str(tmp_path / "runs"),
            }
        },
    )
    write_yaml(
        tmp_path,
        {"e/methods/ridge.yaml": {"closed_form": {"class": "gera_lightning.aligners.ridge.Ridge"}}},
    )
    with pytest.raises(UserError, match=r"1 vectors that are not finite.*'i0008-b-8'"):
        run_experiment(load("small", folder=tmp_path / "e"))
    assert not (tmp_path / "runs").exists()
