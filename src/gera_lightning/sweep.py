"""Many runs: every method at every budget and seed of an experiment, finished ones skipped, one table at the end."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import pandas as pd
from filelock import FileLock
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from gera_lightning import distributed, report
from gera_lightning.config import Experiment
from gera_lightning.data import splits
from gera_lightning.errors import UserError
from gera_lightning.files import replace_atomically
from gera_lightning.run import Run, Stores, execute
from gera_lightning.train import check, reads_unpaired

log = logging.getLogger(__name__)


def plan(experiment: Experiment) -> list[Run]:
    """All runs of an experiment, small budgets first; everything a user can get wrong is checked here, before anything runs.

    Raises:
        UserError: a missing store, or a budget beyond the items.
    """
    stores = Stores.open(experiment.common)
    common = experiment.common
    matched = len(splits.matched_items(stores.a.rows, stores.b.rows, stores.split))
    if max(common.budgets) > matched:
        raise UserError(
            f"budgets={common.budgets}: {max(common.budgets)} pairs are more than the {matched} train items with a row in both stores: lower it"
        )
    for name, config in experiment.methods.items():
        try:
            check(config)
        except UserError as error:
            raise UserError(f"{error} (method {name})") from error
    for seed in common.seeds:
        for budget in common.budgets:
            drawn = stores.draw(common, budget, seed)
            for name, config in experiment.methods.items():
                if (
                    config.closed_form is None
                    and config.geometric_loss is not None
                    and not config.batch.paired_anchors
                    and min(len(drawn.pool_a), len(drawn.pool_b)) < 2
                ):
                    raise UserError(
                        f"data.reserve={common.data.reserve} of {matched} items leaves no unpaired rows for the geometric loss of {name}: "
                        "lower it and the largest budget, or set batch.paired_anchors=true"
                    )
                if config.closed_form is None and reads_unpaired(config) and min(len(drawn.pool_a), len(drawn.pool_b)) < 2:
                    raise UserError(
                        f"data.reserve={common.data.reserve} of {matched} items leaves no unpaired rows for the unpaired_loss of {name}: "
                        "lower it and the largest budget"
                    )
            splits.folds(drawn.items, stores.split.families, common.tuning.folds, seed)
    return [
        Run(experiment.name, name, budget, seed, config, stores)
        for budget in common.budgets
        for seed in common.seeds
        for name, config in experiment.methods.items()
    ]


@dataclass(frozen=True)
class Outcome:
    """What a sweep leaves behind.

    Attributes:
        results: one row a run of this sweep, the columns of results.jsonl.
        table: the same for people.
        curve: path of the recall-against-budget picture.
        folder: where all runs of the experiment lie.
    """

    results: pd.DataFrame
    table: str
    curve: Path
    folder: Path


def run_experiment(experiment: Experiment, console: Console | None = None) -> Outcome:
    """Run what is not finished, and collect the results of all. A run that fails is reported and does not stop the others.

    Args:
        experiment: as `config.load` gives it.
        console: where progress goes; none is shown without one.

    Raises:
        UserError: after all others have run, naming those that failed.
    """
    distributed.initialize()
    runs = plan(experiment)
    waiting = distributed.broadcast_object([i for i, run in enumerate(runs) if experiment.common.overwrite or not run.finished])
    first = distributed.world()[0] == 0
    mine = sorted(set(range(len(runs))[experiment.common.sweep.part]) & set(waiting))
    display = Display(console, len(runs), len(runs) - len(waiting)) if console is not None and first else None
    failed: dict[str, str] = {}
    with display or nullcontext():
        for number in mine:
            run = runs[number]
            label = f"{run.method} b{run.budget} s{run.seed}"
            progress: Callable[[str, int, int], None] = display.start(number + 1, label) if display else _ignore
            try:
                row = execute(run, progress)
            except Exception as error:
                if distributed.world()[1] > 1:  # the other processes wait in it
                    raise
                log.debug("%s failed", label, exc_info=True)
                failed[label] = f"{type(error).__name__}: {' '.join(str(error).split())}"
                if display:
                    display.fail(label, failed[label])
                continue
            if display:
                display.finish(label, row)
    folder = Path(experiment.common.runs_dir) / experiment.name
    if not first:
        return Outcome(pd.DataFrame(), "", folder, folder)
    finished = [run for run in runs if run.finished]
    if finished:
        collect(folder)
    if failed:
        raise UserError(
            f"{len(failed)} of {len(runs)} runs failed, the others are kept: " + "; ".join(f"{k} ({v})" for k, v in failed.items())
        )
    results = pd.DataFrame([json.loads((run.folder / "metrics.json").read_text()) for run in finished])
    curve = folder / "curve.png"
    report.recall_curve(results, curve, title=experiment.name)
    return Outcome(results, report.results_table(results), curve, folder)


def run_sweep(experiment: Experiment, words: Sequence[str], console: Console | None = None) -> Outcome | None:
    """`run_experiment`, listed only under `sweep.dry_run`, and shared among `sweep.workers` processes.

    Args:
        experiment: as `config.load(..., sweep=True)` gives it.
        words: the command line's words after `gera sweep`, which worker processes are started with.
        console: where progress goes.
    """
    settings = experiment.common.sweep
    runs = plan(experiment)
    if settings.dry_run:
        waiting = [run for run in runs[settings.part] if experiment.common.overwrite or not run.finished]
        for run in waiting:
            print(f"{run.method} b{run.budget} s{run.seed}  {run.folder}")
        print(f"{len(waiting)} of {len(runs[settings.part])} runs of shard {settings.shard} are to do")
        return None
    if settings.workers > 1:
        _in_workers(words, settings.worker_shards, console)
        if not all(run.finished for run in runs[settings.part]):
            raise UserError("some runs failed, see above; the same command runs only those again")
    return run_experiment(experiment, console)


def _in_workers(words: Sequence[str], shards: Sequence[str], console: Console | None) -> None:
    """This command once a shard, each with its share of the cores; what they print of runs is passed on."""
    threads = str(max(1, (os.cpu_count() or 1) // len(shards)))
    environment = {**os.environ, "OMP_NUM_THREADS": threads}
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "gera_lightning.cli", "sweep", *words, f"sweep.shard={shard}", "sweep.workers=1"],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for shard in shards
    ]
    try:
        with ThreadPoolExecutor(len(started)) as readers:
            for worker in started:
                readers.submit(_pass_on, worker, console)
    except BaseException:
        for worker in started:
            worker.terminate()
        raise


def _pass_on(worker: subprocess.Popen[str], console: Console | None) -> None:
    with worker:  # closes its pipe and waits for it
        _pass_lines_on(worker.stdout or (), console)


def _pass_lines_on(lines: Iterable[str], console: Console | None) -> None:
    for line in lines:
        if (
            console is not None and (" R@10 " in line or " FAILED " in line) and not line.startswith(("pairs", " "))
        ):  # not the workers' tables
            console.print(line.rstrip(), highlight=False)


def _ignore(what: str, done: int, total: int) -> None:
    """No display."""


def collect(folder: Path) -> Path:
    """Rebuild `results.jsonl` from the finished runs of an experiment, under a lock."""
    path = folder / "results.jsonl"
    with FileLock(folder / ".results.lock"):
        rows = []
        for record in sorted(folder.glob("*/*/metrics.json")):
            if record.parent.suffix != ".partial":
                rows.append(json.dumps(json.loads(record.read_text())))
        replace_atomically(path, ("\n".join(rows) + "\n").encode())
    return path


class Display(AbstractContextManager["Display"]):
    """A live bar over all runs and one over the present run's steps; without a terminal, a line a finished run."""

    def __init__(self, console: Console, total: int, skipped: int) -> None:
        self.console = console
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.total = total
        if skipped:
            console.print(f"{skipped} of {total} runs are finished already (overwrite=true runs them again)")
        self.all = self.bar.add_task("all runs", total=total, completed=skipped)
        self.one = self.bar.add_task("", total=None)

    def __enter__(self) -> Display:
        self.bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.bar.stop()

    def start(self, number: int, label: str) -> Callable[[str, int, int], None]:
        """Show a run; the returned function takes its progress."""
        title = f"run {number} of {self.total}: {label}"
        self.bar.reset(self.one, total=None, description=title)

        def progress(what: str, done: int, total: int) -> None:
            self.bar.update(self.one, description=f"{title}, {what}", completed=done, total=total)

        return progress

    def fail(self, label: str, reason: str) -> None:
        """Count a failed run and say why."""
        self.bar.advance(self.all)
        self.console.print(f"{label:<28} FAILED {reason}", markup=False)

    def finish(self, label: str, row: dict[str, Any]) -> None:
        """Count a finished run and say what it reached."""
        self.bar.advance(self.all)
        self.console.print(f"{label:<28} R@10 {row['ab/r@10']:.3f} / {row['ba/r@10']:.3f}   {row['seconds']:.1f} s")
