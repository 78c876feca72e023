"""No file that may be another person's names code: each place of docs/security.md, tried."""

from __future__ import annotations

import json
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from lightning import Trainer

from gera_lightning import AlignmentDataModule, AlignmentModule, cli
from gera_lightning.aligners import Aligner
from gera_lightning.config import load
from gera_lightning.data.store import write_store
from gera_lightning.experiment.load_run import load_run
from gera_lightning.experiment.runner import plan, run_experiment
from gera_lightning.training.fit_trained import last_checkpoint
from gera_lightning.utils.errors import UserError

N = 60
TOUCH = {"class": "subprocess.Popen", "args": ["touch", "PWNED"]}
PRESETS = {
    "coupled_ridge": {"closed_form": {"class": "gera_lightning.aligners.ridge.Ridge"}},
    "trained": {"closed_form": None},
}
SETTINGS: dict[str, Any] = {
    "data": {"a": "a", "b": "b"},
    "budgets": [10],
    "methods": ["coupled_ridge", "trained"],
    "dim": 4,
    "batch": {"anchors": 4},
    "graph": {"k": 3},
    "tuning": {"folds": 2, "used_folds": 1, "max_trials": 1, "distractors": 10},
    "trainer": {"max_steps": 4, "accelerator": "cpu"},
    "checkpoint_every_n_steps": 2,
}


class Touch:
    """Pickled, it makes a file when it is read."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("PWNED"),)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    x = np.random.default_rng(0).normal(size=(N, 6))
    for name, width in (("a", 6), ("b", 4)):
        rows = pd.DataFrame({"item": [f"i{n}" for n in range(N)]})
        rows["split"] = ["test" if n % 4 == 0 else "train" for n in range(N)]
        write_store(folder / name, x[:, :width], rows, dtype="float32")
    (folder / "experiments" / "methods").mkdir(parents=True)
    for name, preset in PRESETS.items():
        (folder / "experiments" / "methods" / f"{name}.yaml").write_text(yaml.safe_dump(preset))
    (folder / "experiments" / "mine.yaml").write_text(yaml.safe_dump(SETTINGS))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run_experiment(load("mine"))
    return folder


@pytest.fixture
def project(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the project, to put things into."""
    shutil.copytree(finished, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


@pytest.fixture
def run(project: Path) -> Path:
    [found] = project.glob("runs/mine/coupled_ridge/b*")
    return found


def edit(path: Path, **changes: Any) -> None:
    """Change keys of an aligner's record; of `about` below it."""
    record = json.loads(path.read_text())
    record["about"].update(changes.pop("about", {}))
    path.write_text(json.dumps({**record, **changes}))


def nothing_ran() -> bool:
    return not Path("PWNED").exists()


# ---- a run's or an aligner's folder ----


def test_the_settings_of_a_shared_run_are_not_followed(run):
    """Not those of its config.yaml, which would be made with the run's stores."""
    evil = {"data": {"synthetic": TOUCH}, "loggers": [TOUCH], "callbacks": [TOUCH]}
    (run / "config.yaml").write_text(yaml.safe_dump(evil))
    (run / "aligner" / "config.yaml").write_text(yaml.safe_dump(evil))
    assert cli.main(["search", str(run), "i5"]) == 0
    assert cli.main(["export", str(run / "aligner"), "out=out"]) == 0
    assert nothing_ran()


@pytest.mark.parametrize("stores", [None, {}, {"a": "a"}, "a", {"a": TOUCH, "b": TOUCH}])
def test_the_experiment_of_a_shared_aligner_is_not_loaded(project, run, stores):
    (project / "evil.yaml").write_text(yaml.safe_dump({**SETTINGS, "data": {"synthetic": TOUCH}}))
    edit(run / "aligner" / "aligner.json", about={"experiment": "evil.yaml", "stores": stores})
    for verb in (["search", str(run), "i5"], ["export", str(run / "aligner")]):
        assert cli.main(verb) == 2
    assert nothing_ran()
    words = [f"data.{side}={project / side}" for side in "ab"]
    assert load_run(str(run), words).a.path == project / "a"


@pytest.mark.parametrize("place", ["maps", "correction"])
def test_a_shared_aligner_names_no_class(run, place):
    kind = {"kind": "subprocess.Popen", "settings": {"args": ["touch", "PWNED"]}, **TOUCH}
    edit(run / "aligner" / "aligner.json", **{place: {"a": kind, "b": kind, **kind}})
    with pytest.raises(UserError):
        Aligner.load(run / "aligner")
    assert nothing_ran()


def test_weights_that_are_a_pickle_are_not_read(run):
    (run / "aligner" / "maps.safetensors").write_bytes(pickle.dumps(Touch()))
    with pytest.raises(UserError):
        Aligner.load(run / "aligner")
    assert nothing_ran()


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.system ['touch PWNED']", "{class: x}"])
def test_settings_of_finished_runs_are_values_to_show(run, tag):
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text + f"closed_form: {tag}\n")
    cli.main(["report", "mine"])
    assert nothing_ran()


