"""The front door itself, cut down: the shipped speech_text experiment through the current
interpreter.
"""

from __future__ import annotations

import json
import subprocess
import sys

from gera_lightning import config


def test_the_shipped_experiment_trains_reports_and_is_not_run_twice(tmp_path, repository):
    words = [
        "data.split=dev",  # the sealed items are left alone
        "budgets=[100]",
        "methods=[gera,ridge]",
        "trainer.max_steps=4",
        "tuning.folds=2",
        "tuning.used_folds=1",
        "batch.anchors=8",
    ]
    command = [sys.executable, "-m", "gera_lightning", "train", "speech_text", *words]
    command += [f"runs_dir={tmp_path / 'runs'}", f"cache_dir={tmp_path / 'cache'}"]
    first = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    assert first.returncode == 0, first.stderr
    folder = tmp_path / "runs" / "speech_text"
    rows = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    assert {row["method"] for row in rows} == {"gera", "ridge"}
    ridge = next(row for row in rows if row["method"] == "ridge")
    assert 4 < ridge["ab/r@10"] / ridge["ab/chance@10"] < 50
    assert (folder / "curve.png").stat().st_size > 10_000
    [run] = (folder / "gera").glob("b*")
    assert list(run.glob("events.out.tfevents.*"))
    assert "tensorboard" in first.stdout
    again = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    assert again.returncode == 0
    assert "2 of 2 runs are finished already" in again.stdout
    assert (folder / "results.jsonl").read_text().splitlines() == [json.dumps(row) for row in rows]


def test_every_shipped_variant_differs_from_what_it_is_of(repository):
    seen = 0
    for path in sorted((repository / "experiments").glob("*.yaml")):
        loaded = config.load(str(path))
        for name, variant in loaded.common.variants.items():
            assert config.identity(loaded.methods[name]) != config.identity(
                loaded.methods[variant["of"]]
            ), name
            seen += 1
    assert seen > 10
