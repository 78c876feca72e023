"""Whole runs of small experiments: what they leave, how they go on after an interruption, and what
they may not see.
"""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from gera_lightning.aligners import Aligner
from gera_lightning.aligners.ridge import ridge_path
from gera_lightning.config import Experiment, load
from gera_lightning.config.merging import typed
from gera_lightning.data import splits
from gera_lightning.data.store import EmbeddingStore
from gera_lightning.data.training_rows import load_rows
from gera_lightning.experiment import runner
from gera_lightning.experiment.paired_stores import Stores
from gera_lightning.experiment.plan import plan
from gera_lightning.experiment.run import Run, execute
from gera_lightning.experiment.runner import run_experiment
from gera_lightning.report.outcome import summarize
from gera_lightning.training import callbacks, cross_validation, datamodule, fit_trained, warm_start
from gera_lightning.training.batch import HeldOutPairs
from gera_lightning.training.datamodule import AlignmentDataModule
from gera_lightning.training.fit import fit
from gera_lightning.training.fit_trained import stopping_steps
from gera_lightning.training.method import Method
from gera_lightning.training.module import AlignmentModule
from gera_lightning.training.preflight import check
from gera_lightning.training.training_set import TrainingSet
from gera_lightning.training.warm_start import WarmStart
from gera_lightning.utils.errors import UserError
from gera_lightning.utils.progress import ProgressCallback

FILES: dict[str, dict[str, Any]] = {
    "small.yaml": {
        "data": {"synthetic": {"items": 160, "dim_a": 7, "dim_b": 6, "features": 24}},
        "budgets": [10, 14],
        "methods": ["geometric", "twin", "ridge"],
        "head": {"class": "gera_lightning.models.maps.ResidualMLP", "hidden": 8, "dropout": 0.1},
        "dim": 4,
        "optimizer": {"class": "torch.optim.AdamW", "lr": 0.02},
        "batch": {"pairs": 6, "anchors": 8},
        "graph": {"k": 4},
        "tuning": {"folds": 2, "used_folds": 1, "max_trials": 3, "distractors": 20},
        "checkpoint_every_n_steps": 3,
        "trainer": {
            "max_steps": 9,
            "accelerator": "cpu",
            "log_every_n_steps": 1,
        },
    },
    "methods/geometric.yaml": {"losses": {"geometric": "geometric"}},
    "methods/twin.yaml": {},
    "methods/corrected.yaml": {
        "losses": {"geometric": "geometric"},
        "correction": {"class": "csls", "k": 3},
    },
    "methods/paired_anchors.yaml": {
        "losses": {"geometric": "geometric"},
        "batch": {"paired_anchors": True},
    },
    "methods/started.yaml": {
        "losses": {"geometric": "geometric"},
        "init": {"class": "ridge", "direction": "a_to_b"},
    },
    "methods/ridge.yaml": {"closed_form": "ridge"},
    "methods/ridge_csls.yaml": {
        "closed_form": "ridge",
        "correction": "csls",
    },
    "methods/kernel_ridge.yaml": {"closed_form": "kernel_ridge"},
}

KEYS = {
    "experiment",
    "method",
    "budget",
    "seed",
    "config_hash",
    "data_hash",
    "seconds",
    "steps",
    "n_trials",
    "modalities",
    "pool_a",
    "pool_b",
    "chosen",
    "converged",
    "split",
}
KEYS |= {"peak_rss_mb", "version", "results", "foscttm"}
KEYS |= {
    f"{d}/{m}"
    for d in ("ab", "ba")
    for m in ("r@1", "r@5", "r@10", "mrr", "map", "median_rank", "chance@10", "hubness")
}
KEYS |= {
    f"{s}/{m}"
    for s in "ab"
    for m in (
        "knn_overlap",
        "trustworthiness",
        "continuity",
        "label_p@10/before",
        "label_p@10/after",
    )
}


@pytest.fixture
def experiment(tmp_path: Path, write_yaml: Any) -> Callable[..., Experiment]:
    """The small experiment under `tmp_path`, with overrides."""
    write_yaml(tmp_path / "experiments", FILES)

    def make(**overrides: Any) -> Experiment:
        runs, cache = str(tmp_path / "runs"), str(tmp_path / "cache")
        settings = {"budgets": [14], "runs_dir": runs, "cache_dir": cache, **overrides}
        return load(
            "small",
            {key.replace("__", "."): value for key, value in settings.items()},
            folder=tmp_path / "experiments",
        )

    return make


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    handler = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, handler)


def only_run(loaded: Experiment) -> Run:
    [run] = plan(loaded)
    return run


def weights(folder: Path) -> dict[str, Tensor]:
    return safetensors.torch.load_file(folder / "aligner" / "maps.safetensors")


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return set(left) == set(right) and all(torch.equal(left[name], right[name]) for name in left)