def test_kept_results_name_no_code(project):
    assert cli.main(["keep", "mine"]) == 0
    path = project / "docs" / "results" / "mine.zip"
    with zipfile.ZipFile(path) as file:
        members = {name: file.read(name) for name in file.namelist()}
    runs = json.loads(members["runs.json"])
    for kept in runs:
        kept["files"]["config.yaml"] += (
            "closed_form: {class: subprocess.Popen, args: [touch, PWNED]}\n"
        )
    members["runs.json"] = json.dumps(runs).encode()
    members["ranks.npy"] = pickle.dumps(Touch())
    with zipfile.ZipFile(path, "w") as file:
        for name, data in members.items():
            file.writestr(name, data)
    shutil.rmtree("runs")
    cli.main(["report", "mine"])
    assert nothing_ran()


# ---- checkpoints ----


def test_the_last_checkpoint_of_a_run_is_no_pickle_that_runs(project, caplog):
    [run] = plan(load("mine", {"methods": ["trained"], "overwrite": False}))
    [folder] = project.glob("runs/mine/trained/b*")
    folder.rename(run.partial_folder)
    (run.partial_folder / "metrics.json").unlink()
    checkpoint = last_checkpoint(run.partial_folder)
    assert checkpoint.is_file()
    torch.save({"state_dict": Touch()}, checkpoint)
    run_experiment(load("mine", {"methods": ["trained"]}))
    assert run.finished
    assert nothing_ran()
    assert str(checkpoint) in caplog.text


def test_a_checkpoint_of_a_module_runs_nothing(project, tmp_path):
    stream = {"batch.anchors": 4, "graph.k": 3, "data.reserved_pairs": 20}
    data = AlignmentDataModule("a", "b", budget=10, settings=stream)
    fitting = Trainer(max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False)
    fitting.fit(AlignmentModule("trained"), datamodule=data)
    fitting.save_checkpoint(tmp_path / "x.ckpt")
    kept = torch.load(tmp_path / "x.ckpt", weights_only=True)
    for settings in (
        {"head.class": "subprocess.Popen", "head.args": ["touch", "PWNED"]},
        {"losses.pair": TOUCH},
        {"optimizer": "subprocess.Popen"},
        {"tuning.grid": {"optimizer.class": ["subprocess.Popen"]}},
    ):
        kept["hyper_parameters"]["settings"] = settings
        torch.save(kept, tmp_path / "evil.ckpt")
        with pytest.raises(UserError) as error:
            AlignmentModule.load_from_checkpoint(tmp_path / "evil.ckpt")
        assert error.value.value == "subprocess.Popen"
    again = AlignmentModule.load_from_checkpoint(tmp_path / "evil.ckpt", settings={})
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in kept["state_dict"].items())
    kept["hyper_parameters"]["settings"] = Touch()
    torch.save(kept, tmp_path / "evil.ckpt")
    with pytest.raises(pickle.UnpicklingError):
        AlignmentModule.load_from_checkpoint(tmp_path / "evil.ckpt")
    assert nothing_ran()


# ---- stores ----


def test_vectors_that_are_a_pickle_are_not_read(project):
    [vectors] = (project / "a").glob("emb_*.npy")
    np.save(vectors, np.array([Touch()], dtype=object), allow_pickle=True)
    assert cli.main(["inspect", "a"]) == 2
    assert nothing_ran()


def test_what_a_store_says_of_its_encoder_is_text(project):
    manifest = project / "a" / "manifest.json"
    record = json.loads(manifest.read_text())
    record["encoder"] = {"name": "subprocess.Popen", **TOUCH}
    manifest.write_text(json.dumps(record))
    assert cli.main(["inspect", "a"]) == 0
    assert nothing_ran()
