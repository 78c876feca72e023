"""What TensorBoard reads back of an experiment's summary and of its runs."""

from __future__ import annotations

import csv
from io import BytesIO, StringIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from gera_lightning.aligners.aligner import Aligner
from gera_lightning.config import load
from gera_lightning.experiment.runner import plan, run_experiment
from gera_lightning.report.outcome import summarize
from gera_lightning.report.tensorboard import COLUMNS, curves, shared_rows

SETTINGS = {
    "data": {"synthetic": {"items": 90, "dim_a": 7, "dim_b": 6, "features": 16}},
    "budgets": [10, 20],
    "seeds": [1, 0],
    "methods": ["ridge", "procrustes"],
    "tuning": {"folds": 2, "max_trials": 2},
}


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    folder = tmp_path_factory.mktemp("board")
    (folder / "methods").mkdir()
    for name in ("Ridge", "Procrustes"):
        part = {"closed_form": {"class": f"gera_lightning.aligners.{name.lower()}.{name}"}}
        (folder / "methods" / f"{name.lower()}.yaml").write_text(yaml.safe_dump(part))
    (folder / "tiny.yaml").write_text(
        yaml.safe_dump(
            {**SETTINGS, "runs_dir": str(folder / "runs"), "cache_dir": str(folder / "cache")}
        )
    )
    loaded = load("tiny", folder=folder)
    summarize(loaded, run_experiment(loaded, Console(file=StringIO())))
    return loaded


@pytest.fixture(scope="module")
def written(experiment) -> Path:
    return Path(experiment.common.runs_dir) / "tiny" / "summary"


def test_curves_are_pictures_of_each_measure_and_direction(written):
    events = EventAccumulator(str(written)).Reload()
    assert sorted(events.Tags()["images"]) == [
        f"{measure}/{way}" for measure in ("r@1", "r@10") for way in ("ab", "ba")
    ]
    for tag in events.Tags()["images"]:
        [image] = events.Images(tag)
        pixels = np.asarray(Image.open(BytesIO(image.encoded_image_string)).convert("RGB"))
        assert (
            len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20
        )  # lines in colours, not an empty panel


def test_a_curve_is_the_mean_of_its_seeds_with_their_deviation():
    table = pd.DataFrame(
        [
            {"method": m, "budget": b, "seed": s, "ab/r@10": v}
            for m, b, s, v in [
                ("x", 20, 0, 0.5),
                ("x", 10, 0, 0.1),
                ("x", 10, 1, 0.3),
                ("y", 10, 0, 0.7),
            ]
        ]
    )
    x, y = curves(table, "ab/r@10")
    assert (x.label, list(x.x)) == ("x", [10, 20])
    np.testing.assert_allclose(x.y, [0.2, 0.5])
    np.testing.assert_allclose(np.subtract(x.high, x.y), [np.std([0.1, 0.3], ddof=1), 0])
    np.testing.assert_allclose(np.subtract(x.y, x.low), [np.std([0.1, 0.3], ddof=1), 0])
    assert (y.label, list(y.y)) == ("y", [0.7])


def test_the_projector_holds_one_run_a_method_with_both_modalities(experiment, written):
    config = (written / "projector_config.pbtxt").read_text()
    for run in plan(experiment):
        tag = f"{run.method}-b{run.budget}-s{run.seed}"
        shown = (run.budget, run.seed) == (20, 0)
        assert (tag in config) == shown
        if not shown:
            continue
        folder = written / "00000" / tag
        with open(folder / "metadata.tsv", newline="") as file:
            header, *lines = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        z = np.loadtxt(folder / "tensors.tsv", delimiter="\t")
        assert header == COLUMNS
        assert len(lines) == len(z)
        half = len(lines) // 2
        assert [line[0] for line in lines] == ["a"] * half + ["b"] * half
        assert [line[1] for line in lines[:half]] == [line[1] for line in lines[half:]]
        aligner, held = Aligner.load(run.folder / "aligner"), run.stores.held_out
        at = held.a.rows.index[held.a.rows["item"] == lines[3][1]]
        np.testing.assert_allclose(z[3], aligner.encode_a(held.a.x[at.tolist()])[0], atol=1e-5)


def test_of_wide_spaces_the_leading_directions_are_kept(experiment):
    run = next(run for run in plan(experiment) if (run.method, run.budget) == ("ridge", 20))
    aligner = Aligner.load(run.folder / "aligner")
    whole, rows = shared_rows(aligner, run.stores.held_out, items=8, width=100)
    cut, same = shared_rows(aligner, run.stores.held_out, items=8, width=3)
    pd.testing.assert_frame_equal(rows, same)
    assert cut.shape == (16, 3)
    values, vectors = torch.linalg.eigh(
        whole @ whole.T
    )  # the best approximation of the inner products of that rank
    best = (vectors[:, -3:] * values[-3:]) @ vectors[:, -3:].T
    torch.testing.assert_close(cut @ cut.T, best, atol=1e-5, rtol=1e-4)


def test_the_summary_is_written_anew_not_added_to(experiment, written):
    summarize(experiment, run_experiment(experiment, Console(file=StringIO())))
    assert len(list(written.glob("events.*"))) == 1
    assert len(list((written / "00000").iterdir())) == 2


def test_the_hyper_parameters_of_every_run_stand_beside_its_measures(experiment):
    for run in plan(experiment):
        events = EventAccumulator(str(run.folder)).Reload()
        tags = events.summary_metadata
        start = plugin_data_pb2.HParamsPluginData.FromString(
            tags["_hparams_/session_start_info"].plugin_data.content
        )
        told = start.session_start_info.hparams
        assert told["method"].string_value == run.method
        assert (told["budget"].number_value, told["seed"].number_value) == (run.budget, run.seed)
        assert "ab/r@10" in events.Tags()["scalars"]