def task_of(run: Run, folder: Path) -> TrainingSet:
    rows = load_rows(
        run.stores.a, run.stores.b, run.stores.sample_pairs(run.config, run.budget, run.seed)
    )
    return TrainingSet(
        run.parts, rows, run.stores.split.families, run.seed, folder, lambda *_: None
    )


def data_of(task: TrainingSet, positions: np.ndarray | None = None) -> AlignmentDataModule:
    chosen = np.arange(len(task.rows.items)) if positions is None else positions
    data = AlignmentDataModule.of_training_set(task, chosen, task.config.trainer.max_steps)
    data.setup("fit")
    return data


def started(task: TrainingSet, data: AlignmentDataModule, start: WarmStart) -> AlignmentModule:
    module = AlignmentModule.of_method(task.method, task.seed)
    module.start(data, start)
    return module


# ---- what a run leaves ----


def test_a_sweep_leaves_whole_run_folders_and_result_rows(experiment, tmp_path):
    loaded = experiment(budgets=[10, 14])
    outcome = summarize(loaded, run_experiment(loaded))
    folder = tmp_path / "runs" / "small"
    rows = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    assert len(rows) == len(outcome.results) == 6
    assert outcome.folder == folder
    assert outcome.curve.read_bytes().startswith(b"\x89PNG")
    for row in rows:
        trained = row["method"] != "ridge"
        assert set(row) == KEYS
        assert row["experiment"] == "small"
        assert row["n_trials"] == 3
        assert (row["converged"] is None) == (not trained)
        assert row["chosen"] == (
            {"steps": row["steps"]}
            if trained
            else {"penalty": pytest.approx(row["chosen"]["penalty"])}
        )
        assert (row["steps"] in (1, 4, 9)) if trained else (row["steps"] == 0)
        assert all(
            0 <= row[key] <= 1
            for key in row
            if key.split("/")[-1] in ("r@1", "r@10", "mrr", "chance@10", "knn_overlap", "foscttm")
        )
        run = folder / row["method"] / f"b{row['budget']}-s{row['seed']}-{row['config_hash']}"
        assert json.loads((run / "metrics.json").read_text()) == row
        settings = yaml.safe_load((run / "config.yaml").read_text())
        assert (settings["method"], settings["budget"], settings["seed"]) == (
            row["method"],
            row["budget"],
            row["seed"],
        )
        assert list(run.glob("events.out.tfevents.*"))
        assert (run / "checkpoints" / "last.ckpt").is_file() == trained
        ranks = pd.read_parquet(run / "ranks.parquet")
        assert list(ranks.columns) == ["direction", "row", "item", "rank", "positives", "family"]
        for direction in ("ab", "ba"):
            mine = ranks[ranks["direction"] == direction]
            assert (mine["rank"] <= 10).mean() == row[f"{direction}/r@10"]
            assert (1 / mine["rank"]).mean() == pytest.approx(row[f"{direction}/mrr"])
        assert not list(run.glob("**/*.tmp"))
    assert not list(folder.glob("*/*.partial"))


def test_the_aligner_of_a_run_reproduces_its_ranks(experiment):
    run = only_run(experiment(methods=["corrected"]))
    execute(run)
    aligner, held = Aligner.load(run.folder / "aligner"), run.stores.held_out
    scores = aligner.score(held.a.x, held.b.x).numpy()
    own = scores[
        np.arange(len(scores)),
        [list(held.b.rows["item"]).index(item) for item in held.a.rows["item"]],
    ]
    ranks = 1 + (scores > own[:, None]).sum(1)
    table = pd.read_parquet(run.folder / "ranks.parquet")
    np.testing.assert_array_equal(table[table["direction"] == "ab"]["rank"], ranks)
    facts = {
        "method": "corrected",
        "budget": 14,
        "seed": 0,
        "data_hash": run.stores.data_hash,
        "dim_a": 7,
    }
    assert {key: aligner.about[key] for key in facts} == facts
    assert aligner.encoder("b")["name"] == "synthetic-view-b"


# ---- again ----


def test_a_second_sweep_executes_nothing_and_gives_the_same_results(experiment, monkeypatch):
    loaded = experiment()
    first = summarize(loaded, run_experiment(loaded))

    def never(*_: Any) -> None:
        raise AssertionError("a finished run was executed again")

    monkeypatch.setattr(runner, "execute", never)
    second = summarize(loaded, run_experiment(loaded))
    pd.testing.assert_frame_equal(second.results, first.results)
    with pytest.raises(UserError, match="executed again"):
        run_experiment(experiment(dim=3))  # another setting is another run
    with pytest.raises(UserError, match="executed again"):
        run_experiment(experiment(overwrite=True))


