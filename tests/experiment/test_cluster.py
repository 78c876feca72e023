"""Jobs of this machine stand for those of a cluster: submitit runs both in the same way."""

from __future__ import annotations

import builtins
import json
import sys
from pathlib import Path

import pytest
import yaml

from gera_lightning.config import SweepConfig, load
from gera_lightning.experiment import cluster, runner
from gera_lightning.utils.errors import UserError

PYTHON = [sys.executable, "-c"]
QUICK = {"timeout_min": 1, "stderr_to_stdout": True}


def test_each_command_is_a_job_and_its_output_is_in_the_log_that_is_named(tmp_path):
    jobs = cluster.submit(
        [[*PYTHON, f"print('shard {n}')"] for n in (1, 2)], "local", QUICK, tmp_path / "jobs"
    )
    cluster.wait(jobs)
    words = cluster.watching(jobs, "local")
    for number, job in enumerate(jobs, start=1):
        assert f"shard {number}" in job.paths.stdout.read_text()
        assert f"job {job.job_id}" in words
        assert f"tail -f {tmp_path / 'jobs' / job.paths.stdout.name}" in words
    assert "squeue" not in words
    assert f"squeue -j {jobs[0].job_id}" in cluster.watching(jobs[:1], "slurm")


def test_all_jobs_are_waited_for_and_those_that_failed_are_named(tmp_path):
    slow = tmp_path / "slow"
    commands = [
        [*PYTHON, "raise SystemExit(3)"],
        [*PYTHON, f"import time; time.sleep(1); open({str(slow)!r}, 'w')"],
    ]
    jobs = cluster.submit(commands, "local", {"timeout_min": 1}, tmp_path)
    with pytest.raises(UserError, match=rf"1 of 2 jobs failed: job {jobs[0].job_id} .*_log\.err"):
        cluster.wait(jobs)
    assert slow.exists()


def test_a_job_near_its_time_limit_is_submitted_again_as_it_was():
    command = cluster.Command(["gera", "sweep"])
    again = command.checkpoint()
    assert again.function == command
    assert (again.args, again.kwargs) == ((), {})


@pytest.mark.parametrize(
    ("where", "resources", "words"),
    [
        ("local", {"cpus": 3}, r"sweep\.resources=.*cpus"),
        ("local", {"cpus_per_task": "many"}, r"sweep\.resources=.*cpus_per_task"),
        ("slurm", {}, r"sweep\.submit=slurm: the jobs cannot be submitted .*slurm"),
    ],
)
def test_what_submitit_refuses_is_a_mistake_of_the_users(
    tmp_path, monkeypatch, where, resources, words
):
    monkeypatch.setenv("PATH", str(tmp_path))  # no sbatch here
    with pytest.raises(UserError, match=words):
        cluster.submit([["true"]], where, resources, tmp_path)


def test_without_submitit_the_extra_is_named(tmp_path, monkeypatch):
    honest = builtins.__import__

    def missing(name, *rest):
        if name == "submitit":
            raise ImportError(name)
        return honest(name, *rest)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(UserError, match=r"pip install 'gera-lightning\[cluster\]'"):
        cluster.submit([["true"]], "local", {}, tmp_path)


