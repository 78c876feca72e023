"""Many runs: every method at every budget and seed of an experiment, finished ones skipped, one table at the end."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import traceback
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from gera_lightning import cluster, distributed, report
from gera_lightning.config import Experiment, load
from gera_lightning.display import Display
from gera_lightning.errors import UserError
from gera_lightning.files import replace_atomically
from gera_lightning.planning import describe, of_shard, plan, to_do
from gera_lightning.report.kept import kept_path, kept_rows
from gera_lightning.results import collect, read_row
from gera_lightning.run import ERROR, Run, execute
from gera_lightning.task import unheard


@dataclass(frozen=True)
class Outcome:
    """What a sweep leaves behind.

    Attributes:
        results: one row a run of this sweep, the columns of results.jsonl.
        table: the same for people.
        curve: path of the recall-against-budget picture.
        folder: where all runs of the experiment lie.
        note: what to bear in mind with the table; mostly empty.
    """

    results: pd.DataFrame
    table: str
    curve: Path
    folder: Path
    note: str = ""


def run_experiment(experiment: Experiment, console: Console | None = None, runs: Sequence[Run] | None = None) -> Outcome:
    """Run what is not finished, and collect the results of all. A run that fails is reported and does not stop the others.

    Args:
        experiment: as `config.load` gives it.
        console: where progress goes; none is shown without one.
        runs: the experiment's plan, where it is made already.

    Raises:
        UserError: as `plan`, or, after all others have run, naming those that failed.
    """
    distributed.initialize()
    if distributed.wanted(experiment.common.trainer.devices) > 1:
        raise UserError(
            f"trainer.devices={experiment.common.trainer.devices}: this is one process, and each device has its own: "
            "take gera train, which starts them, or torchrun"
        )
    runs = plan(experiment) if runs is None else runs
    waiting = distributed.broadcast_object(to_do(experiment, runs))
    first = distributed.world()[0] == 0
    mine = sorted(set(of_shard(experiment, runs)) & set(waiting))
    folder = Path(experiment.common.runs_dir) / experiment.name
    if mine and first:
        runs[mine[0]].stores.check_finite()
        _make_folder(folder)
    display = Display(console, len(runs), len(runs) - len(waiting)) if console is not None and first else None
    try:
        with display or nullcontext():
            failed = _execute_each(runs, mine, display)
    finally:  # also where it is interrupted
        finished = [run for run in runs if run.finished] if first else []
        if finished:
            collect(folder)
    if not first:
        return Outcome(pd.DataFrame(), "", folder, folder)
    if failed:
        kept = ", the others are kept" if finished else ""
        raise UserError(f"{len(failed)} of {len(runs)} runs failed{kept}: " + "; ".join(f"{k} ({v})" for k, v in failed.items()))
    if not finished:  # a shard without runs, before any other shard's
        return Outcome(pd.DataFrame(), "", folder, folder)
    return _outcome(experiment, finished, folder)


def _make_folder(folder: Path) -> None:
    """Make the folder that runs are written into.

    Raises:
        UserError: it cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"runs_dir={folder.parent}: {folder} cannot be made ({error.strerror}): name another place by runs_dir=..."
        ) from error
    if not os.access(folder, os.W_OK):
        raise UserError(f"runs_dir={folder.parent}: {folder} cannot be written: name another place by runs_dir=...")


def train(experiment: str | os.PathLike[str] | Mapping[str, Any], **settings: Any) -> Outcome:
    """`gera train` from Python, the same words as keyword arguments: `train("speech_text", budgets=[100], trainer={"max_steps": 50})`.

    Args:
        experiment: as `config.load` takes it.
        settings: keys of the experiment; sections are mappings.

    Raises:
        UserError: as `config.load` and `run_experiment`.
    """
    return run_experiment(load(experiment, settings))


def _execute_each(runs: Sequence[Run], mine: Sequence[int], display: Display | None) -> dict[str, str]:
    """Execute the runs of these numbers; those that failed, with the reason."""
    failed: dict[str, str] = {}
    for number in mine:
        run = runs[number]
        label = f"{run.method} b{run.budget} s{run.seed}"
        progress = display.start(number + 1, label) if display else unheard
        try:
            row = execute(run, progress)
        except Exception as error:
            if distributed.world()[1] > 1:  # the other processes wait in it
                raise
            failed[label] = f"{type(error).__name__}: {' '.join(str(error).split())}" + _kept_trace(run, error)
            if display:
                display.fail(label, failed[label])
            continue
        if display:
            display.finish(label, row)
    return failed