def test_overwriting_runs_again_from_the_start_and_comes_to_the_same(experiment, monkeypatch):
    loaded = experiment(methods=["geometric"])
    execute(only_run(loaded))
    run = only_run(experiment(methods=["geometric"], overwrite=True))
    before = weights(run.folder)
    (run.folder / "left_over.txt").write_text("of the first run")
    run.partial_folder.mkdir()
    (run.partial_folder / "tuning.json").write_text(
        '{"steps": 2}'
    )  # of an interrupted run: not to be gone on from
    steps = []
    execute(run, lambda what, done, total: steps.append((what, done)))
    assert ("fold 1/1", 9) in steps
    assert steps[-1] == ("training", json.loads((run.folder / "metrics.json").read_text())["steps"])
    assert same(weights(run.folder), before)
    assert not (run.folder / "left_over.txt").exists()
    assert not run.partial_folder.exists()


# ---- interrupted ----


def interrupt_at(what: str, step: int) -> ProgressCallback:
    def progress(name: str, done: int, total: int) -> None:
        if name == what and done == step:
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize(
    ("what", "step", "checkpoint"),
    [
        ("fold 1/1", 4, None),
        ("training", 2, None),
        ("training", 5, 3),
        ("training", 6, 3),
        ("training", 8, 6),
        ("training", 9, 6),
    ],
)
def test_an_interrupted_training_goes_on_to_bit_identical_weights(
    experiment, monkeypatch, what, step, checkpoint
):
    """The progress callback comes before the checkpoint's: an interruption at step 6 finds the
    checkpoint of step 3.
    """
    loaded = experiment(methods=["geometric"], tuning__max_trials=1)
    run = only_run(loaded)
    execute(run)
    whole, row = weights(run.folder), json.loads((run.folder / "metrics.json").read_text())
    shutil.rmtree(run.folder)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        execute(run, interrupt_at(what, step))
    assert signal.getsignal(signal.SIGINT) is handler
    assert not run.finished
    assert (run.partial_folder / "tuning.json").exists() == (what == "training")
    kept = run.partial_folder / "checkpoints" / "last.ckpt"
    assert kept.exists() == (checkpoint is not None)
    if checkpoint is not None:
        assert torch.load(kept, weights_only=False)["global_step"] == checkpoint
    seen = []
    again = execute(run, lambda name, done, total: seen.append((name, done)))
    assert [done for name, done in seen if name == "training"] == list(
        range((checkpoint or 0) + 1, 10)
    )
    assert ("fold 1/1", 9) in seen or what == "training"
    assert same(weights(run.folder), whole)
    assert {k: v for k, v in again.items() if k not in ("seconds", "peak_rss_mb")} == {
        k: v for k, v in row.items() if k not in ("seconds", "peak_rss_mb")
    }


@pytest.mark.parametrize("how", ["empty", "cut", "one bit", "another file"])
def test_a_damaged_checkpoint_begins_the_training_again_with_one_line(experiment, caplog, how):
    run = only_run(experiment(methods=["geometric"], tuning__max_trials=1))
    execute(run)
    whole = weights(run.folder)
    shutil.rmtree(run.folder)
    with pytest.raises(KeyboardInterrupt):
        execute(run, interrupt_at("training", 5))
    kept = run.partial_folder / "checkpoints" / "last.ckpt"
    data = kept.read_bytes()
    at = len(data) // 2
    kept.write_bytes(
        {
            "empty": b"",
            "cut": data[:at],
            "one bit": data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :],
            "another file": b"text",
        }[how]
    )
    seen = []
    execute(run, lambda name, done, total: seen.append((name, done)))
    assert [done for name, done in seen if name == "training"] == list(range(1, 10))
    assert same(weights(run.folder), whole)
    assert [str(kept) in record.getMessage() for record in caplog.records].count(True) == 1


def test_a_run_that_went_on_counts_the_seconds_before_it_was_interrupted(experiment, monkeypatch):
    run = only_run(experiment(methods=["twin"], tuning__max_trials=1))
    ticks = iter(range(0, 10_000_000, 10))
    with monkeypatch.context() as patch:
        patch.setattr("gera_lightning.experiment.run.time.perf_counter", lambda: next(ticks))
        with pytest.raises(KeyboardInterrupt):
            execute(run, interrupt_at("training", 6))
    before = float((run.partial_folder / "seconds.txt").read_text())
    assert before >= 50, "ten seconds at each look at the clock"
    assert before < execute(run)["seconds"] < before + 600
    assert not (run.folder / "seconds.txt").exists()


