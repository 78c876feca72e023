"""TensorBoard's summary of an experiment: curves against the number of pairs, and shared spaces.

It lies in the folder `summary` of the experiment. The runs beside it have events of their own, with
losses, measures and hyper-parameters.
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
from gera_lightning.experiment.paired_stores import direction_names, modality_names
from gera_lightning.experiment.run import Run
from gera_lightning.report.figures import Series, lines, styles
from gera_lightning.utils.errors import UserError

log = logging.getLogger(__name__)
MEASURES = ("r@1", "r@10")
ITEMS = 200
"""Test items in the projector, one row of each modality."""
WIDTH = 128
"""Dimensions in the projector at most, which reads them as text.

The leading singular directions are kept: they change inner products least.
"""
COLUMNS = ["modality", "item", "text", "group"]


def write_summary(runs: Sequence[Run], results: pd.DataFrame, folder: Path) -> Path:
    """Write the summary of finished runs; one written before is replaced.

    Args:
        runs: finished, at least one.
        results: one row per run, the columns of results.jsonl.
        folder: of the experiment.

    Returns:
        the log folder.
    """
    target = folder / "summary"
    shutil.rmtree(target, ignore_errors=True)
    with SummaryWriter(str(target)) as writer:
        style = styles(list(results["method"].unique()))
        modalities = modality_names(runs[0].stores.a, runs[0].stores.b)
        for direction, name in direction_names(modalities).items():
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
            except UserError as error:  # a map of the user's own class
                log.warning("%s is not in the projector: %s", run.method, error)
                continue
            z, rows = shared_rows(aligner, run.stores.held_out, modalities)
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
    """One run per method, that of the largest budget and the smallest seed."""
    first = sorted(runs, key=lambda run: (-run.budget, run.seed))
    return list({run.method: run for run in reversed(first)}.values())


def shared_rows(
    aligner: Aligner,
    held_out: HeldOutItems,
    modalities: Sequence[str] = ("a", "b"),
    items: int = ITEMS,
    width: int = WIDTH,
) -> tuple[Tensor, pd.DataFrame]:
    """Rows of both modalities in the shared space: one row of each for some test items.

    Args:
        aligner: of a finished run.
        held_out: the evaluated rows.
        modalities: names of a and b.
        items: how many, at most.
        width: dimensions kept, at most.

    Returns:
        `[n, width]`, the rows of a before those of b, and their table with `COLUMNS`.
    """
    common = np.intersect1d(held_out.item_a.numpy(), held_out.item_b.numpy())
    chosen = np.sort(np.random.default_rng(0).permutation(common)[:items])
    parts, tables = [], []
    for side, name, held, numbers in (
        ("a", modalities[0], held_out.a, held_out.item_a),
        ("b", modalities[1], held_out.b, held_out.item_b),
    ):
        # np.unique gives the first row of each item; copied, so that torch may write to it
        present, first = np.unique(numbers.numpy(), return_index=True)
        rows = first[np.searchsorted(present, chosen)].copy()
        parts.append(aligner.encode(side, held.x[torch.from_numpy(rows)]).cpu())
        tables.append(_metadata(held, rows, name))
    z = torch.cat(parts)
    if z.shape[1] > width:
        z = z @ torch.linalg.svd(z, full_matrices=False).Vh[:width].T
    return z, pd.concat(tables, ignore_index=True)


def _metadata(held: HeldOut, numbers: np.ndarray, modality: str) -> pd.DataFrame:
    """What the projector shows of rows; tabs and line ends would break its table."""
    rows = held.rows.iloc[numbers]
    text = rows["text"].fillna(rows["item"]) if "text" in rows else rows["item"]
    group = rows["group"] if "group" in rows else pd.Series("", index=rows.index)
    table = pd.DataFrame({"item": rows["item"], "text": text, "group": group})
    table.insert(0, "modality", modality)
    return table[COLUMNS].fillna("").astype(str).map(lambda cell: " ".join(cell.split())[:160])
