"""Parts of a user's own, as docs/extending.md writes them: its Python is `my_parts.py`, its YAML is
one experiment, and nothing of the package is touched.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from gera_lightning.cli import main
from gera_lightning.data.store import EmbeddingStore

PAGE = Path(__file__).parents[1] / "docs/extending.md"
BLOCKS = re.findall(r"^```(python|yaml)\n(.*?)^```$", PAGE.read_text(), re.M | re.S)
PYTHON = "\n\n".join(text for language, text in BLOCKS if language == "python")


def settings_of_the_page() -> dict[str, Any]:
    """All its YAML as one experiment: each variant is a method."""
    merged: dict[str, Any] = {"variants": {}}
    for settings in (yaml.safe_load(text) for language, text in BLOCKS if language == "yaml"):
        merged["variants"] |= settings.pop("variants", {})
        assert not settings.keys() & merged.keys()
        merged |= settings
    return merged


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The page's module and experiment, on a few made items."""
    (tmp_path / "my_parts.py").write_text(PYTHON)
    settings = settings_of_the_page()
    raw = {"data": {"b": "right"}, "embed": settings.pop("embed")}
    settings["variants"]["mine"]["tuning.grid"] = {"losses.uniformity.weight": [0.1, 1.0]}
    settings["trainer"] |= {"max_steps": 4, "accelerator": "cpu", "log_every_n_steps": 1}
    settings |= {
        "data": {"synthetic": {"items": 120, "dim_a": 7, "dim_b": 6, "features": 16}},
        "budgets": [12],
        "methods": [*settings["variants"]],
        "tuning": {"folds": 2, "max_trials": 4, "used_folds": 1},
    }
    (tmp_path / "experiments").mkdir()
    for name, values in (("own", settings), ("raw", raw)):
        (tmp_path / "experiments" / f"{name}.yaml").write_text(yaml.safe_dump(values))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_parts_of_ones_own_train_tune_and_measure(project, capsys):
    assert main(["train", "own"]) == 0, capsys.readouterr().err
    lines = (project / "runs" / "own" / "results.jsonl").read_text().splitlines()
    rows = {row["method"]: row for row in map(json.loads, lines)}
    assert rows.keys() == {"mine", "whitened", "least_squares"}
    assert rows["mine"]["chosen"]["losses.uniformity.weight"] in (0.1, 1.0)
    assert rows["least_squares"]["chosen"]["cutoff"] in (0.1, 0.01)
    assert rows["whitened"]["chosen"]["filter_a"] in (0.0, 1.0)
    assert all(0 < row["a/mean_norm"] < 1 for row in rows.values())
    assert re.search(r"\{'loss\S*': [-\d.]", capsys.readouterr().out)  # of the callback
    [run] = (project / "runs" / "own" / "mine").glob("b*")
    assert "loss/uniformity" in (run / "csv" / "metrics.csv").read_text()
    assert list(run.glob("events.out.tfevents.*"))
    assert "mine/loss" in "".join(p.read_text() for p in project.glob("logs/**/metrics.csv"))


def test_a_misspelt_argument_or_class_of_ones_own_is_named(project, capsys):
    for word, said in (
        ("evaluation.metrics=[{class: my_parts.MeanNorm, row: 5}]", "did you mean 'rows'"),
        ("losses.uniformity.class=my_parts.Uniform", "did you mean 'Uniformity'"),
        ("trainer.max_stepz=3", "did you mean 'max_steps'"),
    ):
        assert main(["train", "own", "methods=[mine]", word]) == 2
        assert said in capsys.readouterr().err


def test_an_encoder_of_ones_own_makes_a_store(project, capsys):
    (project / "raw" / "recordings").mkdir(parents=True)
    for name in ("abba", "cab", "bead"):
        (project / "raw" / "recordings" / f"{name}.txt").write_text(name)
    assert main(["embed", "raw"]) == 0, capsys.readouterr().err
    store = EmbeddingStore("right")
    counts = store.read()[[store.rows["item"].tolist().index("abba")]]
    assert np.array_equal(counts[0, :4], [2, 2, 0, 0])
