"""Filters of features, chosen inside the budget, for closed forms and trained maps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from gera_lightning import fit as fitting
from gera_lightning import sweep, train
from gera_lightning.aligners import Aligner
from gera_lightning.aligners.filters import Whitening, fit_filters
from gera_lightning.aligners.ridge import Ridge
from gera_lightning.config import config_hash, load
from gera_lightning.data.datamodule import load_rows
from gera_lightning.errors import UserError
from gera_lightning.fit import Task, choose_filter, fit_closed_form
from gera_lightning.heads import Chain
from gera_lightning.run import execute

WHITEN = {"class": "gera_lightning.aligners.filters.Whitening"}
DIFFUSE = {"class": "gera_lightning.geometry.diffusion.GraphDiffusion", "k": 4}
RIDGE = {"class": "gera_lightning.aligners.ridge.Ridge"}
CHOICES = [{}, {"a": [WHITEN], "b": [WHITEN, DIFFUSE]}]
BASE = {
    "data": {"synthetic": {"items": 90, "dim_a": 8, "dim_b": 6, "latent_dim": 2}},
    "budgets": [14],
    "methods": ["method"],
    "dim": 4,
    "batch": {"pairs": 6, "anchors": 8},
    "graph": {"k": 4},
    "tuning": {"folds": 2, "used_folds": 1, "settings": 6, "distractors": 20},
    "trainer": {"max_steps": 3, "accelerator": "cpu"},
}


@pytest.fixture
def make(tmp_path: Path):
    """The run of one method, given as a preset."""

    def build(preset):
        (tmp_path / "methods").mkdir(exist_ok=True)
        (tmp_path / "e.yaml").write_text(yaml.safe_dump({**BASE, "runs_dir": str(tmp_path / "runs"), "cache_dir": str(tmp_path / "cache")}))
        (tmp_path / "methods" / "method.yaml").write_text(yaml.safe_dump(preset))
        [run] = sweep.plan(load("e", folder=tmp_path))
        return run

    return build


def task_of(run, folder):
    rows = load_rows(run.stores.a, run.stores.b, run.stores.draw(run.config, run.budget, run.seed))
    return Task(run.config, rows, run.stores.split.families, run.seed, folder, lambda *_: None)


def test_a_filtered_task_holds_the_filters_images(make, tmp_path):
    task = task_of(make({"closed_form": RIDGE, "filters": CHOICES}), tmp_path)
    plain, filtered = (task.filtered(choice, number) for number, choice in enumerate(task.config.filters))
    assert torch.equal(plain.task.rows.a.pairs, task.rows.a.pairs)
    assert not plain.active
    mapping, pool = fit_filters([Whitening()], task.rows.a.pool)
    assert torch.equal(filtered.task.rows.a.pool, pool)
    assert torch.equal(filtered.task.rows.a.pairs, mapping(task.rows.a.pairs))
    assert filtered.task.rows.a.key != task.rows.a.key  # or the neighbour cache would answer with the unfiltered graph
    assert np.array_equal(filtered.task.rows.items, task.rows.items)


@pytest.mark.parametrize("best", [0, 1])
def test_the_filter_that_scores_best_on_held_out_pairs_is_taken(make, tmp_path, monkeypatch, best):
    task = task_of(make({"closed_form": RIDGE, "filters": CHOICES}), tmp_path)
    calls = []

    def planted(task, method, settings, positions):
        calls.append((task.rows.a.key.get("filters", ""), len(settings)))
        return np.full((1, 14), 1.0 if len(calls) - 1 == best else 0.0)

    monkeypatch.setattr(fitting, "_fold_scores", planted)
    choice = choose_filter(task, Ridge(), np.arange(14))
    assert (choice.tried, choice.chosen, choice.filtered.active) == (2, {"filter": float(best)}, best == 1)
    assert [length for _, length in calls] == [1, 1]
    assert calls[0][0] != calls[1][0]


def test_filters_and_settings_share_the_number_of_evaluations(make, tmp_path):
    fitted = fit_closed_form(task_of(make({"closed_form": RIDGE, "filters": CHOICES}), tmp_path))
    assert fitted.settings == 6
    assert set(fitted.chosen) == {"filter", "penalty"}
    assert fit_closed_form(task_of(make({"closed_form": RIDGE}), tmp_path)).settings == 6


def test_scores_that_the_choice_of_filters_left_are_not_computed_again(make, tmp_path, monkeypatch):
    """The first setting is scored once a filter; what is chosen is what scoring all settings anew would choose."""
    task = task_of(make({"closed_form": RIDGE, "filters": CHOICES}), tmp_path)
    scored = []
    honest = fitting._fold_scores

    def counted(task, method, settings, positions):
        scored.append([s["penalty"] for s in settings])
        return honest(task, method, settings, positions)

    monkeypatch.setattr(fitting, "_fold_scores", counted)
    fitted = fit_closed_form(task)
    penalties = [s["penalty"] for s in Ridge().settings(4, 14)]
    assert scored == [penalties[:1], penalties[:1], penalties[1:]]
    chosen = task.filtered(CHOICES[int(fitted.chosen["filter"])], 0)
    _, settings, anew = fitting.cross_validated(chosen.task, Ridge(), np.arange(14), 4)
    assert (settings, anew["penalty"]) == (4, fitted.chosen["penalty"])


@pytest.mark.parametrize("preset", ["closed", "trained"])
def test_the_saved_aligner_filters_new_rows_by_itself(make, preset):
    """Its map of frozen rows equals the inner map of rows that were filtered by hand."""
    if preset == "closed":
        method = {"closed_form": RIDGE, "filters": CHOICES[1:], "correction": {"class": "gera_lightning.aligners.space.Csls", "k": 3}}
    else:
        method = {"closed_form": None, "filters": CHOICES[1:]}
    run = make(method)
    execute(run)
    aligner = Aligner.load(run.folder / "aligner")
    assert isinstance(aligner.space.map_a, Chain)
    filters, inner = aligner.space.map_a.maps
    x = aligner.preprocess["a"](run.stores.held_out.a.x)
    with torch.inference_mode():
        by_hand = torch.nn.functional.normalize(inner(filters(x)), dim=1)
    torch.testing.assert_close(aligner.encode_a(run.stores.held_out.a.x), by_hand)
    if preset == "closed":  # pools were mapped by the same way
        pool = run.stores.a.read(run.stores.draw(run.config, run.budget, run.seed).pool_a)
        torch.testing.assert_close(aligner.space.correction.pool_a, aligner.encode_a(pool), rtol=1e-4, atol=1e-5)


def test_trained_maps_let_their_start_choose_the_filter(make, tmp_path, monkeypatch):
    start = {**RIDGE, "direction": "a_to_b"}
    run = make({"closed_form": None, "filters": CHOICES, "start": start})
    asked = []
    honest = train.choose_filter
    monkeypatch.setattr(train, "choose_filter", lambda *a: asked.append(a[1]) or honest(*a))
    train.fit_trained(task_of(run, tmp_path / "run"))
    assert [type(method) for method in asked] == [Ridge]


@pytest.mark.parametrize(
    ("preset", "words"),
    [
        ({"closed_form": None, "filters": CHOICES}, "cannot choose between filters"),
        ({"closed_form": RIDGE, "filters": [{"c": [WHITEN]}]}, "'c' is not a modality"),
        ({"closed_form": RIDGE, "filters": [{"a": [{**WHITEN, "floor": 0}]}]}, r"filters\[0\].a\[0\].*floor=0"),
        ({"closed_form": RIDGE, "filters": [{"a": [{**WHITEN, "pwer": 1}]}]}, "did you mean 'power'"),
    ],
)
def test_mistakes_are_named_before_anything_runs(make, preset, words):
    with pytest.raises(UserError, match=words):
        make(preset)


def test_filters_are_part_of_a_runs_identity(make):
    plain, filtered = (make({"closed_form": RIDGE, **more}).config for more in ({}, {"filters": CHOICES}))
    assert config_hash(plain) != config_hash(filtered)
