"""Filters of features, chosen inside the budget, for closed forms and trained maps."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from gera_lightning.aligners import Aligner
from gera_lightning.aligners.ridge import Ridge
from gera_lightning.config import config_hash, load
from gera_lightning.data.training_rows import load_rows
from gera_lightning.experiment.plan import plan
from gera_lightning.experiment.run import execute
from gera_lightning.filters.base import fit_filters
from gera_lightning.filters.local_centering import LocalCentering
from gera_lightning.geometry import knn_graph
from gera_lightning.models.maps import Sequential
from gera_lightning.training import cross_validation, filter_choice, fit_trained, training_set
from gera_lightning.training import fit_closed_form as fit_closed_form_module
from gera_lightning.training.filter_choice import choose_filters
from gera_lightning.training.fit_closed_form import fit_closed_form
from gera_lightning.training.training_set import TrainingSet
from gera_lightning.utils.errors import UserError
from gera_lightning.utils.instantiate import build

CENTER = {"class": "local_centering", "clusters": 3}
DIFFUSE = {"class": "graph_diffusion", "k": 4}
RIDGE = {"class": "ridge"}
CHOICES = {"a": [[], [CENTER]], "b": [[], [CENTER, DIFFUSE], [DIFFUSE]]}
ONE = {side: choices[1:2] for side, choices in CHOICES.items()}
BASE = {
    "data": {"synthetic": {"items": 90, "dim_a": 8, "dim_b": 6, "latent_dim": 2}},
    "budgets": [14],
    "methods": ["method"],
    "dim": 4,
    "batch": {"pairs": 6, "anchors": 8},
    "graph": {"k": 4},
    "tuning": {"folds": 2, "used_folds": 1, "max_trials": 6, "distractors": 20},
    "trainer": {"max_steps": 3, "accelerator": "cpu"},
}


@pytest.fixture
def make(tmp_path: Path):
    """The run of one method, given as a preset."""

    def build(preset):
        (tmp_path / "methods").mkdir(exist_ok=True)
        (tmp_path / "e.yaml").write_text(
            yaml.safe_dump(
                {**BASE, "runs_dir": str(tmp_path / "runs"), "cache_dir": str(tmp_path / "cache")}
            )
        )
        (tmp_path / "methods" / "method.yaml").write_text(yaml.safe_dump(preset))
        [run] = plan(load("e", folder=tmp_path))
        return run

    return build


def task_of(run, folder):
    rows = load_rows(
        run.stores.a, run.stores.b, run.stores.sample_pairs(run.config, run.budget, run.seed)
    )
    return TrainingSet(
        run.parts, rows, run.stores.split.families, run.seed, folder, lambda *_: None
    )


def test_a_filtered_task_holds_the_filters_images(make, tmp_path):
    task = task_of(make({"closed_form": RIDGE, "filters": CHOICES}), tmp_path)
    plain, filtered = task.filtered_modality("a", 0), task.filtered_modality("a", 1)
    assert plain.modality is task.rows.a
    assert plain.mapping is None
    mapping, pool = fit_filters([LocalCentering(clusters=3)], task.rows.a.pool)
    assert torch.equal(filtered.modality.pool, pool)
    assert torch.equal(filtered.modality.pairs, mapping(task.rows.a.pairs))
    assert (
        filtered.modality.key != task.rows.a.key
    )  # or the neighbour cache would answer with the unfiltered graph
    on = task.filtered({"a": 1, "b": 0})
    assert on.task.rows.a is filtered.modality  # fitted once
    assert on.task.rows.b is task.rows.b
    assert np.array_equal(on.task.rows.items, task.rows.items)
    assert (
        on.compose(torch.nn.Identity(), torch.nn.Identity())[1].__class__ is torch.nn.Identity
    )  # b has no filter to go through


def test_of_a_large_pool_filters_and_closed_forms_see_the_first_rows(make, tmp_path, monkeypatch):
    task = task_of(make({"closed_form": RIDGE, "filters": CHOICES}), tmp_path)
    monkeypatch.setattr(training_set, "MOST_POOL_ROWS", 9)
    samples, filtered = task.samples(np.arange(5)), task.filtered_modality("a", 1).modality
    assert torch.equal(samples.pool_b, task.rows.b.pool[:9])
    assert torch.equal(
        filtered.pool, fit_filters([LocalCentering(clusters=3)], task.rows.a.pool[:9])[1]
    )
    assert filtered.pool_units.tolist() == task.rows.a.pool_units[:9].tolist()
    assert len(filtered.pairs) == len(task.rows.a.pairs)


def test_graphs_of_folds_are_taken_from_the_whole_pools(make, tmp_path, monkeypatch):
    task = task_of(make({"closed_form": RIDGE}), tmp_path)
    asked, searched = [], knn_graph
    monkeypatch.setattr(training_set, "knn_graph", lambda *a: asked.append(1) or searched(*a))
    everything = np.arange(len(task.rows.items))
    for held in task.folds(everything):
        fold = task.excluding(held)
        graph = fold.pool_graph("a", 4)
        expected = searched(fold.rows.a.pool, 4)
        torch.testing.assert_close(graph.distances2, expected.distances2, atol=1e-5, rtol=1e-5)
        inner = fold.excluding(held[:1]).pool_graph("a", 4)
        assert len(inner) <= len(graph)
    assert len(asked) == 1


@pytest.mark.parametrize(("limit", "fits"), [(2**29, 2), (1, 3)])
def test_filtered_rows_are_kept_while_there_is_room(make, tmp_path, monkeypatch, limit, fits):
    task = task_of(make({"closed_form": RIDGE, "filters": CHOICES}), tmp_path)
    part = task.rows.a.pool_subset(np.arange(len(task.rows.a.pool)) > 3)
    fold, made = dataclasses.replace(task, rows=dataclasses.replace(task.rows, a=part)), []
    monkeypatch.setattr(training_set, "MOST_FILTERED_BYTES", limit)
    monkeypatch.setattr(training_set, "fit_filters", lambda *a: made.append(1) or fit_filters(*a))
    for asked in (task, fold, task):
        assert len(asked.filtered_modality("a", 1).modality.pool) == len(asked.rows.a.pool)
    assert len(made) == fits


def filters_of(task):
    """Numbers of the choices that a filtered task stands on."""
    keys = [json.loads(getattr(task.rows, side).key.get("filters", "[]")) for side in "ab"]
    return tuple(CHOICES[side].index(key) for side, key in zip("ab", keys, strict=True))


def rising():
    """An agreement that every further filter betters."""
    counted = itertools.count()
    return lambda *_: float(next(counted))


@pytest.mark.parametrize(
    ("best", "known"), [((0, 0), True), ((1, 0), True), ((0, 1), True), ((1, 2), False)]
)
def test_each_modality_takes_the_filter_that_scores_best_on_held_out_pairs(
    make, tmp_path, monkeypatch, best, known
):
    task = task_of(make({"closed_form": RIDGE, "filters": CHOICES}), tmp_path)
    calls = []

    monkeypatch.setattr(filter_choice, "debiased_cka", rising())

    def planted(task, method, settings, positions, numbers):
        calls.append((numbers["a"], numbers["b"]))
        return np.full(
            (1, 14),
            -float(sum(mine != theirs for mine, theirs in zip(calls[-1], best, strict=True))),
        )

    monkeypatch.setattr(filter_choice, "fold_scores", planted)
    choice = choose_filters(task, Ridge(), np.arange(14))
    assert (choice.tried, choice.chosen) == (4, {"filter_a": best[0], "filter_b": best[1]})
    assert calls == [(0, 0), (1, 0), (0, 1), (0, 2)]
    assert (choice.scores is not None) == known
    assert filters_of(task.filtered(choice.numbers).task) == best


def test_a_filter_under_which_the_modalities_agree_less_is_not_compared_by_rank(
    make, tmp_path, monkeypatch
):
    """However well it ranks; and it counts as tried."""
    task = task_of(make({"closed_form": RIDGE, "filters": CHOICES}), tmp_path)
    agreement = {(0, 0): 0.2, (1, 0): 0.1, (0, 1): 0.2, (0, 2): 0.3}
    seen, ranked = [], []

    def planted_agreement(pairs_a, pairs_b):
        numbers = tuple(
            next(
                n
                for n in range(len(task.method.filters[side]))
                if torch.equal(task.filtered_modality(side, n).modality.pairs, pairs)
            )
            for side, pairs in (("a", pairs_a), ("b", pairs_b))
        )
        seen.append(numbers)
        return agreement[numbers]

    def planted_scores(task, method, settings, positions, numbers):
        ranked.append((numbers["a"], numbers["b"]))
        return np.full((1, 14), float(sum(numbers.values()) == 1))  # what is out would win

    monkeypatch.setattr(filter_choice, "debiased_cka", planted_agreement)
    monkeypatch.setattr(filter_choice, "fold_scores", planted_scores)
    choice = choose_filters(task, Ridge(), np.arange(14))
    assert seen == [(0, 0), (1, 0), (0, 1), (0, 2)]
    assert ranked == [(0, 0), (0, 2)]
    assert (choice.numbers, choice.tried) == ({"a": 0, "b": 0}, 4)


def test_a_fold_holds_no_pool_row_of_the_families_it_holds_out(make, tmp_path):
    """And its filters are fitted on what it holds."""
    task = task_of(make({"closed_form": RIDGE, "filters": ONE}), tmp_path)
    pool_units = task.rows.a.pool_units
    twin = task.families.copy()
    twin[pool_units[:7]] = twin[task.rows.items[3]]  # seven pool rows are near-duplicates of a pair
    task = dataclasses.replace(task, families=twin)
    [held] = [part for part in task.folds(np.arange(14)) if 3 in part]
    fold = task.excluding(held)
    assert np.array_equal(fold.rows.a.pool_units, pool_units[7:])
    assert torch.equal(fold.rows.a.pool, task.rows.a.pool[7:])
    assert fold.rows.a.key != task.rows.a.key
    assert fold.rows.b is task.rows.b  # nothing of b's pool is of these families
    own, _ = fit_filters([LocalCentering(clusters=3)], task.rows.a.pool[7:])
    torch.testing.assert_close(
        fold.filtered({"a": 0, "b": 0}).task.rows.a.pairs, own(task.rows.a.pairs)
    )


def test_one_choice_is_no_choice(make, tmp_path, monkeypatch):
    monkeypatch.setattr(filter_choice, "fold_scores", lambda *_: pytest.fail("nothing to compare"))
    choice = choose_filters(
        task_of(make({"closed_form": RIDGE, "filters": ONE}), tmp_path), Ridge(), np.arange(14)
    )
    assert (choice.numbers, choice.tried, choice.chosen, choice.scores) == (
        {"a": 0, "b": 0},
        0,
        {},
        None,
    )


def test_filters_and_settings_share_the_number_of_evaluations(make, tmp_path):
    fitted = fit_closed_form(task_of(make({"closed_form": RIDGE, "filters": CHOICES}), tmp_path))
    assert fitted.n_trials == 6
    assert set(fitted.chosen) == {"filter_a", "filter_b", "penalty"}
    for filters in ({}, ONE):
        assert (
            fit_closed_form(
                task_of(make({"closed_form": RIDGE, "filters": filters}), tmp_path)
            ).n_trials
            == 6
        )


def test_scores_that_the_choice_of_filters_left_are_not_computed_again(make, tmp_path, monkeypatch):
    """The first setting is scored once a combination; what is chosen is what scoring all settings
    anew would choose.
    """
    task = task_of(make({"closed_form": RIDGE, "filters": CHOICES}), tmp_path)
    scored = []
    honest = cross_validation.fold_scores

    def counted(task, method, settings, positions, numbers):
        scored.append([s["penalty"] for s in settings])
        return honest(task, method, settings, positions, numbers)

    monkeypatch.setattr(filter_choice, "fold_scores", counted)
    monkeypatch.setattr(cross_validation, "fold_scores", counted)
    monkeypatch.setattr(filter_choice, "debiased_cka", rising())
    fitted = fit_closed_form(task)
    numbers = {side: int(fitted.chosen[f"filter_{side}"]) for side in "ab"}
    known = 0 in numbers.values()
    penalties = [s["penalty"] for s in Ridge().settings(2 + known, 14)]
    assert scored == [*[penalties[:1]] * 4, penalties[known:]]
    assert fitted.n_trials == 6
    _, settings, anew = cross_validation.cross_validated(
        task, Ridge(), np.arange(14), 2 + known, None, numbers
    )
    assert (settings, anew["penalty"]) == (2 + known, fitted.chosen["penalty"])


@pytest.mark.parametrize("wins", ["form", "alternative"])
def test_filters_stand_before_the_form_that_chose_them_and_not_before_its_alternatives(
    make, tmp_path, monkeypatch, wins
):
    others = [{"class": "gera_lightning.aligners.cca.CCA", "similarity": "gaussian"}]
    form = {
        "class": "gera_lightning.aligners.alternatives.Alternatives",
        "form": RIDGE,
        "others": others,
    }
    task = task_of(make({"closed_form": form, "filters": CHOICES}), tmp_path)
    method, everything, numbers = build(form, "closed_form"), np.arange(14), {"a": 1, "b": 2}
    own, other = settings = method.settings(2, 14)
    found = cross_validation.fold_scores(task, method, settings, everything, numbers)
    np.testing.assert_array_equal(
        found[:1], cross_validation.fold_scores(task, method, [own], everything, numbers)
    )
    np.testing.assert_array_equal(
        found[1:], cross_validation.fold_scores(task, method, [other], everything, {"a": 0, "b": 0})
    )
    assert not np.array_equal(
        found[1:],
        cross_validation.fold_scores(task.filtered(numbers).task, method, [other], everything),
    )

    monkeypatch.setattr(
        fit_closed_form_module,
        "choose_filters",
        lambda *_: filter_choice.FilterChoice(numbers, 4, {"filter_a": 1.0, "filter_b": 2.0}, None),
    )
    monkeypatch.setattr(
        cross_validation, "choose", lambda scores: len(scores) - 1 if wins == "alternative" else 0
    )
    fitted = fit_closed_form(task)
    filtered = wins == "form"
    assert [fitted.chosen[f"filter_{side}"] for side in "ab"] == ([1, 2] if filtered else [0, 0])
    assert (
        isinstance(fitted.space.map_a, Sequential)
        == isinstance(fitted.space.map_b, Sequential)
        == filtered
    )
    samples = (task.filtered(numbers).task if filtered else task).samples(everything)
    [(map_a, _)] = method.candidates(samples, [own if filtered else other])
    torch.testing.assert_close(
        fitted.space.embed("a", task.rows.a.pairs),
        torch.nn.functional.normalize(map_a(samples.x_a)),
    )


@pytest.mark.parametrize("preset", ["closed", "trained"])
def test_the_saved_aligner_filters_new_rows_by_itself(make, preset):
    """Its map of frozen rows equals the inner map of rows that were filtered by hand."""
    if preset == "closed":
        method = {
            "closed_form": RIDGE,
            "filters": ONE,
            "correction": {"class": "csls", "k": 3},
        }
    else:
        method = {"filters": ONE}
    run = make(method)
    execute(run)
    aligner = Aligner.load(run.folder / "aligner")
    assert isinstance(aligner.space.map_a, Sequential)
    filters, inner = aligner.space.map_a.maps
    x = aligner.preprocess["a"](run.stores.held_out.a.x)
    with torch.inference_mode():
        by_hand = torch.nn.functional.normalize(inner(filters(x)), dim=1)
    torch.testing.assert_close(aligner.encode_a(run.stores.held_out.a.x), by_hand)
    if preset == "closed":  # pools were mapped by the same way
        pool = run.stores.a.read(run.stores.sample_pairs(run.config, run.budget, run.seed).pool_a)
        torch.testing.assert_close(
            aligner.space.correction.pool_a, aligner.encode_a(pool), rtol=1e-4, atol=1e-5
        )


def test_trained_maps_let_their_start_choose_the_filter(make, tmp_path, monkeypatch):
    start = {**RIDGE, "direction": "a_to_b"}
    run = make({"filters": CHOICES, "init": start})
    asked = []
    honest = fit_trained.choose_filters
    monkeypatch.setattr(fit_trained, "choose_filters", lambda *a: asked.append(a[1]) or honest(*a))
    fitted = fit_trained.fit_trained(task_of(run, tmp_path / "run"))
    assert [type(method) for method in asked] == [Ridge]
    assert {"filter_a", "filter_b"} < set(fitted.chosen)
    assert fitted.n_trials == 4 + 3


@pytest.mark.parametrize(
    ("preset", "words"),
    [
        ({"filters": CHOICES}, "cannot choose between filters"),
        ({"closed_form": RIDGE, "filters": {"c": [[CENTER]]}}, "'c' is not one of a, b"),
        ({"closed_form": RIDGE, "filters": {"a": [CENTER]}}, "must be a list of choices"),
        (
            {"closed_form": RIDGE, "filters": {"a": [[], [{**CENTER, "clusters": 0}]]}},
            r"filters.a\[1\]\[0\].*clusters=0",
        ),
        (
            {"closed_form": RIDGE, "filters": {"a": [[{**CENTER, "cluster": 1}]]}},
            "did you mean 'clusters'",
        ),
    ],
)
def test_mistakes_are_named_before_anything_runs(make, preset, words):
    with pytest.raises(UserError, match=words):
        make(preset)


def test_filters_are_part_of_a_runs_identity(make):
    plain, filtered = (
        make({"closed_form": RIDGE, **more}).config for more in ({}, {"filters": CHOICES})
    )
    assert config_hash(plain) != config_hash(filtered)


@pytest.mark.parametrize(("enough", "used"), [(1, 2), (8, 2), (9, 3), (14, 4), (99, 4)])
def test_of_a_large_budget_only_as_many_folds_are_used_as_settle_a_choice(
    make, tmp_path, enough, used
):
    """At least two, so that what is chosen can be held against pairs that did not choose it."""
    task = task_of(
        make({"closed_form": RIDGE, "tuning": {"max_heldout_pairs": enough, "folds": 4}}), tmp_path
    )
    parts = task.folds(np.arange(14))
    assert [len(part) for part in parts] == [4, 4, 3, 3][:used]
    scores = cross_validation.fold_scores(task, Ridge(), Ridge().settings(2, 14), np.arange(14))
    assert scores.shape == (2, sum(len(part) for part in parts))


def test_a_finished_aligner_keeps_no_more_of_a_pool_than_it_needs(make, tmp_path, monkeypatch):
    monkeypatch.setattr(training_set, "MOST_POOL_ROWS", 9)
    task = task_of(
        make(
            {
                "closed_form": RIDGE,
                "correction": {"class": "csls", "k": 3},
            }
        ),
        tmp_path,
    )
    maps = (torch.nn.Linear(8, 4), torch.nn.Linear(6, 4))
    space = training_set.shared_space(task, *maps)
    torch.testing.assert_close(space.correction.pool_a, space.embed("a", task.rows.a.pool[:9]))


def test_a_corrected_score_passes_gradients_on(make, tmp_path):
    """Its pools are no inference tensors: a probe may be trained on scores of an aligner fresh from
    its fit.
    """
    task = task_of(
        make(
            {
                "closed_form": RIDGE,
                "correction": {"class": "csls", "k": 3},
            }
        ),
        tmp_path,
    )
    space = fit_closed_form(task).space
    x = task.rows.a.pairs.clone().requires_grad_()
    score = (
        space.queries(space.embed("a", x))
        @ space.gallery("b", space.embed("b", task.rows.b.pairs)).T
    )
    score.sum().backward()
    assert torch.isfinite(x.grad).all()


def test_filters_of_trained_maps_see_as_much_of_a_folds_pool_as_the_training(
    make, tmp_path, monkeypatch
):
    task = task_of(make({"filters": ONE}), tmp_path)
    twin = task.families.copy()
    for pair, pool_units in (
        (task.rows.items[n], task.rows.a.pool_units[n::14][:2]) for n in range(14)
    ):
        twin[pool_units] = twin[pair]  # every pair has near-duplicates in the pool
    task, folds = dataclasses.replace(task, families=twin), []
    honest = fit_trained.WarmStart
    monkeypatch.setattr(
        fit_trained,
        "WarmStart",
        lambda fold, positions: folds.append(fold) or honest(fold, positions),
    )
    fit_trained.fit_trained(task)
    held = task.folds(np.arange(14))[0]
    pool = task.excluding(held).rows.a.pool
    assert len(pool) < len(task.rows.a.pool)
    for seen, of_pool in zip(
        folds, (pool, task.rows.a.pool), strict=True
    ):  # the fold, then all pairs
        own, images = fit_filters([LocalCentering(clusters=3)], of_pool)
        torch.testing.assert_close(seen.rows.a.pool, images)
        torch.testing.assert_close(seen.rows.a.pairs, own(task.rows.a.pairs))


def test_what_closed_forms_look_at_is_the_beginning_of_each_pool(make, tmp_path, monkeypatch):
    task = task_of(make({"closed_form": RIDGE}), tmp_path)
    assert task.with_truncated_pools() is task
    monkeypatch.setattr(training_set, "MOST_POOL_ROWS", 9)
    cut = task.with_truncated_pools()
    for side in "ab":
        whole, first = getattr(task.rows, side), getattr(cut.rows, side)
        assert torch.equal(first.pool, whole.pool[:9])
        assert first.pool_units.tolist() == whole.pool_units[:9].tolist()
        again = first.pool_subset(np.arange(9) != 3)
        assert (
            len(
                {
                    whole.key["rows"] + modality.key.get("pool", "")
                    for modality in (whole, first, again)
                }
            )
            == 3
        )
        assert (
            again.key
            != whole.pool_subset(np.arange(len(whole.pool)) != 3)
            .pool_subset(np.arange(len(whole.pool) - 1) < 8)
            .key
        )


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_a_closed_form_takes_to_the_cpu_what_is_too_large_for_the_accelerator(
    make, tmp_path, monkeypatch, caplog, error
):
    """The device here is `meta`, whose rows have no values: nothing of them can come out."""
    task, asked = task_of(make({"closed_form": RIDGE}), tmp_path), []
    monkeypatch.setattr(
        "gera_lightning.utils.distributed.device",
        lambda accelerator: asked.append(accelerator) or torch.device("meta"),
    )

    def work(seen, *, room):
        if seen.rows.a.pairs.is_meta and not room:
            raise error
        return {
            modality.device.type
            for side in (seen.rows.a, seen.rows.b)
            for modality in (side.pairs, side.pool)
        }

    assert training_set.on_accelerator(task, lambda seen: work(seen, room=True)) == {"meta"}
    assert not caplog.records
    assert training_set.on_accelerator(task, lambda seen: work(seen, room=False)) == {"cpu"}
    assert "too small for 14 pairs" in caplog.text
    assert asked == [task.config.trainer.accelerator] * 2
    assert not task.to(torch.device("meta")).memory  # filtered rows of another device are of no use
    error.args = ("CUDA error: an illegal memory access was encountered",)
    with pytest.raises(RuntimeError, match="illegal"):
        training_set.on_accelerator(task, lambda seen: work(seen, room=False))
