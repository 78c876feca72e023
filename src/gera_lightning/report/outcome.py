"""What is shown when the runs of an experiment are finished: one table, one curve, TensorBoard's
summary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from gera_lightning.config import Experiment
from gera_lightning.experiment.results import read_row
from gera_lightning.experiment.run import Run
from gera_lightning.report.figures import recall_curve
from gera_lightning.report.tensorboard import write_board
from gera_lightning.report.terminal import results_table


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


def summarize(experiment: Experiment, finished: Sequence[Run]) -> Outcome:
    """Table and pictures of an experiment's finished runs; an empty table where there are none, as
    in a shard without runs.
    """
    folder = Path(experiment.common.runs_dir) / experiment.name
    if not finished:
        return Outcome(pd.DataFrame(), "", folder, folder)
    results = pd.DataFrame([read_row(run.folder / "metrics.json") for run in finished])
    curve = folder / "curve.png"
    recall_curve(results, curve, title=experiment.name)
    note = ""
    if experiment.common.sweep.shard == "1/1":  # a shard leaves that to whoever sees all runs
        write_board(finished, results, folder)
        note = undertrained(results, experiment.name)
    return Outcome(results, results_table(results), curve, folder, note)


def undertrained(results: pd.DataFrame, name: str) -> str:
    """A sentence on the methods and budgets most of whose seeds were stopped while they still
    improved; empty where there are none.

    Such a method may not be compared fairly. One seed of several may rise by chance.

    Args:
        results: rows of finished runs; a run that cannot tell (closed forms, one stopping step) has
            no `converged`.
        name: of the experiment.
    """
    told = results.dropna(subset="converged") if "converged" in results else results[:0]
    if not len(told):
        return ""
    share = told["converged"].eq(False).groupby([told["method"], told["budget"]]).mean()
    rising = [f"{method} at {budget} pairs" for method, budget in share.index[share > 0.5]]
    if not rising:
        return ""
    return (
        f"most runs of {', '.join(rising)} were still improving at their last stopping step, in"
        " part since the learning rate falls to 0 there: see with data.split=dev whether twice the"
        " steps bring more, and then raise trainer.max_steps or trainer.min_epochs in the"
        f" experiment {name} or on the command line; the held-out curves are in each run's"
        " tuning.json"
    )
