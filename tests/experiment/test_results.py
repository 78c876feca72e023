from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import yaml

from gera_lightning.experiment import results
from gera_lightning.experiment.results import load_sweep
from gera_lightning.utils.errors import UserError


def add(
    folder: Path, method="m", budget=10, seed=0, hash8="h0", when=100, settings=None, **more
) -> None:
    """A finished run."""
    row = {
        "method": method,
        "budget": budget,
        "seed": seed,
        "config_hash": hash8,
        "data_hash": "d",
        "split": "test",
    }
    row |= {"ab/r@10": 0.5, "ba/r@10": 0.3, **more}
    run = folder / method / f"b{budget}-s{seed}-{hash8}"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(
        yaml.safe_dump({"budget": budget, "seed": seed, "settings": settings or "same"})
    )
    (run / "metrics.json").write_text(json.dumps(row))
    os.utime(run / "metrics.json", (when, when))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "exp"
    path.mkdir()
    return path


def kept(folder):
    return {
        (r["method"], r["budget"], r["seed"], r["config_hash"])
        for r in load_sweep(folder).runs.to_dict("records")
    }


def test_all_runs_of_one_kind_are_kept_with_their_folders(folder):
    for method, recall in (("low", 0.2), ("high", 0.6)):
        for seed in (1, 0):
            add(folder, method, 10, seed, **{"ab/r@10": recall})
    found = load_sweep(folder)
    assert (found.name, found.methods, found.budgets, found.seeds) == (
        "exp",
        ["high", "low"],
        [10],
        [0, 1],
    )
    assert found.notes == []
    assert all((path / "metrics.json").is_file() for path in found.runs["folder"])


def test_methods_are_ordered_where_all_of_them_ran(folder):
    """A baseline that ran on more pairs does not come first for that."""
    for method, budget, recall in (("m", 10, 0.4), ("base", 10, 0.2), ("base", 100, 0.9)):
        add(folder, method, budget, **{"ab/r@10": recall})
    assert load_sweep(folder).methods == ["m", "base"]
    add(folder, "late", 200, **{"ab/r@10": 0.95})
    assert load_sweep(folder).methods == ["late", "base", "m"]


def test_other_data_and_another_split_than_the_newest_are_left_out(folder):
    add(folder, seed=0, when=100, data_hash="old")
    add(folder, seed=1, when=150, split="dev")
    add(folder, seed=2, when=200)
    assert kept(folder) == {("m", 10, 2, "h0")}
    assert [note[:20] for note in load_sweep(folder).notes] == [
        "1 run is left out: o",
        "1 run is left out: a",
    ]


def test_runs_of_the_data_asked_for_are_not_displaced_by_newer_ones_of_other_data(folder):
    add(folder, seed=0, when=100, data_hash="mine")
    add(folder, seed=1, when=200, data_hash="other")
    assert [
        row["seed"] for row in load_sweep(folder, {"data_hash": "mine"}).runs.to_dict("records")
    ] == [0]
    assert load_sweep(folder, {"data_hash": "mine"}).notes == [
        "1 run is left out: other data than the experiment's."
    ]
    assert [
        row["seed"] for row in load_sweep(folder, {"data_hash": "none"}).runs.to_dict("records")
    ] == [1]  # there are none: the newest


def test_runs_of_the_split_asked_for_are_not_displaced_by_a_newer_one_for_design_work(folder):
    add(folder, seed=0, when=100)
    add(folder, seed=1, when=200, split="dev")
    wanted = {"data_hash": "d", "split": "test"}
    assert [row["seed"] for row in load_sweep(folder, wanted).runs.to_dict("records")] == [0]
    assert load_sweep(folder, wanted).notes == [
        "1 run is left out: another data.split than the experiment's."
    ]
    assert [
        row["seed"] for row in load_sweep(folder, {"split": "other"}).runs.to_dict("records")
    ] == [1]  # there are none: the newest


def test_runs_of_another_share_of_test_items_are_not_compared(folder):
    for seed, share in ((0, 0.15), (1, 0.05)):
        add(folder, seed=seed, when=100 + seed)
        run = folder / "m" / f"b10-s{seed}-h0"
        (run / "config.yaml").write_text(
            yaml.safe_dump({"budget": 10, "seed": seed, "data": {"test_share": share}})
        )
    assert [row["seed"] for row in load_sweep(folder).runs.to_dict("records")] == [1]
    assert [
        row["seed"] for row in load_sweep(folder, {"test_share": 0.15}).runs.to_dict("records")
    ] == [0]
    assert load_sweep(folder, {"test_share": 0.15}).notes == [
        "1 run is left out: another data.test_share than the experiment's."
    ]


def test_the_newest_settings_of_each_method_and_budget_stay(folder):
    """Two seeds of old settings, one of new: means over both would mix methods."""
    add(folder, seed=0, hash8="old0", when=100, settings="old")
    add(folder, seed=1, hash8="old1", when=101, settings="old")
    add(folder, seed=0, hash8="new0", when=200, settings="new")
    add(folder, seed=0, budget=20, hash8="other", when=50, settings="old")
    assert kept(folder) == {("m", 10, 0, "new0"), ("m", 20, 0, "other")}
    assert "2 runs are left out: older settings" in load_sweep(folder).notes[0]


def test_results_of_older_code_are_not_mixed_with_newer(folder):
    for seed in (0, 1):
        add(folder, seed=seed, hash8="old", when=100)
    add(folder, seed=0, hash8="new", when=200, results=2)
    assert kept(folder) == {("m", 10, 0, "new")}
    add(folder, method="of_before", seed=0, when=50)
    add(
        folder, method="of_before", seed=1, when=60, results=1
    )  # the number that rows without one have
    assert len(kept(folder)) == 3


def test_finished_folders_alone_count_whatever_results_jsonl_says(folder):
    """A sweep that was stopped, or still runs, has none, or one of before."""
    add(folder, seed=0)
    add(folder, seed=1)
    (folder / "results.jsonl").write_text("what an older sweep left\n")
    (folder / "m" / "b10-s1-h0").rename(folder / "m" / "b10-s1-h0.partial")
    assert kept(folder) == {("m", 10, 0, "h0")}
    (folder / "m" / "b10-s0-h0" / "metrics.json").unlink()
    with pytest.raises(UserError, match="no finished run"):
        load_sweep(folder)


def test_a_run_that_another_process_is_replacing_is_passed_over(folder, monkeypatch):
    add(folder, seed=0)
    there = results.finished_records(folder)
    monkeypatch.setattr(
        results,
        "finished_records",
        lambda folder: [folder / "m" / "b10-s1-h0" / "metrics.json", *there],
    )
    assert [row["seed"] for row in results.finished_rows(folder)] == [0]
    assert results.collect(folder).read_text().count("\n") == 1


@pytest.mark.parametrize("text", ["", "{", '{"method": "m"}\n', "[1]\n", "7"])
def test_a_damaged_record_is_named(folder, text):
    add(folder)
    (folder / "m" / "b10-s0-h0" / "metrics.json").write_text(text)
    with pytest.raises(UserError, match=r"m/b10-s0-h0/metrics\.json is no result"):
        load_sweep(folder)
