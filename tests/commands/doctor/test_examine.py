"""The whole examination: on views of one manifold, on wrong pairs, and on broken stores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_rel

from gera_lightning import cli, config
from gera_lightning.commands.doctor import evidence as evidence_module
from gera_lightning.commands.doctor.evidence import (
    Evidence,
    chance_score,
    gather,
    held_out_scores,
    smallest_budget,
)
from gera_lightning.commands.doctor.examine import (
    ERROR,
    NOTE,
    OK,
    SUGGESTION,
    _compared,
    doctor,
    verdict,
)
from gera_lightning.data.store import EmbeddingStore
from gera_lightning.data.synthetic import SyntheticViews
from gera_lightning.experiment.paired_stores import Stores
from gera_lightning.utils.errors import UserError

FOLDER = "experiments"


@pytest.fixture(scope="module")
def views(tmp_path_factory):
    return SyntheticViews(items=700, latent_dim=2, dim_a=24, dim_b=16, features=64).stores(
        tmp_path_factory.mktemp("views")
    )


@pytest.fixture(autouse=True)
def _here(repository, monkeypatch):
    monkeypatch.chdir(repository)


def lines(findings, level):
    return [finding.text for finding in findings if finding.level == level]


def test_views_of_one_manifold_will_align_and_the_next_step_loads(views, tmp_path):
    a, b = views
    found = list(doctor(a.path, b.path, budget=60, methods=["ridge", "procrustes"]))
    assert not lines(found, ERROR)
    words = " | ".join(finding.text for finding in found)
    for text in (
        "0 items in both",
        "is connected",
        "what is near in a is near in b",
        "pairs on ridge is above chance",
        " is best, held-out partner's typical rank ",
    ):
        assert text in words
    written, command = lines(found, SUGGESTION)
    assert command == "make train EXP=mine"
    (tmp_path / "mine.yaml").write_text(written.split(": ", 1)[1])
    (tmp_path / "methods").symlink_to(f"{a.path.cwd()}/experiments/methods")
    loaded = config.load("mine", folder=tmp_path)
    assert loaded.common.budgets == [20, 60]
    assert f"60 pairs: {next(iter(loaded.methods))} is best" in words
    assert "ridge" in loaded.methods
    assert Stores.open(loaded.common).a.path == a.path
    assert verdict(found).startswith("alignment will work")


def test_wrong_pairs_are_found_out(views, tmp_path):
    a, b = views
    from gera_lightning.data.store import write_store

    rows = b.rows.copy()
    rows["item"] = np.random.default_rng(0).permutation(rows["item"])
    wrong = write_store(tmp_path / "wrong", b.read(), rows, encoder=b.encoder, source={})
    found = list(doctor(a.path, wrong.path, budget=60, methods=["ridge", "procrustes"]))
    assert any("no better than where pairs are shuffled" in words for words in lines(found, ERROR))
    assert any("neighbourhoods do not agree" in words for words in lines(found, NOTE))
    assert "will not work" in verdict(found)


def test_stores_without_test_items_are_told_to_align(views, tmp_path):
    from gera_lightning.data.store import write_store

    paths = []
    for store in views:
        rows = store.rows.assign(split="train")
        paths.append(
            write_store(
                tmp_path / f"all-{store.path.name}",
                store.read(),
                rows,
                encoder=store.encoder,
                source={},
            ).path
        )
    found = list(doctor(*paths, budget=40, methods=["ridge", "procrustes"]))
    assert any("take gera align" in words for words in lines(found, NOTE))
    best = next(
        words.split(": ")[1].split()[0]
        for words in lines(found, OK)
        if words.startswith("40 pairs: ")
    )
    assert lines(found, SUGGESTION)[-1] == f"make align EXP=mine ARGS=method={best}"
    assert "alignment will work" in verdict(found)


def test_test_rows_have_no_say_in_what_is_recommended(views, tmp_path):
    """Every test row replaced by noise: all that is said after the counts is the same."""
    from gera_lightning.data.splits import split_items
    from gera_lightning.data.store import write_store

    split = split_items(views[0].rows, views[1].rows)
    noisy = []
    for store, test in zip(views, (split.test_a, split.test_b), strict=True):
        x = store.read()
        x[test] = np.random.default_rng(1).normal(size=(len(test), store.dim))
        noisy.append(
            write_store(
                tmp_path / store.path.name,
                x,
                store.rows,
                encoder=store.encoder,
                source={},
                dtype="float32",
            )
        )
    said = [
        [
            str(f)
            for f in doctor(a.path, b.path, budget=40, methods=["ridge", "cca"])
            if f.level != SUGGESTION
        ]
        for a, b in (views, noisy)
    ]
    assert said[0] == said[1]


def broken(make_store, how: str) -> EmbeddingStore:
    x = np.random.default_rng(0).normal(size=(60, 5)).astype(np.float32)
    if how == "nan":
        x[3] = np.nan
    if how == "all nan":
        x[:] = np.nan
    store = make_store("broken", x, shard_rows=100)
    if how == "no manifest":
        (store.path / "manifest.json").unlink()
    if how == "cut vectors":
        (store.path / "emb_0000.npy").write_bytes((store.path / "emb_0000.npy").read_bytes()[:200])
    if how == "cut rows":
        (store.path / "rows_0000.parquet").write_bytes(b"PAR1")
    if how == "same row twice":
        rows = pd.read_parquet(store.path / "rows_0000.parquet")
        rows.assign(row="same").to_parquet(store.path / "rows_0000.parquet")
    if how == "other items":
        rows = pd.read_parquet(store.path / "rows_0000.parquet")
        rows.assign(item="x" + rows["item"]).to_parquet(store.path / "rows_0000.parquet")
    if how == "one direction":
        np.save(store.path / "emb_0000.npy", np.ones_like(x))
    return store


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("nan", "broken: 1 rows hold NaN"),
        ("all nan", "broken: 60 rows hold NaN"),
        ("no manifest", "broken: no embedding store"),
        ("cut vectors", "broken: "),
        ("cut rows", "rows_0000.parquet"),
        ("same row twice", "row 'same' twice"),
        ("other items", "pairs: 0 train items"),
        ("one direction", "broken: all rows point the same way"),
    ],
)
def test_a_broken_store_is_described_and_exits_with_2(make_store, reseal, capsys, how, words):
    whole = make_store("whole", np.random.default_rng(1).normal(size=(60, 4)).astype(np.float32))
    store = broken(make_store, how)
    if how in ("same row twice", "other items", "one direction"):
        reseal(store.path)
    assert cli.main(["doctor", str(whole.path), str(store.path)]) == 2
    captured = capsys.readouterr()
    assert any(words in line for line in captured.out.splitlines() if line.startswith(ERROR)), (
        captured.out
    )
    assert "ok    whole: 60 rows of width 4" in captured.out
    assert captured.err.startswith("error: alignment will not work as it is")


@pytest.mark.parametrize(
    "arguments", [["one"], ["a", "b", "budgets=3"], ["a", "b", "budget=1"], ["a", "b", "k=0"]]
)
def test_a_mistake_in_the_command_is_one_line(capsys, arguments):
    assert cli.main(["doctor", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1


def test_presets_that_cannot_be_compared_are_a_note(views, tmp_path, monkeypatch):
    monkeypatch.setattr("gera_lightning.config.loading.SHIPPED", Path("nothing"))
    a, b = views
    (tmp_path / "odd.yaml").write_text(
        "data: a/path\n"
    )  # another tool's file beside the experiments
    [words] = lines(doctor(a.path, b.path, budget=20, folder=str(tmp_path)), NOTE)
    assert words.startswith("presets are not compared: methods: 'coupled_ridge' has no preset")


@pytest.mark.parametrize(
    ("methods", "words"),
    [(["contrastive"], "contrastive, which is trained"), ("rigde", "did you mean 'ridge'")],
)
def test_presets_that_are_named_wrongly_are_reported_at_once(views, methods, words):
    a, b = views
    with pytest.raises(UserError, match=words):
        next(doctor(a.path, b.path, budget=20, methods=methods, folder=FOLDER))


# ---- evidence ----


def test_chance_is_the_mean_over_all_ranks():
    for n in (1, 2, 7, 500):
        assert chance_score(n) == pytest.approx(-np.log(np.arange(1, n + 1)).mean())


def test_no_pair_has_a_say_in_its_own_setting(views, tmp_path, monkeypatch):
    """With planted scores: the setting of each fold is the one that is best on the others."""
    from gera_lightning.data.training_rows import load_rows
    from gera_lightning.training.method import Method
    from gera_lightning.training.training_set import TrainingSet

    a, b = views
    experiment = config.load(
        {"data": {"a": str(a.path), "b": str(b.path)}, "budgets": [20], "methods": ["ridge"]},
        folder=FOLDER,
    )
    stores = Stores.open(experiment.common)
    rows = load_rows(a, b, stores.sample_pairs(experiment.common, 20, 0))
    task = TrainingSet(
        Method.from_config(experiment.methods["ridge"]),
        rows,
        stores.split.families,
        0,
        tmp_path,
        lambda *_: None,
    )
    folds = [len(part) for part in task.folds(np.arange(20))]
    planted = np.random.default_rng(0).normal(size=(8, 20))
    monkeypatch.setattr(evidence_module, "fold_scores", lambda *_: planted)
    got, start = held_out_scores(task), 0
    for size in folds:
        rest = np.delete(planted, np.s_[start : start + size], axis=1)
        np.testing.assert_array_equal(
            got[start : start + size], planted[rest.mean(1).argmax(), start : start + size]
        )
        start += size


def test_presets_are_compared_pair_by_pair():
    rng = np.random.default_rng(0)
    base, noise = rng.normal(size=200), rng.normal(0, 0.5, 200)
    scores = {
        "x": base,
        "y": base - 0.2 + rng.normal(0, 0.1, 200),
        "z": base - 0.01 + noise - noise.mean(),
    }
    evidence = Evidence(200, scores, np.full(200, -3.0))
    assert evidence.best == "x"
    lead, error = evidence.lead("x", "y")
    naive = ttest_rel(scores["x"], scores["y"]).statistic
    assert lead / error == pytest.approx(naive / np.sqrt(1 + 5 / 4))
    assert evidence.as_good() == ["z"]
    assert evidence.rank("x") == pytest.approx(np.exp(-base.mean()))
    finding = _compared(evidence)
    head, *others = finding.text.splitlines()
    assert head.startswith(
        f"200 pairs: x is best, held-out partner's typical rank {np.exp(-base.mean()):.0f}"
        " (chance 20)"
    )
    assert {line.split()[0]: line.endswith("not significantly") for line in others} == {
        "y": False,
        "z": True,
    }
    assert f"{lead:.2f} ± {error:.2f}" in next(line for line in others if line.split()[0] == "y")


def test_one_store_twice_is_found_out(views):
    a, _ = views
    found = list(doctor(a.path, a.path))
    assert any("same store twice" in words for words in lines(found, ERROR))


def test_methods_in_words_are_methods(views):
    a, b = views
    named = [
        finding.text for finding in doctor(a.path, b.path, budget=60, methods="ridge,procrustes")
    ]
    assert named == [
        finding.text
        for finding in doctor(a.path, b.path, budget=60, methods=["ridge", "procrustes"])
    ]


def test_the_smallest_budget_is_the_first_that_is_clear_of_chance(monkeypatch):
    rng, asked = np.random.default_rng(0), []

    def planted(experiment, stores, budget, names):
        asked.append(budget)
        return Evidence(
            budget,
            {"ridge": rng.normal(-4 if budget > 20 else -5, 1, budget)},
            np.full(budget, -5.0),
        )

    monkeypatch.setattr(evidence_module, "gather", planted)
    assert smallest_budget(None, None, [10, 20, 50, 100], "ridge").budget == 50
    assert asked == [10, 20, 50]
    assert smallest_budget(None, None, [10, 20], "ridge").budget == 20


def test_evidence_is_gathered_on_the_same_pairs_for_all(views):
    a, b = views
    settings = {
        "data": {"a": str(a.path), "b": str(b.path)},
        "budgets": [30],
        "methods": ["ridge", "procrustes"],
    }
    experiment = config.load(settings, folder=FOLDER)
    stores = Stores.open(experiment.common)
    evidence = gather(experiment, stores, 30, ["ridge", "procrustes"])
    assert {name: len(scores) for name, scores in evidence.scores.items()} == {
        "ridge": 30,
        "procrustes": 30,
    }
    alone = gather(experiment, stores, 30, ["procrustes"])
    np.testing.assert_array_equal(alone.scores["procrustes"], evidence.scores["procrustes"])
    assert (evidence.chance < -3).all()
    with pytest.raises(UserError, match="30"):
        gather(experiment, stores, 31, ["ridge"])
