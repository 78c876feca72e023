"""SIGTERM, SIGHUP and the death of a parent end real commands and all their processes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from gera_lightning import cli
from gera_lightning.utils import signals

SETTINGS = {
    "data": {"synthetic": {"items": 90, "dim_a": 7, "dim_b": 6, "features": 16}},
    "budgets": [10, 12],
    "methods": ["trained"],
    "dim": 4,
    "batch": {"anchors": 4},
    "graph": {"k": 3},
    "tuning": {"folds": 2, "used_folds": 1, "max_trials": 2, "distractors": 10},
    "trainer": {"max_steps": 1_000_000, "accelerator": "cpu"},
    "sweep": {"seeds": [0], "methods": ["trained"]},
}
COMMANDS = {
    "one process": ["train", "endless"],
    "two processes": ["train", "endless", "trainer.devices=2"],
    "two workers": ["sweep", "endless", "sweep.workers=2"],
}
STOPPED = "stopped; the same command goes on from here"


@pytest.fixture
def start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a command that trains without end, and waits until it does."""
    (tmp_path / "experiments" / "methods").mkdir(parents=True)
    (tmp_path / "experiments" / "endless.yaml").write_text(yaml.safe_dump(SETTINGS))
    (tmp_path / "experiments" / "methods" / "trained.yaml").write_text("closed_form: null\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    processes = []

    def started(*words: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "gera_lightning", *words],
            env={**os.environ, "TEST_FOLDER": str(tmp_path)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        deadline = time.monotonic() + 120
        while not any(tmp_path.glob("runs/endless/trained/*.partial/tuning/*/*")):
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.05)
        return process

    yield started
    for process in processes:
        for pid in [*started_by(process), process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.communicate()


def started_by(process: subprocess.Popen[str]) -> list[int]:
    """Processes that a test's command started, itself left out; no zombies."""
    mark, found = f"TEST_FOLDER={Path.cwd()}".encode(), []
    for entry in Path("/proc").iterdir():
        try:
            state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            if mark in (entry / "environ").read_bytes().split(b"\0") and state != "Z":
                found.append(int(entry.name))
        except (ValueError, OSError):
            continue
    return [pid for pid in found if pid != process.pid]


def all_end(process: subprocess.Popen[str]) -> bool:
    deadline = time.monotonic() + 60
    while started_by(process):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


@pytest.mark.parametrize("how", COMMANDS)
def test_sigterm_ends_a_command_with_143_and_one_line(start, how):
    process = start(*COMMANDS[how])
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM
    assert [line for line in errors.splitlines() if line] == [STOPPED]
    assert all_end(process)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of it")
@pytest.mark.parametrize("how", ["two processes", "two workers"])
def test_processes_end_with_a_command_that_is_killed(start, how):
    process = start(*COMMANDS[how])
    assert len(started_by(process)) == 2
    process.kill()
    process.wait()
    assert all_end(process)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_command_says_which_signal_stopped_it(monkeypatch, capsys, number):
    usual = {
        signal.SIGTERM: signal.SIG_DFL,
        signal.SIGHUP: signal.SIG_DFL,
        signal.SIGINT: signal.default_int_handler,
    }
    before = {s: signal.signal(s, usual[s]) for s in usual}  # a shell's job ignores some
    handlers = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)}
    monkeypatch.setattr(
        "gera_lightning.commands.train.run", lambda words: signal.raise_signal(number)
    )
    try:
        assert cli.main(["train", "x"]) == 128 + number
        assert capsys.readouterr().err == f"{STOPPED}\n"
        assert {s: signal.getsignal(s) for s in handlers} == handlers
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def test_a_signal_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with signals.interruptible():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_signal_that_comes_while_an_object_is_deleted_is_not_lost():
    class Deleted:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGTERM)  # Python drops what is raised here

    def delete_and_wait() -> None:
        Deleted()
        time.sleep(10)

    with signals.interruptible(), pytest.raises(signals.Interrupted):
        delete_and_wait()


def test_a_process_whose_parent_is_gone_does_not_begin(monkeypatch, capsys):
    monkeypatch.setenv(signals.PARENT, "1234567890")
    assert cli.main(["train", "synthetic"]) == 128 + signal.SIGTERM
    assert capsys.readouterr().err == ""
    assert signals.PARENT not in os.environ
