"""Searching with, and exporting, what an experiment's best finished run has learnt."""

from __future__ import annotations

import shutil
from io import StringIO
from pathlib import Path

import faiss
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from rich.console import Console

from gera_lightning import cli
from gera_lightning.aligners.aligner import Aligner
from gera_lightning.commands.export import export, score_rows
from gera_lightning.commands.search import matching, search
from gera_lightning.config import load
from gera_lightning.data.store import EmbeddingStore, write_store
from gera_lightning.experiment.load_run import load_run
from gera_lightning.experiment.results import load_sweep
from gera_lightning.experiment.runner import run_experiment
from gera_lightning.utils.errors import UserError

N = 80
RIDGE = {"closed_form": {"class": "gera_lightning.aligners.ridge.Ridge"}}
CSLS = {**RIDGE, "correction": {"class": "gera_lightning.models.shared_space.CSLS", "k": 3}}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A project whose experiment has run, at two budgets and seeds: `coupled_ridge` with a score
    correction and `ridge` without.
    """
    folder = tmp_path_factory.mktemp("project")
    x = np.random.default_rng(0).normal(size=(N, 6)).astype(np.float32)
    for name, width in (("a", 6), ("b", 4)):
        rows = pd.DataFrame(
            {"row": [f"{name}{n}" for n in range(N)], "item": [f"i{n}" for n in range(N)]}
        )
        rows["text"] = [f"The {'sound' if name == 'a' else 'word'} number {n}" for n in range(N)]
        rows["split"] = ["test" if n % 4 == 0 else "train" for n in range(N)]
        write_store(
            folder / name,
            x[:, :width],
            rows,
            encoder={"name": f"enc-{name}"},
            source={"name": "test"},
            dtype="float32",
            shard_rows=50,
        )
    (folder / "experiments" / "methods").mkdir(parents=True)
    for name, preset in (("coupled_ridge", CSLS), ("ridge", RIDGE)):
        (folder / "experiments" / "methods" / f"{name}.yaml").write_text(yaml.safe_dump(preset))
    settings = {
        "data": {"a": "a", "b": "b"},
        "budgets": [10, 20],
        "seeds": [1, 0],
        "methods": ["ridge", "coupled_ridge"],
        "tuning": {"folds": 2},
    }
    (folder / "experiments" / "small.yaml").write_text(yaml.safe_dump(settings))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run_experiment(load("small"), Console(file=StringIO()))
    return folder


@pytest.fixture
def project(finished: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(finished)
    return finished


# ---- which run ----


def test_an_experiment_stands_for_its_default_at_the_largest_budget_and_least_seed(project):
    run = load_run("small")
    assert (
        run.aligner.about["method"],
        run.aligner.about["budget"],
        run.aligner.about["seed"],
    ) == ("coupled_ridge", 20, 0)
    other = load_run("small", method="ridge", budget=10)
    assert (
        other.aligner.about["method"],
        other.aligner.about["budget"],
        other.aligner.about["seed"],
    ) == ("ridge", 10, 0)


@pytest.mark.parametrize("inner", ["", "/aligner"])
def test_a_folder_stands_for_itself(project, inner):
    [folder] = project.glob("runs/small/ridge/b10-s1-*")
    run = load_run(f"{folder}{inner}")
    assert run.folder == folder
    assert run.a.path == Path("a")


@pytest.mark.parametrize(
    ("options", "key", "value"),
    [
        ({"method": "gerra"}, "method", "gerra"),
        ({"budget": 15}, "budget", 15),
        ({"overrides": ["runs_dir=nowhere"]}, "nowhere/small", None),
    ],
)
def test_what_is_not_there_is_named(project, options, key, value):
    with pytest.raises(UserError) as error:
        load_run("small", **options)
    assert error.value.key.endswith(key)
    assert error.value.value == value


def test_a_folder_names_its_stores_whatever_the_experiment_is_called_now(project, tmp_path):
    [folder] = project.glob("runs/small/ridge/b10-s0-*")
    (project / "experiments" / "small.yaml").rename(tmp_path / "small.yaml")
    try:
        run = load_run(str(folder))
        assert (run.a.path, run.b.path) == (Path("a"), Path("b"))
        assert search(str(folder), "i5", k=2).startswith(str(folder))
        shutil.copytree("b", tmp_path / "moved")
        assert load_run(str(folder), [f"data.b={tmp_path / 'moved'}"]).b.path == tmp_path / "moved"
        with pytest.raises(UserError) as error:
            load_run(str(folder), ["data.b=a"])
        assert error.value.key == str(folder)
        assert "data.b=" in error.value.remedy
    finally:
        (tmp_path / "small.yaml").rename(project / "experiments" / "small.yaml")


def test_where_no_run_is_finished_the_aligner_of_all_pairs_is_taken(project, tmp_path):
    [run] = project.glob("runs/small/ridge/b10-s1-*")
    shutil.copytree(run / "aligner", tmp_path / "runs" / "small" / "aligner")
    words = [f"runs_dir={tmp_path / 'runs'}"]
    assert load_run("small", words).folder == tmp_path / "runs" / "small"
    with pytest.raises(UserError, match="no finished run"):
        load_run("small", words, method="ridge")


def test_latest_is_the_aligner_of_a_method_that_finished_last(project):
    for method in ("coupled_ridge", "ridge"):
        runs = list(project.glob(f"runs/small/{method}/b*"))
        newest = max(runs, key=lambda path: (path / "metrics.json").stat().st_mtime_ns)
        latest = project / "runs" / "small" / method / "latest"
        assert latest.resolve() == (newest / "aligner").resolve()
        assert load_run(str(latest)).aligner.about["method"] == method
    assert len(load_sweep(project / "runs" / "small").runs) == 8


# ---- search ----


def test_a_row_is_found_by_its_name_its_item_its_text_or_a_part_of_it(project):
    rows = EmbeddingStore("a").rows
    for query in ("a7", "i7", " the SOUND number 7 "):
        assert matching(rows, query, whole=True).tolist() == [7]
    assert not len(matching(rows, "number 7", whole=True))
    assert matching(rows, "number 7", whole=False).tolist() == [7, *range(70, 80)]
    assert not len(matching(rows, "word", whole=False))
    assert not len(matching(rows.drop(columns="text"), "num", whole=False))


def test_the_matches_are_the_aligners_best_and_right_ones_carry_a_star(project):
    run = load_run("small")
    first, query, *found = search("small", "i5", k=4).splitlines()
    assert first == f"{run.folder}   (*: of the same item)"
    assert "The sound number 5" in query
    scores = run.aligner.score(run.a.read([5]), run.b)[0]
    best = scores.topk(4)
    for line, value, number in zip(found, best.values.tolist(), best.indices.tolist(), strict=True):
        assert line.startswith("b*" if number == 5 else "b ")
        assert f"{value:.3f}" in line
        assert f"The word number {number} " in line
    assert any(line.startswith("b*") for line in search("small", "i5", k=N).splitlines())


def test_the_side_that_knows_the_query_asks_unless_one_is_named(project):
    assert search("small", "word number 12").splitlines()[2].startswith("a")
    assert search("small", "i3", side="b").splitlines()[2].startswith("a")
    with pytest.raises(UserError) as error:
        search("small", "word number 12", side="a")
    assert (error.value.key, error.value.value) == ("query", "word number 12")
    assert "(10 more rows of a match)" in search("small", "number 7")


def test_modalities_carry_their_names(project, tmp_path):
    """An aligner of stores that lie in other folders, whose names are the modalities'."""
    for side, name in (("a", "sound"), ("b", "word")):
        shutil.copytree(side, tmp_path / name)
    words = [f"data.a={tmp_path / 'sound'}", f"data.b={tmp_path / 'word'}"]
    aligner = load_run("small").aligner
    aligner.about["modalities"] = ["sound", "word"]
    aligner.save(tmp_path / "aligner")
    target = str(tmp_path / "aligner")
    _, query, *found = search(target, "i5", words, k=2).splitlines()
    assert query.startswith("sound ")
    assert all(line.startswith("word") for line in found)
    assert search(target, "i5", words, side="word").splitlines()[1].startswith("word ")
    with pytest.raises(UserError) as error:
        search(target, "i5", words, side="sond")
    assert (error.value.key, error.value.value) == ("side", "sond")
    folder = export(target, words, out=str(tmp_path / "out"))
    assert EmbeddingStore(folder / "a").encoder["modality"] == "sound"


