"""What a finished aligner is worth on held-out items: the measures of one result row, and the ranks
behind them.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from gera_lightning.aligners.aligner import Aligner
from gera_lightning.config import EvaluationConfig
from gera_lightning.data.held_out import HeldOutItems
from gera_lightning.evaluation.neighborhoods import (
    evenly_spaced_indices,
    group_recall,
    knn_overlap,
    label_precision,
    trustworthiness,
)
from gera_lightning.evaluation.retrieval import (
    Ranking,
    chance,
    foscttm_one_way,
    hubness,
    rank_positives,
    retrieval,
)

MOST_UNIMODAL_ROWS = 20_000
"""Rows of a modality whose neighbourhoods are compared at most: the time for it grows with their
square.
"""


def evaluate(
    aligner: Aligner, held_out: HeldOutItems, settings: EvaluationConfig
) -> tuple[dict[str, float], pd.DataFrame]:
    """Measures of an aligner on held-out items.

    Returns:
        result names to values (`ab/r@10`, `ba/median_rank`, `a/knn_overlap`, ...; `ab/unseen/...`
        for groups that training never saw; `ab/zero_shot`, see `zero_shot`; `foscttm`, the mean of
        both directions), and the ranks: direction, query row, item, rank of the best positive,
        positives, family of the item.
    """
    a, b, chunk = held_out.a, held_out.b, settings.chunk
    z_a, z_b = aligner.encode_a(a.x), aligner.encode_b(b.x)
    item_a, item_b = held_out.item_a, held_out.item_b
    out: dict[str, float] = {}
    sides = {"ab": (z_a, z_b, item_a, item_b, a, b), "ba": (z_b, z_a, item_b, item_a, b, a)}
    tables, ways = [], []
    for direction, (z_q, z_g, item_q, item_g, query, gallery) in sides.items():
        with torch.inference_mode():
            z_q, z_g = (
                aligner.space.queries(z_q).cpu(),
                aligner.space.gallery(direction[1], z_g).cpu(),
            )
        ranking = rank_positives(z_q, z_g, item_q, item_g, chunk=chunk)
        out |= {
            f"{direction}/{name}": value
            for name, value in retrieval(ranking, item_q, item_g).items()
        }
        out[f"{direction}/hubness"] = hubness(z_q[~ranking.best.isnan()], z_g)
        if (
            query.unseen.any() or gallery.unseen.any()
        ):  # of both modalities' rows, where both have such groups
            asked, kept = (
                torch.from_numpy(side.unseen if side.unseen.any() else ~side.unseen)
                for side in (query, gallery)
            )
            among = (
                ranking
                if kept.all()
                else rank_positives(z_q, z_g[kept], item_q, item_g[kept], chunk=chunk)
            )
            if len(among.of(asked).query):
                found = retrieval(among.of(asked), item_q[asked], item_g[kept])
                out |= {f"{direction}/unseen/{name}": value for name, value in found.items()}
        out |= {
            f"{direction}/{name}": value
            for name, value in zero_shot(z_q, z_g, query.rows, gallery.rows, chunk=chunk).items()
        }
        ways.append(foscttm_one_way(ranking))
        tables.append(_rank_table(direction, ranking, item_q, item_g, query.rows))
    out["foscttm"] = float(np.mean(ways))
    for side, z, held, item in (("a", z_a, a, item_a), ("b", z_b, b, item_b)):
        compared = evenly_spaced_indices(len(z), MOST_UNIMODAL_ROWS)
        frozen = aligner.preprocess[side](held.x[compared].to(z.device)).cpu()
        found = unimodal(
            frozen,
            z.cpu()[compared],
            held.rows.iloc[compared],
            item[compared],
            settings.overlap_k,
            chunk=chunk,
        )
        out |= {f"{side}/{name}": value for name, value in found.items()}
    return out, pd.concat(tables, ignore_index=True)


def unimodal(
    x: Tensor, z: Tensor, rows: pd.DataFrame, item: Tensor, k: int, *, chunk: int = 4096
) -> dict[str, float]:
    """What became of one modality's own neighbourhoods.

    Args:
        x, z: unit rows before and after the map `[n, D_in]`, `[n, D]`.
        rows: their table; `label` and `group` are read where they are.
        item: item numbers `[n]`.
        k: neighbours.

    Returns:
        `knn_overlap`, `trustworthiness`, `continuity`; `label_p@10/before`, `/after` where rows of
        other items share a label; `group_r@10/before`, `/after` where an item has rows of several
        groups.
    """
    out = {
        "knn_overlap": knn_overlap(x, z, k),
        "trustworthiness": trustworthiness(x, z, k),
        "continuity": trustworthiness(z, x, k),
    }
    for name, column, measure in (
        ("label_p@10", "label", label_precision),
        ("group_r@10", "group", group_recall),
    ):
        if column in rows:
            numbers = torch.from_numpy(
                pd.factorize(rows[column])[0].astype(np.int64)
            )  # a missing value is -1
            found = {
                when: measure(v, item, numbers, 10, chunk=chunk)
                for when, v in (("before", x), ("after", z))
            }
            out |= {f"{name}/{when}": value for when, value in found.items() if not np.isnan(value)}
    return out


def zero_shot(
    z_q: Tensor, z_g: Tensor, queries: pd.DataFrame, gallery: pd.DataFrame, *, chunk: int = 4096
) -> dict[str, float]:
    """Classification by the gallery's class names: rows of `split` `both` with a `label`.

    Returns:
        `zero_shot`, the share of queries whose best class name has their `label`, and
        `zero_shot_chance`, of a random order of the names; over queries with the label of a class
        name that are no class names themselves. Empty where there are none.
    """
    if not {"split", "label"} <= set(gallery) or "label" not in queries:
        return {}
    names = ((gallery["split"] == "both") & gallery["label"].notna()).to_numpy(copy=True)
    asked = queries["label"].isin(gallery["label"][names]).to_numpy(copy=True)
    if "split" in queries:
        asked &= (queries["split"] != "both").to_numpy()
    if not asked.any():
        return {}
    labels = pd.factorize(pd.concat([queries["label"][asked], gallery["label"][names]]))[0].astype(
        np.int64
    )
    label_q, label_g = (
        torch.from_numpy(labels[: asked.sum()]),
        torch.from_numpy(labels[asked.sum() :]),
    )
    found = rank_positives(
        z_q[torch.from_numpy(asked)], z_g[torch.from_numpy(names)], label_q, label_g, chunk=chunk
    ).best
    return {
        "zero_shot": float((found <= 1).double().mean()),
        "zero_shot_chance": chance(label_q.numpy(), label_g.numpy(), 1),
    }


def _rank_table(
    direction: str, ranking: Ranking, item_q: Tensor, item_g: Tensor, rows: pd.DataFrame
) -> pd.DataFrame:
    counts = torch.bincount(item_g, minlength=int(max(item_q.max(), item_g.max())) + 1)
    table = pd.DataFrame(
        {
            "direction": direction,
            "row": rows["row"],
            "item": rows["item"],
            "rank": ranking.best.numpy(),
            "positives": counts[item_q].numpy(),
            "family": rows["family"],
        }
    )
    return table[table["positives"] > 0]