@pytest.mark.parametrize(
    "record",
    [
        *(
            "",
            "{",
            "[1]",
            '{"steps": 4}',
            '{"steps": 4, "values": {}}',
            '{"steps": 5, "values": {}, "converged": null}',
        ),
        '{"steps": 4, "values": {"losses.geometric.weight": 2.0}, "converged": null}',
    ],
)
def test_a_choice_that_is_damaged_or_no_longer_there_is_made_anew(experiment, record):
    run = only_run(experiment(methods=["twin"], tuning__max_trials=3))
    row = execute(run)
    whole = weights(run.folder)
    shutil.rmtree(run.folder)
    with pytest.raises(KeyboardInterrupt):
        execute(run, interrupt_at("training", row["steps"]))
    (run.partial_folder / "tuning.json").write_text(record)
    seen = []
    again = execute(run, lambda name, done, total: seen.append((name, done)))
    assert ("fold 1/1", 9) in seen
    assert [done for name, done in seen if name == "training"] == list(
        range(1, row["steps"] + 1)
    )  # from no checkpoint of before
    assert again["chosen"] == row["chosen"]
    assert same(weights(run.folder), whole)


def test_an_error_inside_training_is_passed_on(experiment):
    def progress(name: str, done: int, total: int) -> None:
        raise RuntimeError("disk full")

    run = only_run(experiment(methods=["twin"]))
    with pytest.raises(RuntimeError, match="disk full"):
        execute(run, progress)
    assert not run.finished


def test_an_interrupted_closed_form_starts_again(experiment):
    run = only_run(experiment(methods=["ridge"]))
    with pytest.raises(KeyboardInterrupt):
        execute(run, interrupt_at("tuning fold", 1))
    assert not run.finished
    execute(run)
    assert run.finished


# ---- leaks ----

METHODS = ["geometric", "corrected", "paired_anchors", "started", "ridge_csls", "kernel_ridge"]


@pytest.fixture
def stores(
    tmp_path: Path, make_store: Callable[..., EmbeddingStore]
) -> Callable[..., dict[str, Any]]:
    """Two stores of 90 items, 20 of them test; `change` moves the vectors of one side of the split.
    Returns the config's overrides.
    """
    rng = np.random.default_rng(0)
    items = [f"i{n:03d}" for n in range(90)]
    side = ["test" if n % 9 in (0, 4) else "train" for n in range(90)]
    latent = rng.normal(size=(90, 3))
    views = {
        s: latent @ rng.normal(size=(3, d)) + 0.3 * rng.normal(size=(90, d))
        for s, d in (("a", 7), ("b", 6))
    }

    def make(change: str | None = None) -> dict[str, Any]:
        moved = np.array(side) == change
        out: dict[str, Any] = {"data__synthetic": None}
        for s, x in views.items():
            x = np.where(moved[:, None], np.random.default_rng(9).normal(size=x.shape), x).astype(
                np.float32
            )
            shutil.rmtree(tmp_path / s, ignore_errors=True)
            out[f"data__{s}"] = str(make_store(s, x, item=items, split=side).path)
        return out

    return make


@pytest.mark.parametrize("method", METHODS)
def test_changing_every_test_row_changes_no_weight(experiment, stores, method):
    found, results = [], []
    for change in (None, "test"):
        run = only_run(experiment(methods=[method], **stores(change)))
        results.append(execute(run))
        found.append(weights(run.folder))
    assert same(*found)
    assert results[0]["data_hash"] != results[1]["data_hash"]
    assert results[0]["chosen"] == results[1]["chosen"]
    assert results[0]["foscttm"] != results[1]["foscttm"]  # the change did reach the evaluation


def leak_into_pools(drawn: splits.Sample, test: np.ndarray) -> splits.Sample:
    return splits.Sample(
        drawn.pairs_a,
        drawn.pairs_b,
        drawn.items,
        np.append(drawn.pool_a, test[0]),
        np.append(drawn.pool_b, test[0]),
    )


def leak_into_pairs(drawn: splits.Sample, test: np.ndarray) -> splits.Sample:
    a, b = (np.append(pairs[:-1], test[0]) for pairs in (drawn.pairs_a, drawn.pairs_b))
    return splits.Sample(a, b, drawn.items, drawn.pool_a, drawn.pool_b)


@pytest.mark.parametrize("leak", [leak_into_pools, leak_into_pairs])
@pytest.mark.parametrize("method", METHODS)
def test_a_planted_leak_would_be_caught(experiment, stores, monkeypatch, method, leak):
    """One test row among the pools, or among the pairs, and the test above fails: the mean alone
    carries it into every weight.
    """
    honest, found = Stores.sample_pairs, []
    monkeypatch.setattr(
        Stores, "sample_pairs", lambda self, *args: leak(honest(self, *args), self.split.test_a)
    )
    for change in (None, "test"):
        run = only_run(experiment(methods=[method], **stores(change)))
        execute(run)
        found.append(weights(run.folder))
    assert not same(*found)


