"""A training that is killed at random moments, and started again, ends in the same bytes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

KILLS = 2 * int(os.environ.get("FAULTS", "1"))
"""`make test-faults` multiplies them."""
SETTINGS = {
    "data": {"synthetic": {"items": 200, "dim_a": 7, "dim_b": 6, "features": 16}},
    "budgets": [20],
    "methods": ["trained", "ridge"],
    "dim": 4,
    "losses": {"geometric": {"class": "geometric", "weight": 1.0}},
    "batch": {"anchors": 8},
    "graph": {"k": 3},
    "tuning": {"folds": 2, "used_folds": 2, "max_trials": 3, "distractors": 20},
    "trainer": {"max_steps": 150, "accelerator": "cpu"},
    "checkpoint_every_n_steps": 10,
}
COMMAND = [sys.executable, "-m", "gera_lightning", "train", "mine"]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    methods = tmp_path / "experiments" / "methods"
    methods.mkdir(parents=True)
    (tmp_path / "experiments" / "mine.yaml").write_text(yaml.safe_dump(SETTINGS))
    (methods / "trained.yaml").write_text("closed_form: null\n")
    (methods / "ridge.yaml").write_text("closed_form: ridge\nlosses: {geometric: null}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path


def outcome(project: Path, runs: str) -> dict[str, bytes]:
    """Bytes of every aligner by the name of its method."""
    paths = sorted((project / runs).glob("mine/*/b*/aligner/maps.safetensors"))
    return {path.parents[2].name: path.read_bytes() for path in paths}


def started(number: int | str) -> subprocess.Popen[bytes]:
    words = [f"runs_dir=runs{number}", f"cache_dir=cache{number}"]
    return subprocess.Popen(
        [*COMMAND, *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def test_kill_9_at_any_moment_and_the_same_command_end_in_the_same_bytes(project: Path):
    begun = time.monotonic()
    whole = started("")
    assert whole.wait(timeout=300) == 0
    seconds = time.monotonic() - begun
    expected = outcome(project, "runs")
    assert set(expected) == {"trained", "ridge"}
    rng = np.random.default_rng(0)
    for number in range(KILLS):
        process = started(number)
        time.sleep(rng.uniform(0.3, 1.0) * seconds)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        again = started(number)
        _, errors = again.communicate(timeout=300)
        assert again.returncode == 0, errors.decode()
        assert outcome(project, f"runs{number}") == expected
        left = [path.name for path in (project / f"runs{number}").rglob("*")]
        assert not [name for name in left if name.endswith((".partial", ".tmp"))]