def test_the_commands_print_and_refuse(project, capsys, tmp_path):
    assert cli.main(["search", "small", "sound number 5", "k=2", "runs_dir=runs"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4
    for arguments in (
        ["search", "small"],
        ["search", "small", ""],
        ["search", "", "x"],
        ["search", "small", "x", "k=0"],
        ["search", "small", "qqq"],
    ):
        assert cli.main(arguments) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert cli.main(["export", "small", "method=ridge", f"out={tmp_path / 'out'}"]) == 0
    assert str(tmp_path / "out" / "b.index") in capsys.readouterr().out
    assert cli.main(["export", "small", "method=ridge", f"out={tmp_path / 'out'}"]) == 2
    assert "store" in capsys.readouterr().err


# ---- export ----


@pytest.mark.parametrize("method", ["coupled_ridge", "ridge"])
def test_dot_products_of_exported_rows_are_scores(project, tmp_path, method):
    run = load_run("small", method=method)
    folder = export("small", out=str(tmp_path / method), method=method)
    a, b = EmbeddingStore(folder / "a"), EmbeddingStore(folder / "b")
    scores = run.aligner.score(run.a, run.b)
    torch.testing.assert_close(
        torch.from_numpy(a.read() @ b.read().T), scores, atol=1e-5, rtol=1e-4
    )
    pd.testing.assert_frame_equal(a.rows, run.a.rows)
    assert "in the shared space of" in b.encoder["name"]
    a.verify()


def test_faiss_reads_the_index_and_finds_what_the_aligner_finds(project, tmp_path):
    run = load_run("small")
    folder = export("small", out=str(tmp_path / "out"))
    assert Aligner.load(run.folder / "aligner").space.correction is not None
    for query, gallery, direction in (("a", "b", "ab"), ("b", "a", "ba")):
        index = faiss.read_index(str(folder / f"{gallery}.index"))
        values, found = index.search(
            score_rows(run.aligner, query, getattr(run, query).read(slice(0, 9))).numpy(), 5
        )
        expected, numbers = run.aligner.search(
            getattr(run, query).read(slice(0, 9)), getattr(run, gallery), 5, direction=direction
        )
        np.testing.assert_allclose(values, expected, atol=1e-5)
        np.testing.assert_array_equal(found, numbers)


@pytest.mark.parametrize("method", ["coupled_ridge", "ridge"])
def test_a_projected_export_has_nearly_the_same_scores(project, tmp_path, method, capsys):
    run = load_run("small", method=method)
    scores = run.aligner.score(run.a, run.b)
    width = run.aligner.encode("a", run.a).shape[1]
    errors = []
    for dim in (width - 1, 3):
        folder = export("small", out=str(tmp_path / str(dim)), method=method, dim=dim, index="Flat")
        assert f"{dim} of {width} directions keep " in capsys.readouterr().out
        a, b = EmbeddingStore(folder / "a"), EmbeddingStore(folder / "b")
        extra = 2 if method == "coupled_ridge" else 0
        assert a.dim == b.dim == dim + extra
        errors.append((torch.from_numpy(a.read() @ b.read().T) - scores).abs().mean())
        basis = torch.from_numpy(np.load(folder / "basis.npy"))
        rows = score_rows(run.aligner, "a", run.a.read([4]), basis)
        np.testing.assert_allclose(rows[0], a.read([4])[0], atol=1e-5)
    assert errors[0] < 0.02 < errors[1]
    whole = export("small", out=str(tmp_path / "whole"), method=method, dim=width)
    assert not (whole / "basis.npy").exists()
    with pytest.raises(UserError, match="dim=0"):
        export("small", out=str(tmp_path / "none"), dim=0)


def test_an_export_lies_in_the_runs_folder_and_takes_a_half_of_the_room_in_float16(project):
    folder = export("small", dtype="float16")
    try:
        assert folder == load_run("small").folder / "export"
        assert np.load(folder / "a" / "emb_0000.npy").dtype == np.float16
    finally:
        shutil.rmtree(folder)


def test_an_aligner_too_large_for_the_device_searches_and_exports_on_the_cpu(
    project, tmp_path, monkeypatch, caplog
):
    """The device here is `meta`, whose rows have no values."""
    words, asked, moved = ["trainer.accelerator=gpu"], [], Aligner.to
    expected, first = search("small", "i5"), export("small", out=str(tmp_path / "first"))

    def full(self: Aligner, device: torch.device) -> Aligner:
        if device.type == "meta":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return moved(self, device)

    monkeypatch.setattr(
        "gera_lightning.utils.distributed.device",
        lambda accelerator: asked.append(accelerator) or torch.device("meta"),
    )
    monkeypatch.setattr(Aligner, "to", full)
    assert search("small", "i5", words) == expected
    second = export("small", words, out=str(tmp_path / "second"), index="IVF2,Flat")
    for side in "ab":
        np.testing.assert_array_equal(
            EmbeddingStore(second / side).read(), EmbeddingStore(first / side).read()
        )
    assert asked == ["gpu", "gpu"]
    assert caplog.text.count("the memory of meta is too small for the aligner in") == 2


@pytest.mark.parametrize(
    "options", [{"index": "Flatt"}, {"index": "IVF1000,Flat"}, {"dtype": "float8"}]
)
def test_a_refused_export_leaves_nothing_behind(project, tmp_path, options):
    [(word, value)] = options.items()
    with pytest.raises(UserError, match=rf"{word}='{value}'"):
        export("small", out=str(tmp_path / "out"), **options)
    assert not list(tmp_path.iterdir())
    assert export("small", out=str(tmp_path / "out")).is_dir()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError) as error:
        export("small", out=str(tmp_path / "out"), method="ridge")
    assert (error.value.key, error.value.value) == ("out", str(tmp_path / "out"))
    assert sorted(tmp_path.rglob("*")) == before


def test_an_aligner_beside_is_not_taken_for_what_was_named(project, tmp_path, monkeypatch):
    """Neither for an experiment, nor for a run that is not there; but a folder that is an aligner's
    is one, whatever it is called.
    """
    [run] = project.glob("runs/small/ridge/b10-s1-*")
    for place in ("aligner", "runs/small/aligner", "mine"):
        shutil.copytree(run / "aligner", project / place)
    try:
        assert load_run("small").aligner.about["method"] == "coupled_ridge"
        with pytest.raises(UserError, match="nonsense"):
            load_run("runs/small/nonsense")
        for place in ("mine", "runs/small/aligner", "runs/small"):
            assert load_run(place).aligner.about["method"] == "ridge"
        assert search("mine", "i5", k=2).startswith("mine ")
    finally:
        for place in ("aligner", "runs/small/aligner", "mine"):
            shutil.rmtree(project / place)
