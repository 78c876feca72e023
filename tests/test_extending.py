"""A loss, filter, closed form, metric, callback and encoder of a user's own: a module beside the
experiment and YAML that names it, nothing of the package touched.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from gera_lightning.cli import main
from gera_lightning.data.store import EmbeddingStore

MINE = """
from dataclasses import dataclass

import torch
from lightning import Callback

from gera_lightning.aligners import Ridge
from gera_lightning.losses.base import Loss
from gera_lightning.models.maps import Linear


class Uniformity(Loss):
    def __init__(self, temperature: float = 1.0):
        super().__init__()
        self.temperature = temperature

    def on_step(self, batch):
        z = batch.pairs_a.z
        return (z @ z.T / self.temperature).exp().mean().log()


@dataclass(frozen=True)
class Scale:
    factor: float = 2.0

    def fit(self, pool):
        width = pool.shape[1]
        return Linear(width, width, weight=self.factor * torch.eye(width))


@dataclass
class Strict:
    strength: float = 1.0

    def settings(self, count, pairs):
        return [{"penalty": self.strength}]

    def candidates(self, samples, settings):
        yield from Ridge().candidates(samples, settings)


class Spread:
    def __call__(self, evaluated):
        return {"spread": float(evaluated.z_a.std())}


class Count(Callback):
    def __init__(self, path: str):
        self.path = path

    def on_train_end(self, trainer, module):
        with open(self.path, "w") as file:
            file.write(str(trainer.global_step))


class Letters:
    name, dim = "letters", 26

    def describe(self):
        return {"name": self.name, "dim": self.dim}

    def encode(self, texts):
        rows = [[text.count(chr(97 + i)) for i in range(26)] for text in texts]
        return torch.tensor(rows, dtype=torch.float32).numpy().reshape(-1, 26)
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "mine.py").write_text(MINE)
    folder = tmp_path / "experiments" / "methods"
    folder.mkdir(parents=True)
    losses = {"pair": "clip", "uniformity": {"class": "mine.Uniformity", "weight": 0.1}}
    scaled = [[], [{"class": "mine.Scale", "factor": 3.0}]]
    presets = {
        "trained": {
            "losses": losses,
            "callbacks": [{"class": "mine.Count", "path": "counted"}],
            "tuning": {"grid": {"losses.uniformity.weight": [0.1, 1.0]}},
        },
        "closed": {
            "closed_form": {"class": "mine.Strict", "strength": 0.5},
            "filters": {"a": scaled},
        },
    }
    for name, preset in presets.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(preset))
    settings = {
        "data": {"synthetic": {"items": 120, "dim_a": 7, "dim_b": 6, "features": 16}},
        "budgets": [12],
        "methods": [*presets],
        "loggers": ["tensorboard", "csv"],
        "tuning": {"folds": 2, "max_trials": 4, "used_folds": 1},
        "evaluation": {"metrics": ["mine.Spread"]},
        "trainer": {
            "max_steps": 4,
            "accelerator": "cpu",
            "detect_anomaly": True,
            "log_every_n_steps": 1,
        },
    }
    (tmp_path / "experiments" / "own.yaml").write_text(yaml.safe_dump(settings))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_parts_of_ones_own_train_tune_and_measure(project, capsys):
    assert main(["train", "own"]) == 0, capsys.readouterr().err
    lines = (project / "runs" / "own" / "results.jsonl").read_text().splitlines()
    rows = {row["method"]: row for row in map(json.loads, lines)}
    assert rows["trained"]["chosen"]["losses.uniformity.weight"] in (0.1, 1.0)
    assert rows["closed"]["chosen"] == {"filter_a": 0.0, "penalty": 0.5}
    assert all(0 < row["spread"] < 1 for row in rows.values())
    assert int((project / "counted").read_text()) == rows["trained"]["steps"]
    [run] = (project / "runs" / "own" / "trained").glob("b*")
    assert "loss/uniformity" in (run / "csv" / "metrics.csv").read_text()
    assert list(run.glob("events.out.tfevents.*"))


def test_a_misspelt_argument_or_class_of_ones_own_is_named(project, capsys):
    for word, said in (
        ("losses.uniformity.temprature=2", "did you mean 'temperature'"),
        ("losses.uniformity.class=mine.Uniform", "did you mean 'Uniformity'"),
        ("trainer.max_stepz=3", "did you mean 'max_steps'"),
    ):
        assert main(["train", "own", "methods=[trained]", word]) == 2
        assert said in capsys.readouterr().err


def test_an_encoder_of_ones_own_makes_a_store(project, capsys):
    (project / "texts").mkdir()
    for name in ("abba", "cab", "bead"):
        (project / "texts" / f"{name}.txt").write_text(name)
    side = {
        "corpus": {"class": "folder", "root": "texts", "modality": "text"},
        "encoder": {"class": "mine.Letters"},
    }
    settings = {
        "data": {"a": "left", "b": "right"},
        "embed": {"a": side, "b": side},
        "methods": ["closed"],
    }
    (project / "experiments" / "raw.yaml").write_text(yaml.safe_dump(settings))
    assert main(["embed", "raw"]) == 0, capsys.readouterr().err
    store = EmbeddingStore("left")
    counts = store.read()[[store.rows["item"].tolist().index("abba")]]
    assert np.array_equal(counts[0, :4], [2, 2, 0, 0])
