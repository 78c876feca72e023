"""Many runs: every method at every budget and seed of an experiment, finished ones skipped, one
table at the end.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import traceback
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

from rich.console import Console

from gera_lightning.config import Experiment
from gera_lightning.experiment import cluster
from gera_lightning.experiment.archive import kept_path, kept_rows
from gera_lightning.experiment.plan import describe, of_shard, plan, to_do
from gera_lightning.experiment.results import collect
from gera_lightning.experiment.run import ERROR_FILE, Run, execute
from gera_lightning.utils import distributed
from gera_lightning.utils.errors import UserError
from gera_lightning.utils.files import replace_atomically
from gera_lightning.utils.progress import Display, no_progress
from gera_lightning.utils.signals import as_parent


def run_experiment(
    experiment: Experiment, console: Console | None = None, runs: Sequence[Run] | None = None
) -> list[Run]:
    """Run what is not finished, and collect the results of all. A run that fails is reported and
    does not stop the others.

    Args:
        experiment: as `config.load` gives it.
        console: where progress goes; none is shown without one.
        runs: the experiment's plan, where it is made already.

    Returns:
        All finished runs of the experiment, in order; none on processes other than the first.

    Raises:
        UserError: as `plan`, or, after all others have run, naming those that failed.
    """
    distributed.initialize()
    if distributed.num_processes(experiment.common.trainer.devices) > 1:
        raise UserError(
            f"trainer.devices={experiment.common.trainer.devices}: this is one process, and each"
            " device has its own: take gera train, which starts them, or torchrun"
        )
    runs = plan(experiment) if runs is None else runs
    waiting = distributed.broadcast_object(to_do(experiment, runs))
    first = distributed.world()[0] == 0
    mine = sorted(set(of_shard(experiment, runs)) & set(waiting))
    folder = Path(experiment.common.runs_dir) / experiment.name
    if mine and first:
        runs[mine[0]].stores.check_rows()
        _make_folder(folder)
    display = (
        Display(console, len(runs), len(runs) - len(waiting))
        if console is not None and first
        else None
    )
    try:
        with display or nullcontext():
            failed = _execute_each(runs, mine, display)
    finally:  # also where it is interrupted
        finished = [run for run in runs if run.finished] if first else []
        if finished:
            collect(folder)
    if not first:
        return []
    if failed:
        kept = ", the others are kept" if finished else ""
        raise UserError(
            f"{len(failed)} of {len(runs)} runs failed{kept}: "
            + "; ".join(f"{k} ({v})" for k, v in failed.items())
        )
    return finished


def _make_folder(folder: Path) -> None:
    """Make the folder that runs are written into.

    Raises:
        UserError: it cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"runs_dir={folder.parent}: {folder} cannot be made ({error.strerror}): name another"
            " place by runs_dir=..."
        ) from error
    if not os.access(folder, os.W_OK):
        raise UserError(
            f"runs_dir={folder.parent}: {folder} cannot be written: name another place by"
            " runs_dir=..."
        )


def _execute_each(
    runs: Sequence[Run], mine: Sequence[int], display: Display | None
) -> dict[str, str]:
    """Execute the runs of these numbers; those that failed, with the reason."""
    failed: dict[str, str] = {}
    for number in mine:
        run = runs[number]
        label = f"{run.method} b{run.budget} s{run.seed}"
        progress = display.start(number + 1, label) if display else no_progress
        try:
            row = execute(run, progress)
        except Exception as error:
            if distributed.world()[1] > 1:  # the other processes wait in it
                raise
            failed[label] = f"{type(error).__name__}: {' '.join(str(error).split())}" + _kept_trace(
                run, error
            )
            if display:
                display.fail(label, failed[label])
            continue
        if display:
            display.finish(label, row)
    return failed


def _kept_trace(run: Run, error: Exception) -> str:
    """Keep where an unexpected failure came from in the run's folder, and say where that is."""
    path = run.partial_folder / ERROR_FILE
    if isinstance(error, UserError):
        return ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_atomically(path, "".join(traceback.format_exception(error)).encode())
    except OSError:  # a full disk may be what failed
        return ""
    return f", see {path}"