def test_slurm_is_asked_for_one_array_with_what_the_resources_say(tmp_path, monkeypatch):
    """A stand-in for sbatch records the batch file that it is given."""
    bin_folder, seen = tmp_path / "bin", tmp_path / "seen.sh"
    bin_folder.mkdir()
    for name, text in (
        ("sbatch", f'cp "$1" {seen}; echo "Submitted batch job 4711"'),
        ("srun", "true"),
        ("sacct", "true"),
    ):
        (bin_folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (bin_folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin_folder}:/usr/bin:/bin")
    resources = {
        "name": "gera-x",
        "timeout_min": 90,
        "cpus_per_task": 3,
        "gpus_per_node": 1,
        "mem_gb": 7,
        "slurm_partition": "short",
    }
    jobs = cluster.submit([["true"], ["false"]], "slurm", resources, tmp_path / "jobs")
    assert [job.job_id for job in jobs] == ["4711_0", "4711_1"]
    asked = seen.read_text()
    for line in (
        "job-name=gera-x",
        "time=90",
        "cpus-per-task=3",
        "gpus-per-node=1",
        "mem=7GB",
        "partition=short",
        "array=0-1%",
    ):
        assert f"#SBATCH --{line}" in asked
    assert "squeue -j 4711 " in cluster.watching(jobs, "slurm")


# ---- a sweep as jobs ----


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a tiny synthetic experiment."""
    (tmp_path / "experiments" / "methods").mkdir(parents=True)
    settings = {
        "data": {"synthetic": {"items": 90, "dim_a": 7, "dim_b": 6, "features": 16}},
        "budgets": [10, 20],
        "tuning": {"folds": 2, "max_trials": 2},
        "sweep": {"seeds": [0], "methods": ["procrustes", "ridge"]},
    }
    (tmp_path / "experiments" / "tiny.yaml").write_text(yaml.safe_dump(settings))
    for name in ("Ridge", "Procrustes"):
        part = {"closed_form": {"class": f"gera_lightning.aligners.{name.lower()}.{name}"}}
        (tmp_path / "experiments" / "methods" / f"{name.lower()}.yaml").write_text(
            yaml.safe_dump(part)
        )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_sweep_as_two_jobs_runs_each_run_once_and_shows_the_table(project, capsys):
    words = [
        "tiny",
        "sweep.submit=local",
        "sweep.jobs=2",
        "sweep.wait=true",
        "sweep.resources.timeout_min=2",
    ]
    finished = runner.run_sweep(load("tiny", words[1:], sweep=True), words)
    assert len(finished) == 4
    assert "submitted 2 jobs to local" in capsys.readouterr().out
    lines = [
        json.loads(line)
        for line in (project / "runs" / "tiny" / "results.jsonl").read_text().splitlines()
    ]
    assert sorted((row["method"], row["budget"]) for row in lines) == [
        (m, b) for m in ("procrustes", "ridge") for b in (10, 20)
    ]
    logs = [path.read_text() for path in (project / "runs" / "tiny" / "jobs").glob("*.out")]
    ran = [
        sorted(
            line.split(" s0")[0]
            for line in log.splitlines()
            if "R@10 0" in line or "R@10 1" in line
        )
        for log in logs
    ]
    assert sorted(line for lines in ran for line in lines) == sorted(
        f"{m} b{b}" for m in ("procrustes", "ridge") for b in (10, 20)
    )
    assert all(len(runs) == 2 for runs in ran)


def test_without_waiting_the_commands_are_handed_over_and_the_way_to_the_table_is_printed(
    project, capsys, monkeypatch
):
    seen = []
    monkeypatch.setattr(cluster, "submit", lambda *given: seen.append(given) or [])
    words = [
        "tiny",
        "sweep.submit=slurm",
        "sweep.jobs=2",
        "sweep.shard=2/3",
        "sweep.resources.slurm_partition=short",
    ]
    assert runner.run_sweep(load("tiny", words[1:], sweep=True), words) is None
    [(commands, where, resources, folder)] = seen
    assert where == "slurm"
    assert resources == {"name": "gera-tiny", "timeout_min": 1440, "slurm_partition": "short"}
    assert folder == Path("runs/tiny/jobs")
    jobs = [load("tiny", command[5:], sweep=True).common.sweep for command in commands]
    assert [job.shard for job in jobs] == ["2/6", "5/6"]
    assert not any(job.submit for job in jobs)
    assert "gera sweep tiny" in capsys.readouterr().out


def test_jobs_that_would_begin_again_when_preempted_are_refused(project, monkeypatch):
    monkeypatch.setattr(cluster, "submit", lambda *_: pytest.fail("submitted"))
    words = ["tiny", "sweep.submit=slurm", "overwrite=true"]
    with pytest.raises(
        UserError, match=r"sweep\.submit=slurm with overwrite=true.*remove runs/tiny"
    ):
        runner.run_sweep(load("tiny", words[1:], sweep=True), words)


def test_a_shard_is_parted_among_jobs_and_workers_without_loss():
    jobs = SweepConfig(jobs=3).parted(3)
    slices = [
        SweepConfig(shard=part).part for job in jobs for part in SweepConfig(shard=job).parted(2)
    ]
    assert sorted(n for s in slices for n in range(20)[s]) == list(range(20))
    with pytest.raises(UserError, match=r"sweep.submit='slrum'.*did you mean 'slurm'"):
        SweepConfig(submit="slrum")