def _outcome(experiment: Experiment, finished: Sequence[Run], folder: Path) -> Outcome:
    """Table and pictures of finished runs."""
    results = pd.DataFrame([read_row(run.folder / "metrics.json") for run in finished])
    curve = folder / "curve.png"
    report.recall_curve(results, curve, title=experiment.name)
    note = ""
    if experiment.common.sweep.shard == "1/1":  # a shard leaves that to whoever sees all runs
        report.write_board(finished, results, folder)
        note = still_rising(results, experiment.name)
    return Outcome(results, report.results_table(results), curve, folder, note)


def _kept_trace(run: Run, error: Exception) -> str:
    """Keep where an unexpected failure came from in the run's folder, and say where that is."""
    path = run.partial_folder / ERROR
    if isinstance(error, UserError):
        return ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_atomically(path, "".join(traceback.format_exception(error)).encode())
    except OSError:  # a full disk may be what failed
        return ""
    return f", see {path}"


def run_sweep(experiment: Experiment, words: Sequence[str], console: Console | None = None) -> Outcome | None:
    """`run_experiment`, listed only under `sweep.dry_run`, shared among `sweep.workers` processes, or handed to a cluster by `sweep.submit`.

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
            f"sweep.submit={settings.submit} with overwrite=true: a job that is preempted would begin again each time: "
            f"remove {Path(experiment.common.runs_dir) / experiment.name}, or the runs to do again in it, and submit without overwrite"
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
        commands = [[*_shard_command(words, shard), "sweep.submit=''"] for shard in settings.parted(settings.jobs)]
        jobs = cluster.submit(commands, settings.submit, {"name": f"gera-{experiment.name}", **settings.resources}, folder)
        print(cluster.watching(jobs, settings.submit))
        if not settings.wait:
            print(f"when they are done, the table and the curve: gera sweep {' '.join(words)} sweep.submit=''")
            return None
        cluster.wait(jobs)
    elif settings.workers > 1:
        codes = _in_workers(words, settings.parted(settings.workers), console)
        if any(codes) or not all(run.finished for run in mine):  # under overwrite a run that failed is finished from before
            again = "overwrite=true runs all of them again" if experiment.common.overwrite else "the same command runs only those again"
            raise UserError(f"some runs failed, see above (exit codes of the workers: {', '.join(map(str, codes))}); {again}")
    else:
        return run_experiment(experiment, console, runs)
    if not all(run.finished for run in mine):
        raise UserError("some runs failed, see the jobs' logs; the same command runs only those again")
    common = dataclasses.replace(experiment.common, overwrite=False)  # what others ran just now is not run again here
    return run_experiment(dataclasses.replace(experiment, common=common), console, runs)


def still_rising(results: pd.DataFrame, name: str) -> str:
    """A sentence on the methods and budgets most of whose seeds were stopped while they still improved; empty where there are none.

    Such a method may not be compared fairly. One seed of several may rise by chance.

    Args:
        results: rows of finished runs; a run that cannot tell (closed forms, one stopping step) has no `plateau`.
        name: of the experiment.
    """
    told = results.dropna(subset="plateau") if "plateau" in results else results[:0]
    if not len(told):
        return ""
    share = told["plateau"].eq(False).groupby([told["method"], told["budget"]]).mean()
    rising = [f"{method} at {budget} pairs" for method, budget in share.index[share > 0.5]]
    if not rising:
        return ""
    return (
        f"most runs of {', '.join(rising)} were still improving at their last stopping step, in part since the learning rate falls to 0 "
        f"there: see with data.split=dev whether twice the steps bring more, and then raise trainer.max_steps or trainer.min_epochs in the "
        f"experiment {name} or on the command line; the held-out curves are in each run's tuning.json"
    )


def _shard_command(words: Sequence[str], shard: str) -> list[str]:
    """This sweep's command for one shard of it."""
    return [sys.executable, "-m", "gera_lightning.cli", "sweep", *words, f"sweep.shard={shard}"]


def _in_workers(words: Sequence[str], shards: Sequence[str], console: Console | None) -> list[int]:
    """This command once a shard, each with its share of the cores and one of the GPUs; what they print of runs is passed on. Their exit codes."""
    share = {"OMP_NUM_THREADS": str(max(1, distributed.cores() // len(shards)))}
    gpus = distributed.gpus()
    started = [
        subprocess.Popen(
            [*_shard_command(words, shard), "sweep.workers=1"],
            env={**os.environ, **share, **({"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]} if gpus else {})},
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
        raise
    return [worker.wait() for worker in started]


def _pass_on(worker: subprocess.Popen[str], console: Console | None) -> None:
    with worker:  # closes its pipe and waits for it
        _pass_lines_on(worker.stdout or (), console)


def _pass_lines_on(lines: Iterable[str], console: Console | None) -> None:
    for line in lines:
        if (
            console is not None and (" R@10 " in line or " FAILED " in line) and not line.startswith(("pairs", " "))
        ):  # not the workers' tables
            console.print(line.rstrip(), highlight=False)
