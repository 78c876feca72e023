"""What is shown when the runs of an experiment are finished: one table, one curve, TensorBoard's
summary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from gera_lightning.config import Experiment
from gera_lightning.experiment.paired_stores import modality_names
from gera_lightning.experiment.results import count_test_items, read_row
from gera_lightning.experiment.run import Run
from gera_lightning.report.figures import recall_curve
from gera_lightning.report.tensorboard import write_summary
from gera_lightning.report.terminal import results_table


@dataclass(frozen=True)
class Outcome:
    """What `gera train` and `gera sweep` show and return.

    Attributes:
        results: one row per run, the columns of results.jsonl.
        table: the same for people.
        curve: path of the picture of recall against the number of pairs.
        folder: where all runs of the experiment lie.
        note: a warning about the table; mostly empty.
    """

    results: pd.DataFrame
    table: str
    curve: Path
    folder: Path
    note: str = ""


def summarize(experiment: Experiment, finished: Sequence[Run]) -> Outcome:
    """Table and pictures of an experiment's finished runs; empty where there are none."""
    folder = Path(experiment.common.runs_dir) / experiment.name
    if not finished:
        return Outcome(pd.DataFrame(), "", folder, folder)
    results = pd.DataFrame([read_row(run.folder / "metrics.json") for run in finished])
    modalities = modality_names(finished[0].stores.a, finished[0].stores.b)
    test_items = count_test_items(run.folder for run in finished)
    curve = folder / "curve.png"
    recall_curve(results, curve, experiment.name, modalities, test_items)
    note = ""
    if experiment.common.sweep.shard == "1/1":  # a shard sees only a part of the runs
        write_summary(finished, results, folder)
        note = undertrained(results, experiment.name)
    table = results_table(results, modalities, test_items)
    return Outcome(results, table, curve, folder, note)


def undertrained(results: pd.DataFrame, name: str) -> str:
    """A warning about methods that may need more steps to be compared fairly; mostly empty.

    It names the methods and budgets most of whose runs still improved at their last stopping step.
    One run of several may do so by chance.

    Args:
        results: rows of finished runs; `converged` is missing where a run cannot tell (closed
            forms, a single stopping step).
        name: of the experiment.
    """
    known = results.dropna(subset="converged") if "converged" in results else results[:0]
    if not len(known):
        return ""
    share = known["converged"].eq(False).groupby([known["method"], known["budget"]]).mean()
    improving = [f"{method} at {budget} pairs" for method, budget in share.index[share > 0.5]]
    if not improving:
        return ""
    return (
        f"most runs of {', '.join(improving)} still improved at their last step, though the"
        " learning rate falls to 0 there. Try twice the steps with data.split=dev; if that helps,"
        f" raise trainer.max_steps or batch.min_epochs in the experiment {name}. Each run's"
        " tuning.json holds its held-out curve."
    )