def run_sweep(
    experiment: Experiment, words: Sequence[str], console: Console | None = None
) -> list[Run] | None:
    """`run_experiment`, listed only under `sweep.dry_run`, shared among `sweep.workers` processes,
    or handed to a cluster by `sweep.submit`.

    Args:
        experiment: as `config.load(..., sweep=True)` gives it.
        words: the command line's words after `gera sweep`, which workers and jobs are started with.
        console: where progress goes.

    Raises:
        UserError: as `run_experiment`, or `overwrite` with `sweep.submit`.
    """
    settings = experiment.common.sweep
    if settings.submit and experiment.common.overwrite:
        raise UserError(
            f"sweep.submit={settings.submit} with overwrite=true: a job that is preempted would"
            f" begin again each time: remove {Path(experiment.common.runs_dir) / experiment.name},"
            " or the runs to do again in it, and submit without overwrite"
        )
    runs = plan(experiment)
    mine = [runs[number] for number in sorted(of_shard(experiment, runs))]
    told = describe(experiment, mine, kept_rows(kept_path(experiment.name)))
    if settings.dry_run:
        for run in (mine[number] for number in to_do(experiment, mine)):
            print(f"{run.method} b{run.budget} s{run.seed}  {run.folder}")
        print(told)
        return None
    if console is not None:
        console.print(told, highlight=False)
    if settings.submit:
        folder = Path(experiment.common.runs_dir) / experiment.name / "jobs"
        commands = [
            [*_shard_command(words, shard), "sweep.submit=''"]
            for shard in settings.parted(settings.jobs)
        ]
        jobs = cluster.submit(
            commands,
            settings.submit,
            {"name": f"gera-{experiment.name}", **settings.resources},
            folder,
        )
        print(cluster.watching(jobs, settings.submit))
        if not settings.wait:
            print(
                f"when they are done, the table and the curve: gera sweep {' '.join(words)}"
                " sweep.submit=''"
            )
            return None
        cluster.wait(jobs)
    elif settings.workers > 1:
        codes = _in_workers(words, settings.parted(settings.workers), console)
        if any(codes) or not all(
            run.finished for run in mine
        ):  # under overwrite a run that failed is finished from before
            again = (
                "overwrite=true runs all of them again"
                if experiment.common.overwrite
                else "the same command runs only those again"
            )
            raise UserError(
                "some runs failed, see above (exit codes of the workers:"
                f" {', '.join(map(str, codes))}); {again}"
            )
    else:
        return run_experiment(experiment, console, runs)
    if not all(run.finished for run in mine):
        raise UserError(
            "some runs failed, see the jobs' logs; the same command runs only those again"
        )
    common = dataclasses.replace(
        experiment.common, overwrite=False
    )  # what others ran just now is not run again here
    return run_experiment(dataclasses.replace(experiment, common=common), console, runs)


def _shard_command(words: Sequence[str], shard: str) -> list[str]:
    """This sweep's command for one shard of it."""
    return [sys.executable, "-m", "gera_lightning", "sweep", *words, f"sweep.shard={shard}"]


def _in_workers(words: Sequence[str], shards: Sequence[str], console: Console | None) -> list[int]:
    """This command once a shard, each with its share of the cores and one of the GPUs; what they
    print of runs is passed on. Their exit codes.
    """
    share = {"OMP_NUM_THREADS": str(max(1, distributed.cores() // len(shards)))}
    gpus = distributed.gpus()
    started = [
        subprocess.Popen(
            [*_shard_command(words, shard), "sweep.workers=1"],
            env={
                **os.environ,
                **as_parent(),
                **share,
                **({"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]} if gpus else {}),
            },
            stdout=subprocess.PIPE,
            text=True,
        )
        for number, shard in enumerate(shards)
    ]
    try:
        with ThreadPoolExecutor(len(started)) as readers:
            for worker in started:
                readers.submit(_pass_on, worker, console)
    except BaseException:
        for worker in started:
            worker.terminate()
        for worker in started:
            worker.wait()
        raise
    return [worker.wait() for worker in started]


def _pass_on(worker: subprocess.Popen[str], console: Console | None) -> None:
    with worker:  # closes its pipe and waits for it
        _pass_lines_on(worker.stdout or (), console)


def _pass_lines_on(lines: Iterable[str], console: Console | None) -> None:
    for line in lines:
        if (
            console is not None
            and (" R@10 " in line or " FAILED " in line)
            and not line.startswith(("pairs", " "))
        ):  # not the workers' tables
            console.print(line.rstrip(), highlight=False)
