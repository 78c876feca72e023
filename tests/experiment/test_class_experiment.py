"""Few-shot and zero-shot classification from two stores to a report, on synthetic classes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from gera_lightning.aligners import Aligner
from gera_lightning.commands.doctor.evidence import chance_score, chance_scores
from gera_lightning.config import Experiment, load
from gera_lightning.data.training_rows import load_rows
from gera_lightning.experiment.plan import plan
from gera_lightning.experiment.run import Run, execute
from gera_lightning.experiment.runner import run_experiment
from gera_lightning.losses.contrastive import positives_of
from gera_lightning.models.maps import Identity
from gera_lightning.models.shared_space import SharedSpace
from gera_lightning.report.outcome import summarize
from gera_lightning.report.write import write_report
from gera_lightning.training.batch import HeldOutPairs
from gera_lightning.training.cross_validation import held_out_ranks
from gera_lightning.training.datamodule import AlignmentDataModule
from gera_lightning.training.fit import fit
from gera_lightning.training.training_set import TrainingSet
from gera_lightning.utils.errors import UserError

CLASSES = [f"word{n}" for n in range(8)]
METHODS: dict[str, Any] = {
    "methods/ridge.yaml": {"closed_form": {"class": "ridge"}},
    "methods/filtered.yaml": {
        "closed_form": {"class": "coupled_ridge"},
        "filters": {side: [[], [{"class": "local_centering", "clusters": 3}]] for side in "ab"},
        "correction": {"class": "csls", "k": 3},
    },
    "methods/clip.yaml": {"losses": {"pair": "clip"}},
    "methods/geometric.yaml": {"losses": {"pair": "clip", "geometry": "geometric"}},
    "methods/transport.yaml": {
        "losses": {
            "pair": "clip",
            "transport": {"class": "transport", "teacher": {"class": "cca"}},
        },
    },
    "methods/pseudo.yaml": {"closed_form": {"class": "self_training"}},
}


@pytest.fixture
def experiment(tmp_path: Path, write_yaml, make_class_stores):
    a, b = make_class_stores(CLASSES)
    small = {
        "data": {"a": str(a.path), "b": str(b.path)},
        "budgets": [16, 40],
        "methods": ["ridge", "filtered", "clip"],
        "tuning": {"folds": 4, "max_trials": 4},
        "trainer": {"max_steps": 40},
        "batch": {"anchors": 16, "unpaired": 16},
        "graph": {"k": 4},
    }
    write_yaml(tmp_path / "experiments", {"words.yaml": small, **METHODS})

    def make(**overrides: Any) -> Experiment:
        settings = {
            "runs_dir": str(tmp_path / "runs"),
            "cache_dir": str(tmp_path / "cache"),
            **overrides,
        }
        words = {key.replace("__", "."): value for key, value in settings.items()}
        return load("words", words, folder=tmp_path / "experiments")

    return make


def task_of(run: Run, folder: Path) -> TrainingSet:
    sample = run.stores.sample_pairs(run.config, run.budget, run.seed)
    rows = load_rows(run.stores.a, run.stores.b, sample)
    families = run.stores.split.families
    return TrainingSet(run.parts, rows, families, run.seed, folder, lambda *_: None)


def test_an_experiment_on_classes_runs_to_its_table_and_report(experiment, tmp_path, capsys):
    loaded = experiment()
    outcome = summarize(loaded, run_experiment(loaded))
    rows = outcome.results
    assert len(rows) == 6
    assert (rows["ab/classes"] == len(CLASSES)).all()
    assert np.allclose(rows["ab/accuracy_chance"], 1 / len(CLASSES))
    assert (rows["ab/accuracy"] > 3 / len(CLASSES)).all()
    assert np.allclose(rows["ab/accuracy"], rows["ab/r@1"])  # as many test rows of each class
    assert np.allclose(rows["ab/accuracy"], rows["ab/balanced_accuracy"])
    assert (rows["ab/accuracy@5"] >= rows["ab/accuracy"]).all()
    by_budget = rows.groupby("budget")["ab/accuracy"].mean()
    assert by_budget[40] > by_budget[16]
    assert "accuracy" in outcome.table
    assert "chance accuracy: speech → text 0.125" in outcome.table
    assert "R@10\nspeech" not in outcome.table

    page = write_report(
        "words", [f"runs_dir={tmp_path / 'runs'}"], draws=200, folder=tmp_path / "experiments"
    )
    per_class = pd.read_csv(page.with_name("per_class.csv"))
    assert sorted(per_class["class"]) == CLASSES
    at_40 = rows[(rows["budget"] == 40)].set_index("method")["ab/accuracy"]
    for method in ("ridge", "filtered", "clip"):
        assert per_class[method].mean() == pytest.approx(at_40[method])
    accuracy = pd.read_csv(page.with_name("accuracy.csv"))
    found = accuracy.set_index(["budget", "method"])["ab/accuracy"]
    assert found[40, "ridge"] == pytest.approx(at_40["ridge"])


@pytest.mark.parametrize("method", ["geometric", "transport", "pseudo", "filtered"])
def test_a_method_that_reads_both_pools_runs_where_b_has_names_alone(experiment, method):
    [run] = plan(experiment(methods=[method], budgets=[16]))
    row = execute(run)
    assert row["ab/accuracy"] > 2 / len(CLASSES)


def test_a_budget_is_labelled_rows_and_a_fold_leaves_no_class_unknown(experiment, tmp_path):
    run = plan(experiment(methods=["ridge"], budgets=[40]))[0]
    task = task_of(run, tmp_path)
    everything = np.arange(40)
    assert pd.Series(task.rows.items).value_counts().eq(5).all()
    for held in task.folds(everything):
        assert set(task.rows.items[np.setdiff1d(everything, held)]) == set(CLASSES)


def test_a_held_out_row_is_looked_for_among_all_names_each_once(experiment, tmp_path):
    run = plan(experiment(methods=["ridge"], budgets=[40]))[0]
    task = task_of(run, tmp_path)
    held = task.held_out(np.array([0, 3, 11]))
    assert len(held.galleries["a"]) == 3  # any unlabelled row may be of a class that is asked for
    names = task.rows.item_numbers.unique()
    assert sorted(held.galleries["b"].tolist()) == sorted(names.tolist())
    assert len(held.more_b) == len(CLASSES)
    own = {int(n): row for n, row in zip(held.name_of, held.more_b, strict=True)}
    for number, row in zip(held.item, held.x_b, strict=True):
        assert torch.equal(own[int(number)], row)


def test_ranks_of_held_out_rows_count_names_and_not_their_copies():
    """Two classes of two held-out rows and a third name; the last row is taken for the third."""
    name = torch.eye(3)
    x_a = torch.stack([name[0], name[0], name[1], 0.8 * name[1] + name[2]])
    item = torch.tensor([4, 4, 7, 7])
    names = torch.tensor([4, 7, 9])
    held = HeldOutPairs(x_a, name[[0, 0, 1, 1]], item, x_a[:0], name, names)
    ranks = held_out_ranks(SharedSpace(Identity(3), Identity(3)), held)
    assert ranks.tolist() == [[1, 1, 1, 2], [1, 1, 1, 1]]
    # by chance: three names, one of them right; four rows of a, two of them right
    expected = (chance_score(3) + chance_score(4, 2)) / 2
    assert chance_scores(held) == pytest.approx([expected] * 4)


@pytest.mark.parametrize(("gallery", "positives"), [(6, 1), (6, 2), (5, 4), (4, 4)])
def test_chance_of_several_positives_is_that_of_random_orders(gallery, positives):
    random = np.random.default_rng(0)
    ranks = [random.permutation(gallery)[:positives] for _ in range(4000)]
    # negatives above the best positive: all rows above it
    scores = [-np.log1p(found.min()) for found in ranks]
    assert chance_score(gallery, positives) == pytest.approx(np.mean(scores), abs=0.03)


def test_rows_of_one_class_in_a_batch_are_positives(experiment, tmp_path):
    run = plan(experiment(methods=["clip"], budgets=[40]))[0]
    task = task_of(run, tmp_path)
    data = AlignmentDataModule.of_training_set(task, np.arange(40), 1)
    data.setup("fit")
    batch = data.gather(data.step_rows(0))
    same = task.rows.items[:, None] == task.rows.items[None, :]
    assert positives_of(batch.item, batch.item).numpy().tolist() == same.tolist()
    assert same.sum() == 40 * 5


def test_the_labels_of_unlabelled_rows_are_read_nowhere(experiment, tmp_path):
    """Which class a row of the pool is of changes no bit of what is fitted and chosen."""
    [run] = plan(experiment(methods=["filtered"], budgets=[16], data__reserved_pairs=16))
    task = task_of(run, tmp_path)
    a = task.rows.a
    assert len(a.pool) == len(CLASSES) * 15 - 16
    mixed = dataclasses.replace(a, pool_units=np.roll(a.pool_units, 41))
    other = dataclasses.replace(task, rows=dataclasses.replace(task.rows, a=mixed), memory={})
    first, second = fit(task), fit(other)
    assert first.chosen == second.chosen
    weights = first.space.state_dict()
    assert weights
    for name, value in second.space.state_dict().items():
        assert torch.equal(value, weights[name])


def test_zero_shot_classes_are_found_by_their_names(make_class_stores, experiment):
    """Classes that only the test knows: their names are searched with the others."""
    names = [f"word{n:02d}" for n in range(30)]
    a, b = make_class_stores(names, zero_shot=6, folder="zero")
    loaded = experiment(data__a=str(a.path), data__b=str(b.path), methods=["ridge"], budgets=[240])
    [run] = plan(loaded)
    sample = run.stores.sample_pairs(run.config, 240, 0)
    assert set(b.rows["item"].iloc[sample.pool_b]) == set(names)
    assert not set(sample.items) & set(names[24:])
    row = execute(run)
    assert row["ab/classes"] == 30
    ranks = pd.read_parquet(run.folder / "ranks.parquet")
    unseen = ranks[(ranks["direction"] == "ab") & ranks["item"].isin(names[24:])]
    assert len(unseen) == 6 * 20
    assert (unseen["rank"] == 1).mean() > 4 / 30
    assert Aligner.load(run.folder / "aligner").about["budget"] == 240


def test_more_labelled_rows_than_there_are_is_refused(experiment):
    with pytest.raises(UserError, match="121 pairs are more than the 120 train rows of 8 classes"):
        plan(experiment(budgets=[121]))