@pytest.mark.parametrize("method", METHODS)
def test_training_reads_no_test_item_and_the_pools_share_none_with_the_pairs(
    experiment, stores, monkeypatch, method
):
    run = only_run(experiment(methods=[method], budgets=[10], data__reserved_pairs=14, **stores()))
    read: dict[str, set[str]] = {"a": set(), "b": set()}
    honest, phase = EmbeddingStore.read, ["training"]

    def spy(self: EmbeddingStore, indices: Any = slice(None)) -> np.ndarray:
        if phase[0] == "training":
            read[self.path.name] |= set(self.rows["item"].iloc[indices])
        return honest(self, indices)

    monkeypatch.setattr(EmbeddingStore, "read", spy)
    task_of(run, run.partial_folder)
    fit(task_of(run, run.partial_folder))
    phase[0] = "evaluation"
    test = set(run.stores.held_out.a.rows["item"]) | set(run.stores.held_out.b.rows["item"])
    assert len(test) == 20
    assert not (read["a"] | read["b"]) & test
    drawn = run.stores.sample_pairs(run.config, run.budget, run.seed)
    pool_a, pool_b = (
        set(s.rows["item"].iloc[p])
        for s, p in ((run.stores.a, drawn.pool_a), (run.stores.b, drawn.pool_b))
    )
    assert pool_a
    assert pool_b
    assert not pool_a & pool_b
    assert not (pool_a | pool_b) & (set(drawn.items) | test)
    assert read["a"] == pool_a | set(drawn.items)


def test_folds_of_a_closed_form_never_see_the_pairs_they_are_scored_on(
    experiment, monkeypatch, tmp_path
):
    run = only_run(experiment(methods=["ridge"]))
    task, scored, fitted = task_of(run, tmp_path), [], []
    from gera_lightning.aligners.ridge import Ridge

    honest_fit, honest_score = Ridge.candidates, cross_validation.held_out_score
    monkeypatch.setattr(
        Ridge,
        "candidates",
        lambda self, samples, settings: (
            fitted.append(samples),
            honest_fit(self, samples, settings),
        )[1],
    )

    def score(space: Any, held: HeldOutPairs) -> Tensor:
        scored.append((len(fitted) - 1, held.x_a, held.x_b))
        return honest_score(space, held)

    monkeypatch.setattr(cross_validation, "held_out_score", score)
    fit(task)
    assert [len(s.x_a) for s in fitted] == [7, 7, 14]
    assert len(scored) == 2 * 3
    for number, held_a, held_b in scored:
        for held, seen in ((held_a, fitted[number].x_a), (held_b, fitted[number].x_b)):
            assert not (held.unsqueeze(1) == seen.unsqueeze(0)).all(2).any()


# ---- twins, starts, steps ----


def test_twins_share_start_and_batches(experiment, tmp_path):
    runs = {run.method: run for run in plan(experiment(methods=["geometric", "twin"]))}
    everything = np.arange(14)
    tasks = {name: task_of(run, tmp_path / name) for name, run in runs.items()}
    data = {name: data_of(task) for name, task in tasks.items()}
    modules = {
        name: started(task, data[name], WarmStart(task, everything)) for name, task in tasks.items()
    }
    assert list(modules["geometric"].losses) == ["pair", "geometric"]
    assert list(modules["twin"].losses) == ["pair"]
    assert same(modules["geometric"].state_dict(), modules["twin"].state_dict())
    for step in range(30):
        with_geometry, without = (
            data[name].gather(data[name].step_rows(step)) for name in ("geometric", "twin")
        )
        assert torch.equal(with_geometry.x_a, without.x_a)
        assert torch.equal(with_geometry.x_b, without.x_b)
        assert torch.equal(with_geometry.item, without.item)
    groups = [
        [g["lr"] for g in m.configure_optimizers()["optimizer"].param_groups]
        for m in modules.values()
    ]
    assert groups[0] == groups[1]


