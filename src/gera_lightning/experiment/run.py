"""One run: one method at one budget and seed, its folder, its aligner and its result row."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import resource
import shutil
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from gera_lightning.aligners.aligner import Aligner
from gera_lightning.config import RESULTS_VERSION, Config, config_hash, identity
from gera_lightning.config.merging import flat
from gera_lightning.data.training_rows import TrainingRows, load_rows
from gera_lightning.evaluation.evaluate import evaluate
from gera_lightning.experiment.paired_stores import Stores, store_metadata
from gera_lightning.experiment.results import read_row
from gera_lightning.training.fit import fit
from gera_lightning.training.fit_closed_form import Fitted
from gera_lightning.training.loggers import make_loggers
from gera_lightning.training.method import Method
from gera_lightning.training.training_set import TrainingSet
from gera_lightning.utils import distributed
from gera_lightning.utils.files import atomic_write, remove_scratch, replace_atomically
from gera_lightning.utils.progress import ProgressCallback, no_progress
from gera_lightning.utils.version import package_version

log = logging.getLogger(__name__)
ERROR_FILE = "error.txt"
"""In the folder of a run that failed unexpectedly: where it did."""


@dataclass(frozen=True)
class Run:
    """One method at one budget and seed."""

    experiment: str
    method: str
    budget: int
    seed: int
    config: Config
    stores: Stores

    @cached_property
    def parts(self) -> Method:
        """What the method is made of."""
        return Method.from_config(self.config)

    @cached_property
    def hash(self) -> str:
        """Eight hex digits of settings and data."""
        return config_hash(
            self.config, data_hash=self.stores.data_hash, budget=self.budget, seed=self.seed
        )

    @property
    def folder(self) -> Path:
        """Where the finished run lies."""
        return (
            Path(self.config.runs_dir)
            / self.experiment
            / self.method
            / f"b{self.budget}-s{self.seed}-{self.hash}"
        )

    @property
    def partial_folder(self) -> Path:
        """Where it lies while it runs."""
        return self.folder.with_name(self.folder.name + ".partial")

    @property
    def finished(self) -> bool:
        """Whether a whole result is there."""
        return (self.folder / "metrics.json").exists()


class ResumableTimer:
    """Seconds that a run takes, with those of its attempts before, as far as they were told of
    progress.

    Args:
        file: where they are kept until the clock stops.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.started = self.kept = time.perf_counter()
        try:
            self.before = float(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            self.before = 0.0

    def wrap(self, progress: ProgressCallback) -> ProgressCallback:
        """The same progress; what the clock says is kept whenever something is told, once a second
        at most.
        """

        def told(what: str, done: int, total: int) -> None:
            progress(what, done, total)
            if (now := time.perf_counter()) - self.kept > 1:
                self.kept = now
                self.file.write_text(str(self.before + now - self.started))

        return told

    def stop(self) -> float:
        """All seconds; nothing is kept any more."""
        self.file.unlink(missing_ok=True)
        return self.before + time.perf_counter() - self.started


def execute(run: Run, progress: ProgressCallback = no_progress) -> dict[str, Any]:
    """Run to the end and return its result row; the folder appears under its final name when it is
    whole.

    An interrupted run goes on from its last checkpoint. A run that another process is at, such as a
    worker whose sweep was killed, is waited for, and taken from it. All processes of a
    multi-process run call this together.
    """
    first = distributed.world()[0] == 0
    run.folder.parent.mkdir(parents=True, exist_ok=True)
    lock = run.folder.with_name(f".{run.folder.name}.lock")
    with _held(lock) if first else contextlib.nullcontext():
        if distributed.broadcast_object(run.finished and not run.config.overwrite):
            row = read_row(run.folder / "metrics.json")
        else:
            row = _execute(run, progress, first)
        if first:
            lock.unlink(missing_ok=True)  # whoever still waits on it finds the run finished
    return row


@contextlib.contextmanager
def _held(path: Path) -> Iterator[None]:
    """Hold a lock; while another process has it, say which that is, and wait."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=1)
    except Timeout:
        log.warning(
            "%s is at work on %s: waiting for it",
            path.read_text(encoding="utf-8") or "another process",
            path.parent,
        )
        lock.acquire()
    path.write_text(f"process {os.getpid()} on {socket.gethostname()}")
    try:
        yield
    finally:
        lock.release()


def _execute(run: Run, progress: ProgressCallback, first: bool) -> dict[str, Any]:
    folder = run.partial_folder
    if first:
        if run.config.overwrite:
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ERROR_FILE).unlink(missing_ok=True)  # of an attempt before
        remove_scratch(folder)  # likewise, where it was killed while it wrote
        record = {
            "experiment": run.experiment,
            "method": run.method,
            "budget": run.budget,
            "seed": run.seed,
            **identity(run.config),
        }
        replace_atomically(folder / "config.yaml", yaml.safe_dump(record, sort_keys=False).encode())
    distributed.barrier()
    _reset_peak_memory()
    clock, row = ResumableTimer(folder / "seconds.txt"), {}
    if (
        first or run.config.closed_form is None
    ):  # closed forms have nothing for several processes to share
        draw = run.stores.sample_pairs(run.config, run.budget, run.seed)
        data = run.config.data
        rows = load_rows(
            run.stores.a, run.stores.b, draw, center=data.center, residency=data.residency
        )
        fitted = fit(
            TrainingSet(
                run.parts,
                rows,
                run.stores.split.families,
                run.seed,
                folder,
                clock.wrap(progress) if first else progress,
            )
        )
        if first:
            row = _finish(run, rows, fitted, clock.stop())
    distributed.barrier()
    return row


def _finish(run: Run, rows: TrainingRows, fitted: Fitted, seconds: float) -> dict[str, Any]:
    """Evaluate, write everything, and give the folder its final name."""
    folder, stores = run.partial_folder, run.stores
    about = {
        "experiment": run.experiment,
        "method": run.method,
        "budget": run.budget,
        "seed": run.seed,
    }
    about |= store_metadata(stores.a, stores.b)
    aligner = Aligner(rows.a.preprocess, rows.b.preprocess, fitted.space, about)
    aligner.save(folder / "aligner")
    measures, ranks = distributed.run_with_cpu_fallback(
        distributed.device(run.config.trainer.accelerator),
        lambda device: evaluate(aligner.to(device), stores.held_out, run.config.evaluation),
        "held-out items",
    )
    with atomic_write(folder / "ranks.parquet") as scratch:
        ranks.to_parquet(scratch, index=False)
    row: dict[str, Any] = {
        "experiment": run.experiment,
        "method": run.method,
        "budget": run.budget,
        "seed": run.seed,
        "config_hash": run.hash,
        "data_hash": stores.data_hash,
        "modalities": about["modalities"],
        "pool_a": len(rows.a.pool),
        "pool_b": len(rows.b.pool),
        **measures,
        "seconds": round(seconds, 3),
        "steps": fitted.steps,
        "n_trials": fitted.n_trials,
        "chosen": fitted.chosen,
        "converged": fitted.converged,
        "split": run.config.data.split,
        "peak_rss_mb": _peak_memory(),
        "version": package_version(),
        "results": RESULTS_VERSION,
    }
    settings = flat(
        {"method": run.method, "budget": run.budget, "seed": run.seed, **identity(run.config)}
    )
    tensorboard = [spec for spec in run.config.loggers if spec["class"] == "tensorboard"]
    for logger in make_loggers(tensorboard, folder):  # its table of hyper-parameters
        logger.log_metrics(measures, step=fitted.steps)
        logger.log_hyperparams(settings, measures)
        logger.finalize("success")
    replace_atomically(folder / "metrics.json", (json.dumps(row, indent=1) + "\n").encode())
    replaced = run.folder.with_name(
        f"{run.folder.name}.replaced.partial"
    )  # out of the way at once: others may be reading it
    shutil.rmtree(replaced, ignore_errors=True)
    if run.folder.exists():
        os.replace(run.folder, replaced)
    os.replace(folder, run.folder)
    shutil.rmtree(replaced, ignore_errors=True)
    _point_latest_to(run.folder)
    return row


def _point_latest_to(folder: Path) -> None:
    """Let `latest`, beside a method's runs, stand for the aligner of the run that finished last.

    Not for the run itself, which TensorBoard would show twice.
    """
    scratch = folder.with_name(f".latest.{os.getpid()}.tmp")
    with contextlib.suppress(OSError):  # a file system without links
        scratch.symlink_to(Path(folder.name) / "aligner", target_is_directory=True)
        os.replace(scratch, folder.with_name("latest"))


def _reset_peak_memory() -> None:
    with contextlib.suppress(
        OSError
    ):  # Linux: forget the process's peak so far, so that each run reports its own
        Path("/proc/self/clear_refs").write_text("5")


def _peak_memory() -> int:
    """Peak resident memory in MiB."""
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return int(status.split("VmHWM:")[1].split()[0]) // 1024
    except (OSError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
