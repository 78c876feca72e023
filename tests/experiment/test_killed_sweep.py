"""A sweep that is killed without warning, started again: nothing finished is lost or redone,
nothing half-done counts.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from io import StringIO
from pathlib import Path

import pytest
import yaml
from filelock import FileLock
from rich.console import Console

from gera_lightning.config import load
from gera_lightning.experiment import run as running
from gera_lightning.experiment.run import execute
from gera_lightning.experiment.runner import plan, run_sweep

SETTINGS = {
    "data": {"synthetic": {"items": 90, "dim_a": 7, "dim_b": 6, "features": 16}},
    "budgets": [10, 12],
    "dim": 4,
    "batch": {"anchors": 4},
    "graph": {"k": 3},
    "tuning": {"folds": 2, "used_folds": 1, "max_trials": 2, "distractors": 10},
    "trainer": {"max_steps": 60, "accelerator": "cpu"},
    "checkpoint_every_n_steps": 10,
    "sweep": {"seeds": [0], "methods": ["ridge", "trained"]},
}
COMMAND = [sys.executable, "-m", "gera_lightning", "sweep", "tiny", "sweep.workers=2"]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a tiny experiment of a trained method and a closed form."""
    (tmp_path / "experiments" / "methods").mkdir(parents=True)
    (tmp_path / "experiments" / "tiny.yaml").write_text(yaml.safe_dump(SETTINGS))
    (tmp_path / "experiments" / "methods" / "trained.yaml").write_text("closed_form: null\n")
    ridge = {"closed_form": {"class": "gera_lightning.aligners.ridge.Ridge"}}
    (tmp_path / "experiments" / "methods" / "ridge.yaml").write_text(yaml.safe_dump(ridge))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path


def marks(path: Path) -> tuple[int, int]:
    """What changes when a file is written again."""
    return path.stat().st_ino, path.stat().st_mtime_ns


def test_after_sigkill_the_same_command_finishes_what_was_left_and_that_alone(project):
    runs = plan(load("tiny", {}, sweep=True))
    process = subprocess.Popen(
        COMMAND,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    while not (
        any(r.finished for r in runs)
        and any((r.partial_folder / "config.yaml").exists() for r in runs)
    ):
        assert process.poll() is None, (
            process.stderr.read()
        )  # all runs ended before one was seen under way
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)  # the sweep and both workers at once
    process.communicate()
    finished = {r.folder: marks(r.folder / "metrics.json") for r in runs if r.finished}
    killed = [r for r in runs if not r.finished]
    assert finished
    assert any(r.partial_folder.exists() for r in killed)

    screen = Console(file=StringIO(), width=200)
    again = run_sweep(load("tiny", {}, sweep=True), ["tiny"], screen)
    assert again is not None
    assert len(again) == len(runs)
    assert all(r.finished for r in runs)
    assert {folder: marks(folder / "metrics.json") for folder in finished} == finished
    redone = {
        line.split(" s0")[0] for line in screen.file.getvalue().splitlines() if " R@10 " in line
    }
    assert redone == {f"{r.method} b{r.budget}" for r in killed}
    rows = [json.loads(line) for line in Path("runs/tiny/results.jsonl").read_text().splitlines()]
    assert sorted(row["config_hash"] for row in rows) == sorted(r.hash for r in runs)
    left = [
        path.name
        for path in Path("runs/tiny").rglob("*")
        if path.name.endswith((".partial", ".lock", ".tmp"))
    ]
    assert set(left) <= {".results.lock"}


def test_what_a_killed_process_was_writing_is_not_left_in_the_finished_run(project):
    [run] = plan(load("tiny", {"methods": ["ridge"], "budgets": [10]}))
    half_written = [
        run.partial_folder / ".config.yaml.1.tmp",
        run.partial_folder / "checkpoints" / ".last.ckpt.1.tmp",
    ]
    for path in half_written:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")
    execute(run)
    assert run.finished
    assert not list(run.folder.rglob("*.tmp"))


def test_a_run_that_another_process_is_at_is_waited_for_and_not_done_twice(project, monkeypatch):
    [run] = plan(load("tiny", {"methods": ["ridge"], "budgets": [10]}))
    first = execute(run)
    run.folder.rename(project / "kept")
    monkeypatch.setattr(running, "fit", lambda *_: pytest.fail("the run was done twice"))
    answer: list[dict] = []
    with FileLock(
        run.folder.with_name(f".{run.folder.name}.lock")
    ):  # as the other process holds it
        waiting = threading.Thread(target=lambda: answer.append(execute(run)))
        waiting.start()
        waiting.join(0.3)
        assert waiting.is_alive()
        (project / "kept").rename(run.folder)
    waiting.join(30)
    assert answer == [first]