def test_a_geometric_loss_of_weight_0_trains_the_twin(experiment):
    """All else being equal, the weight is all that tells the twins apart."""
    settings = {"head__dropout": 0.0, "tuning__max_trials": 1, "trainer__max_steps": 5}
    runs = [only_run(experiment(methods=["twin"], **settings))]
    runs += [
        only_run(experiment(methods=["geometric"], losses__geometric__weight=w, **settings))
        for w in (0.0, 1.0)
    ]
    twin, off, on = (execute(run) and weights(run.folder) for run in runs)
    for name, value in twin.items():
        torch.testing.assert_close(off[name], value, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(on["space.map_a.outer"], twin["space.map_a.outer"], atol=1e-3)


def test_random_draws_of_a_step_depend_on_its_number_and_the_seed_alone(experiment, tmp_path):
    draws = {}
    for seed in (0, 1):
        task = task_of(only_run(experiment(methods=["twin"], seeds=[seed])), tmp_path)
        data = data_of(task)
        module = started(task, data, WarmStart(task, np.arange(14)))
        for step in (0, 1, 2):
            seen = []
            for _ in range(2):
                torch.rand(5)  # whatever was drawn before
                module.on_train_batch_start(data.gather(data.step_rows(step)), 0)
                seen.append(tuple(torch.rand(3).tolist()))
            assert seen[0] == seen[1]
            draws[seed, step] = seen[0]
    assert len(set(draws.values())) == 6


def test_steps_are_logged_as_often_as_asked(experiment, tmp_path):
    logged = {}
    for every in (1, 3):
        run = only_run(
            experiment(
                methods=["geometric"],
                trainer__log_every_n_steps=every,
                runs_dir=str(tmp_path / f"every{every}"),
            )
        )
        execute(run)
        [folder] = (run.folder / "tuning").iterdir()
        events = EventAccumulator(str(folder)).Reload()
        logged[every] = {
            name: {event.step: event.value for event in events.Scalars(name)}
            for name in events.Tags()["scalars"]
        }
    terms = {"loss/pair", "loss/geometric", "loss/total", "train/scale"}
    assert terms <= set(logged[1])
    for name in terms:
        assert list(logged[1][name]) == list(range(9))
        assert logged[3][name] == {step: logged[1][name][step] for step in (2, 5, 8)}


def test_a_seed_fixes_the_start_and_another_seed_is_another_start(experiment, tmp_path):
    starts = []
    for seed in (0, 0, 1):
        task = task_of(only_run(experiment(methods=["twin"], seeds=[seed])), tmp_path)
        torch.manual_seed(int(torch.randint(1000, ())))  # whatever was drawn before
        starts.append(started(task, data_of(task), WarmStart(task, np.arange(14))).state_dict())
    assert same(starts[0], starts[1])
    assert not torch.equal(starts[0]["map_a.inner"], starts[2]["map_a.inner"])
    assert not torch.equal(starts[0]["map_a.linear.weight"][:6], starts[0]["map_b.linear.weight"])


def test_maps_start_from_a_closed_form_scaled_to_unit_images(experiment, tmp_path):
    task = task_of(only_run(experiment(methods=["started"])), tmp_path)
    positions = np.array([0, 2, 3, 5, 6, 7, 9, 10, 11, 13])
    module = started(task, data_of(task, positions), WarmStart(task, positions))
    x_a, x_b = task.rows.a.pairs[positions], task.rows.b.pairs[positions]
    start = module.map_a.linear.weight.detach()
    matches = []
    for weight in ridge_path(
        x_a, x_b, [100.0, 1.0, 0.01]
    ):  # the three settings: tuning chose one of them
        scaled = weight / (x_a @ weight).square().sum(1).mean().sqrt()
        matches.append(torch.allclose(start, scaled, rtol=1e-4, atol=1e-6))
    assert sum(matches) == 1
    torch.testing.assert_close(
        module.map_b.linear.weight.detach(), torch.eye(6) / x_b.square().sum(1).mean().sqrt()
    )


def test_stopping_steps_are_quadratic_and_end_at_the_last():
    assert stopping_steps(1000, 4) == [62, 250, 562, 1000]
    assert stopping_steps(1000, 1) == [1000]
    assert stopping_steps(3, 8) == [1, 2, 3]
    assert stopping_steps(1, 8) == [1]


def test_the_stopping_step_is_the_one_that_scores_best_on_held_out_pairs(
    experiment, monkeypatch, tmp_path
):
    """With scores planted, the choice and the length of the last training follow."""
    run = only_run(experiment(methods=["twin"], tuning__used_folds=2))
    planted, seen = iter([-3.0, -1.0, -2.0, -2.0, -1.5, -2.0]), []
    monkeypatch.setattr(callbacks, "held_out_score", lambda *_: torch.full((7,), next(planted)))
    fitted = fit(
        TrainingSet(
            run.parts,
            task_of(run, tmp_path).rows,
            run.stores.split.families,
            0,
            tmp_path,
            lambda what, done, total: seen.append((what, total)),
        )
    )
    assert (fitted.steps, fitted.chosen, fitted.n_trials) == (4, {"steps": 4}, 3)
    assert seen.count(("fold 1/2", 9)) == seen.count(("fold 2/2", 9)) == 9
    assert seen.count(("training", 4)) == 4


GRID = {
    "tuning__grid": {"optimizer.lr": [0.02, 0.005]},
    "tuning__max_trials": 6,
    "tuning__used_folds": 2,
}


def test_values_of_the_grid_are_chosen_with_the_stopping_step(experiment, monkeypatch, tmp_path):
    """Two learning rates at three steps on two folds, scores planted: the second rate's last step
    wins, and trains all pairs.
    """
    run = only_run(experiment(methods=["twin"], **GRID))
    per_fold = [-3.0, -2.5, -2.5, -3.0, -2.0, -1.0]
    planted, seen, rates = iter(2 * per_fold), [], []
    monkeypatch.setattr(
        callbacks,
        "held_out_score",
        lambda *_: torch.full((7,), next(planted)) + torch.arange(7) / 100,
    )
    honest = AlignmentModule.start

    def watched(module: AlignmentModule, *more: Any) -> None:
        rates.append(module.method.config.optimizer["lr"])
        honest(module, *more)

    monkeypatch.setattr(AlignmentModule, "start", watched)
    row = execute(run, lambda what, done, total: seen.append((what, total)))
    assert rates == [0.02, 0.005, 0.02, 0.005, 0.005]
    assert seen.count(("fold 2/2, choice 1/2", 9)) == 9
    assert seen.count(("training", 9)) == 9
    assert row["chosen"] == {"steps": 9, "optimizer.lr": 0.005}
    assert (row["n_trials"], row["steps"], row["converged"]) == (6, 9, False)
    kept = json.loads((run.folder / "tuning.json").read_text())
    assert (kept["steps"], kept["values"], kept["converged"]) == (9, {"optimizer.lr": 0.005}, False)
    for number, curve in enumerate(kept["curves"]):
        assert curve["values"] == {"optimizer.lr": (0.02, 0.005)[number]}
        assert curve["steps"] == [1, 4, 9]
        assert curve["scores"] == pytest.approx(
            [score + 0.03 for score in per_fold[3 * number : 3 * number + 3]]
        )
        assert len(curve["errors"]) == 3


def test_a_learning_rate_under_which_training_diverges_is_not_chosen(experiment):
    row = execute(
        only_run(
            experiment(
                methods=["twin"], **{**GRID, "tuning__grid": {"optimizer.lr": [1e30, 0.005]}}
            )
        )
    )
    assert row["chosen"]["optimizer.lr"] == 0.005


def test_a_run_whose_training_diverged_is_an_error_not_a_row(experiment):
    run = only_run(experiment(methods=["twin"], optimizer__lr=1e30))
    with pytest.raises(UserError, match=r"diverged in training \(lower optimizer\.lr\)"):
        execute(run)
    assert not run.finished


def test_a_run_with_a_grid_goes_on_from_its_kept_choice(experiment):
    run = only_run(experiment(methods=["twin"], **GRID))
    row = execute(run)
    whole = weights(run.folder)
    shutil.rmtree(run.folder)
    with pytest.raises(KeyboardInterrupt):
        execute(run, interrupt_at("training", 1))
    seen: list[str] = []
    again = execute(run, lambda what, *_: seen.append(what))
    assert set(seen) == {"training"} or row["steps"] == 1
    assert again["chosen"] == row["chosen"]
    assert same(weights(run.folder), whole)


def test_a_start_is_fitted_once_a_fold_whatever_the_grid(experiment, monkeypatch, tmp_path):
    run = only_run(experiment(methods=["started"], **GRID))
    honest, fitted = warm_start.cross_validated, []
    monkeypatch.setattr(
        warm_start,
        "cross_validated",
        lambda *given: (fitted.append(len(given[2])), honest(*given))[1],
    )
    fit(task_of(run, tmp_path))
    assert fitted == [7, 7, 14]


def test_runs_that_still_improved_are_marked_and_named_beside_the_table(experiment, monkeypatch):
    loaded = experiment(
        methods=["twin", "ridge"], sweep__methods=["twin", "ridge"], sweep__seeds=[0]
    )
    monkeypatch.setattr(fit_trained, "converged", lambda *_: False)
    for run in (
        lambda: run_experiment(loaded),
        lambda: runner.run_sweep(loaded, []),
    ):  # anew, and when the runs are finished already
        outcome = summarize(loaded, run())
        rows = outcome.results.set_index("method")
        assert rows.loc["twin", "converged"] is False
        assert rows.loc["ridge", "converged"] is None
        assert outcome.note.startswith("most runs of twin at 14 pairs")
        assert "ridge" in outcome.table


def test_a_warm_up_beyond_the_last_step_is_refused_before_anything_runs(experiment):
    def planned(warmup: int, **more: Any) -> list[Run]:
        loss = {"class": "structure", "warmup": warmup}
        return plan(experiment(methods=["twin"], losses__structure=loss, **more))

    with pytest.raises(UserError, match=r"\(method twin\)") as refused:
        planned(10)
    assert "losses.structure.warmup=10" in str(refused.value)
    assert planned(9)
    assert planned(10, batch__min_epochs=10)  # a pass has a step at least
    grid = {"losses.structure.warmup": [3, 12]}
    with pytest.raises(UserError, match=r"losses\.structure\.warmup=12"):
        planned(9, tuning__grid=grid, tuning__max_trials=2)


def test_the_learning_rate_follows_a_cosine_over_all_steps_and_matrices_alone_decay(
    experiment, tmp_path
):
    task = task_of(only_run(experiment(methods=["twin"], optimizer__weight_decay=0.3)), tmp_path)
    made = started(task, data_of(task), WarmStart(task, np.arange(14))).configure_optimizers()
    optimizer, schedule = made["optimizer"], made["lr_scheduler"]["scheduler"]
    matrices, others = optimizer.param_groups
    assert (matrices["weight_decay"], others["weight_decay"]) == (0.3, 0.0)
    assert {p.ndim for p in matrices["params"]} == {2}
    assert {p.ndim for p in others["params"]} == {0, 1}
    rates = []
    for _ in range(11):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    expected = [0.02 * (1 + np.cos(np.pi * min(step / 9, 1))) / 2 for step in range(11)]
    np.testing.assert_allclose(rates, expected, atol=1e-12)


def test_every_part_is_built_once_before_anything_runs(experiment):
    check(only_run(experiment(methods=["geometric"])).parts)
    for overrides, words in (
        ({"head__hidden": 0}, "head.hidden=0"),
        ({"losses__pair__temperature": -1.0}, r"losses\.pair\.temperature=-1.0"),
        ({"losses__geometric__kernel": "haet"}, r"losses\.geometric\.kernel='haet'"),
        ({"optimizer__lr": -1.0}, "optimizer: "),
        ({"trainer__accelerator": "abacus"}, "trainer: "),
        ({"trainer__accelerator": "tpu"}, "trainer: Lightning refuses"),  # its library is missing
    ):
        with pytest.raises(UserError, match=words):
            plan(experiment(methods=["geometric"], **overrides))


RIDGE, CSLS = "ridge", "csls"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"correction": {"class": CSLS, "k": 0}}, "k=0"),
        ({"correction": {"class": CSLS, "weight": -3}}, "weight=-3"),
        ({"correction": {"class": CSLS, "weight": "x"}}, r"weight='x' must be a number"),
        (
            {"correction": {"class": "torch.nn.Identity"}},
            "correction=Identity.* is no CSLS",
        ),
        (
            {"closed_form": {"class": "gera_lightning.models.maps.Normalize"}},
            "closed_form=Normalize.* is no ClosedForm",
        ),
        (
            {"closed_form": None, "init": "kernel_ridge"},
            "start from a linear closed form",
        ),
        ({"closed_form": None, "init": RIDGE}, "start from a linear closed form in one space"),
        (
            {"closed_form": RIDGE, "filters": {"a": [[], [RIDGE]]}},
            r"filters.a\[1\]\[0\]=Ridge.* is no Filter",
        ),
        (
            {
                "closed_form": RIDGE,
                "filters": {"b": [[{"class": "beside", "filter": 3}]]},
            },
            "filter=3 is no Filter",
        ),
    ],
)
def test_a_part_that_is_none_is_named_before_anything_runs(settings, words):
    with pytest.raises(UserError, match=words):
        check(Method.from_config(typed(settings, "a test")))


