"""What TensorBoard shows of an experiment as a whole: curves against the budget, and the shared
space of a run of each method.

It lies in the experiment's folder `summary`, beside the runs, whose own events hold losses,
measures and hyper-parameters.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from gera_lightning.aligners.aligner import Aligner
from gera_lightning.data.held_out import HeldOut, HeldOutItems
from gera_lightning.evaluation.statistics import summary
from gera_lightning.experiment.run import Run
from gera_lightning.report.figures import Series, lines, styles
from gera_lightning.report.findings import WAYS
from gera_lightning.utils.errors import UserError

log = logging.getLogger(__name__)
MEASURES = ("r@1", "r@10")
ITEMS = 200
"""Test items in the projector: a row of each modality each."""
WIDTH = 128
"""Dimensions kept for the projector, which reads them as text: the leading singular directions, so
that inner products change least.
"""
COLUMNS = ["modality", "item", "words", "group"]


def write_board(runs: Sequence[Run], results: pd.DataFrame, folder: Path) -> Path:
    """Write the summary of finished runs anew.

    Args:
        runs: finished, at least one.
        results: one row a run, the columns of results.jsonl.
        folder: of the experiment.

    Returns:
        the log folder.
    """
    target = folder / "summary"
    shutil.rmtree(target, ignore_errors=True)
    with SummaryWriter(str(target)) as writer:
        style = styles(list(results["method"].unique()))
        for direction, name in WAYS.items():
            for measure in MEASURES:
                chance = (
                    float(results[f"{direction}/chance@10"].mean()) if measure == "r@10" else None
                )
                figure = lines(
                    curves(results, f"{direction}/{measure}"),
                    style,
                    f"{measure.upper()} {name}",
                    measure.upper(),
                    level=chance,
                )
                writer.add_figure(f"{measure}/{direction}", figure)
        for run in _shown(runs):
            try:
                aligner = Aligner.load(run.folder / "aligner")
            except UserError as error:  # a map of a class that is not ours
                log.warning("%s is not in the projector: %s", run.method, error)
                continue
            z, rows = shared_rows(aligner, run.stores.held_out)
            writer.add_embedding(
                z,
                metadata=rows.to_numpy().tolist(),
                metadata_header=COLUMNS,
                tag=f"{run.method}-b{run.budget}-s{run.seed}",
            )
    return target


def curves(results: pd.DataFrame, measure: str) -> list[Series]:
    """Each method's mean over seeds against the budget, one standard deviation up and down."""
    table = summary(results, [measure])
    table[f"{measure}/sd"] = table[f"{measure}/sd"].fillna(0)
    out = []
    for method in results["method"].unique():
        rows = table[table["method"] == method]
        mean, deviation = rows[measure].to_numpy(), rows[f"{measure}/sd"].to_numpy()
        out.append(
            Series(
                str(method),
                rows["budget"].tolist(),
                mean.tolist(),
                (mean - deviation).tolist(),
                (mean + deviation).tolist(),
            )
        )
    return out


def _shown(runs: Sequence[Run]) -> list[Run]:
    """One run a method: the largest budget, of those the least seed."""
    first = sorted(runs, key=lambda run: (-run.budget, run.seed))
    return list({run.method: run for run in reversed(first)}.values())


def shared_rows(
    aligner: Aligner, held_out: HeldOutItems, items: int = ITEMS, width: int = WIDTH
) -> tuple[Tensor, pd.DataFrame]:
    """Rows of both modalities in the shared space, one each of some test items.

    Args:
        aligner: of a finished run.
        held_out: the evaluated rows.
        items: how many, at most.
        width: dimensions kept, at most.

    Returns:
        `[n, width]`, the rows of a before those of b, and their table with `COLUMNS`.
    """
    common = np.intersect1d(held_out.item_a.numpy(), held_out.item_b.numpy())
    chosen = np.sort(np.random.default_rng(0).permutation(common)[:items])
    parts, tables = [], []
    for side, held, numbers in (
        ("a", held_out.a, held_out.item_a),
        ("b", held_out.b, held_out.item_b),
    ):
        first = (
            pd.Series(np.arange(len(numbers)), index=numbers.numpy())
            .groupby(level=0)
            .first()[chosen]
            .to_numpy(copy=True)
        )  # writable, for torch
        parts.append(aligner.encode(side, held.x[torch.from_numpy(first)]).cpu())
        tables.append(_words(held, first, side))
    z = torch.cat(parts)
    if z.shape[1] > width:
        z = z @ torch.linalg.svd(z, full_matrices=False).Vh[:width].T
    return z, pd.concat(tables, ignore_index=True)


def _words(held: HeldOut, numbers: np.ndarray, side: str) -> pd.DataFrame:
    """The rows' metadata; tabs and line ends would break the projector's table."""
    rows = held.rows.iloc[numbers]
    words = rows["text"].fillna(rows["item"]) if "text" in rows else rows["item"]
    group = rows["group"] if "group" in rows else pd.Series("", index=rows.index)
    table = pd.DataFrame(
        {"modality": side, "item": rows["item"], "words": words, "group": group}, columns=COLUMNS
    )
    return table.fillna("").astype(str).map(lambda text: " ".join(text.split())[:160])