def test_a_start_is_tuned_on_the_families_that_a_fold_leaves(experiment):
    row = execute(
        only_run(
            experiment(methods=["started"], budgets=[4], tuning__folds=4, tuning__used_folds=None)
        )
    )
    assert row["budget"] == 4
    assert execute(only_run(experiment(methods=["started"], budgets=[2])))["budget"] == 2, (
        "of one pair nothing can be held out"
    )


def test_scores_are_corrected_against_images_without_dropout(experiment):
    run = only_run(experiment(methods=["corrected"], head__dropout=0.5))
    execute(run)
    aligner, rows = Aligner.load(run.folder / "aligner"), task_of(run, run.folder).rows
    for side in "ab":
        z = aligner.space.embed(side, getattr(rows, side).pool)
        torch.testing.assert_close(
            getattr(aligner.space.correction, f"pool_{side}"), z, atol=1e-5, rtol=1e-4
        )


def test_a_training_asks_for_each_graph_once_and_a_fold_for_its_teacher_once(
    experiment, monkeypatch
):
    asked, fitted = [], []
    honest_graph, honest_fit = datamodule.cached_knn_graph, warm_start.cross_validated
    monkeypatch.setattr(
        datamodule, "cached_knn_graph", lambda *a, **k: asked.append(1) or honest_graph(*a, **k)
    )
    monkeypatch.setattr(
        warm_start, "cross_validated", lambda *a, **k: fitted.append(1) or honest_fit(*a, **k)
    )
    teacher = {"class": "cca"}
    loss = {"class": "transport", "teacher": teacher}
    settings = {
        "tuning__grid": {"losses.transport.weight": [0.5, 1.0, 2.0]},
        "losses__transport": loss,
        "batch__unpaired": 8,
    }
    execute(only_run(experiment(methods=["geometric"], **settings)))
    assert len(asked) == 2 * (3 + 1)  # three values on one fold, then all pairs
    assert len(fitted) == 1 + 1


def test_half_precision_needs_an_accelerator(experiment):
    """Lightning would take bf16 on a CPU, and the run would say 16-mixed."""
    words = {"trainer__precision": "16-mixed", "trainer__accelerator": "cpu"}
    with pytest.raises(UserError, match="16-mixed' needs an accelerator"):
        plan(experiment(methods=["geometric"], **words))
