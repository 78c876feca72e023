"""What a finished aligner is worth on held-out items: the measures of one result row, and the ranks
behind them.

Legend: `n` rows, `D_in` frozen width, `D` shared width. Names of measures: `<direction>/<measure>`,
direction `ab` (queries of a, gallery of b) or `ba`; `<modality>/<measure>` for measures within a
modality, with `/before` and `/after` the map where both are measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from gera_lightning.aligners.aligner import Aligner
from gera_lightning.config import EvaluationConfig
from gera_lightning.data.held_out import HeldOut, HeldOutItems
from gera_lightning.evaluation.classification import classification
from gera_lightning.evaluation.neighborhoods import (
    evenly_spaced_indices,
    group_recall,
    knn_overlap,
    label_precision,
    trustworthiness,
)
from gera_lightning.evaluation.retrieval import (
    Ranking,
    foscttm,
    hubness,
    rank_positives,
    retrieval,
)
from gera_lightning.utils.errors import UserError
from gera_lightning.utils.instantiate import ClassSpec, build

MAX_UNIMODAL_ROWS = 20_000
"""Rows of a modality whose neighbourhoods are compared at most: time grows with their square."""
SAME_MODALITY = (("label_p@10", "label", label_precision), ("group_r@10", "group", group_recall))


@dataclass(frozen=True)
class Evaluated:
    """What a metric of the user's own is called with: the held-out rows of both modalities.

    Attributes:
        x_a, x_b: frozen embeddings `[n_a, D_a]`, `[n_b, D_b]`.
        z_a, z_b: the same, mapped: unit rows in the shared space `[n_a, D]`, `[n_b, D]`.
        item_a, item_b: item numbers `[n_a]`, `[n_b]`; equal numbers are pairs.
        rows_a, rows_b: the stores' tables of these rows.
    """

    x_a: Tensor
    x_b: Tensor
    z_a: Tensor
    z_b: Tensor
    item_a: Tensor
    item_b: Tensor
    rows_a: pd.DataFrame
    rows_b: pd.DataFrame


@dataclass(frozen=True)
class _Side:
    """One modality's part in a direction: rows ready to be scored, and what is known of them."""

    z: Tensor
    item: Tensor
    held: HeldOut


def evaluate(
    aligner: Aligner, held_out: HeldOutItems, settings: EvaluationConfig
) -> tuple[dict[str, float], pd.DataFrame]:
    """Measures of an aligner on held-out items.

    Args:
        aligner: on the device to compute on.
        held_out: the evaluated rows.
        settings: of the measures; `settings.metrics` are the user's own.

    Returns:
        names of measures to values (`ab/r@10`, `ba/median_rank`, `ab/robot/r@10` of a condition
        `robot`, `a/knn_overlap`, ...), and the
        ranks: a table of direction, query row, item, rank of the best positive, number of
        positives, and family of the item.

    Raises:
        UserError: a metric of the user's own that returns no numbers, or a name that is taken.
    """
    a, b = held_out.a, held_out.b
    z = {"a": aligner.encode_a(a.x), "b": aligner.encode_b(b.x)}
    measures: dict[str, float] = {}
    tables, closer = [], []
    for direction in ("ab", "ba"):
        queries, gallery = _sides(aligner, held_out, z, direction)
        ranking = rank_positives(
            queries.z, gallery.z, queries.item, gallery.item, chunk=settings.chunk
        )
        found = retrieval_measures(ranking, queries, gallery, chunk=settings.chunk)
        measures |= {f"{direction}/{name}": value for name, value in found.items()}
        tables.append(_rank_table(direction, ranking, queries, gallery))
        closer.append(foscttm(ranking))
    for name, part in held_out.conditions.items():
        measures |= _of_condition(aligner, part, name, chunk=settings.chunk)
    measures["foscttm"] = float(np.mean(closer))
    for side, held, item in (("a", a, held_out.item_a), ("b", b, held_out.item_b)):
        some = evenly_spaced_indices(len(held.x), MAX_UNIMODAL_ROWS)
        frozen = aligner.preprocess[side](held.x[some].to(z[side].device)).cpu()
        mapped, rows = z[side].cpu()[some], held.rows.iloc[some]
        found = unimodal(frozen, mapped, rows, item[some], settings.overlap_k, chunk=settings.chunk)
        measures |= {f"{side}/{name}": value for name, value in found.items()}
    evaluated = Evaluated(
        a.x, b.x, z["a"].cpu(), z["b"].cpu(), held_out.item_a, held_out.item_b, a.rows, b.rows
    )
    measures |= own_measures(settings.metrics, evaluated, taken=measures)
    return measures, pd.concat(tables, ignore_index=True)


def own_measures(
    metrics: Sequence[ClassSpec], evaluated: Evaluated, taken: Mapping[str, float] = {}
) -> dict[str, float]:
    """What the user's own metrics return.

    Args:
        metrics: class and arguments of each; an object of it is called with `evaluated` and returns
            a mapping of names to numbers.
        evaluated: the held-out rows.
        taken: names that are taken.

    Raises:
        UserError: no mapping of names to numbers, or a name that is taken.
    """
    measures: dict[str, float] = {}
    for number, spec in enumerate(metrics):
        where = f"evaluation.metrics[{number}]"
        found = build(spec, where)(evaluated)
        try:
            found = {str(name): float(value) for name, value in found.items()}
        except (AttributeError, TypeError, ValueError) as error:
            raise UserError(
                f"must return a mapping of names to numbers ({error})", key=where, value=spec
            ) from error
        for name in found:
            if name in taken or name in measures:
                raise UserError(
                    "returns a name that is taken", key=where, value=name, remedy="rename it"
                )
        measures |= found
    return measures


@torch.inference_mode()
def _sides(
    aligner: Aligner, held_out: HeldOutItems, z: Mapping[str, Tensor], direction: str
) -> tuple[_Side, _Side]:
    """Queries and gallery of a direction, scored by dot product, on the CPU."""
    query, gallery = direction[0], direction[1]
    items = {"a": held_out.item_a, "b": held_out.item_b}
    return (
        _Side(aligner.space.queries(z[query]).cpu(), items[query], getattr(held_out, query)),
        _Side(
            aligner.space.gallery(gallery, z[gallery]).cpu(),
            items[gallery],
            getattr(held_out, gallery),
        ),
    )


def _of_condition(
    aligner: Aligner, part: HeldOutItems, name: str, *, chunk: int
) -> dict[str, float]:
    """Retrieval among the rows of one condition, as `<direction>/<condition>/r@10` and so on."""
    z = {"a": aligner.encode_a(part.a.x), "b": aligner.encode_b(part.b.x)}
    measures: dict[str, float] = {}
    for direction in ("ab", "ba"):
        queries, gallery = _sides(aligner, part, z, direction)
        ranking = rank_positives(queries.z, gallery.z, queries.item, gallery.item, chunk=chunk)
        if not ranking.best.isnan().all():
            found = retrieval(ranking, queries.item, gallery.item)
            found |= _classified(queries, gallery, chunk)
            measures |= {f"{direction}/{name}/{key}": value for key, value in found.items()}
    return measures


def retrieval_measures(
    ranking: Ranking, queries: _Side, gallery: _Side, *, chunk: int = 4096
) -> dict[str, float]:
    """All measures of one direction.

    Returns:
        those of `retrieval`; `hubness`; `unseen/...` over groups that training never saw, see
        `unseen`; `accuracy` and so on where the gallery holds class names, see `classification`.
    """
    measures = retrieval(ranking, queries.item, gallery.item)
    measures["hubness"] = hubness(queries.z[~ranking.best.isnan()], gallery.z)
    found = unseen(ranking, queries, gallery, chunk=chunk)
    measures |= {f"unseen/{name}": value for name, value in found.items()}
    return measures | _classified(queries, gallery, chunk)


def _classified(queries: _Side, gallery: _Side, chunk: int) -> dict[str, float]:
    return classification(queries.z, gallery.z, queries.held.rows, gallery.held.rows, chunk=chunk)


def unseen(
    ranking: Ranking, queries: _Side, gallery: _Side, *, chunk: int = 4096
) -> dict[str, float]:
    """Retrieval over rows whose group (voice, renderer) training never saw.

    Where both modalities have such rows, these search each other; where one has, they search all of
    the other or are searched by it. Empty where no such row has a partner.
    """
    if not (queries.held.unseen.any() or gallery.held.unseen.any()):
        return {}
    asked, searched = (
        torch.from_numpy(side.unseen if side.unseen.any() else ~side.unseen)
        for side in (queries.held, gallery.held)
    )
    item_g = gallery.item[searched]
    if not searched.all():  # another gallery, other ranks
        ranking = rank_positives(queries.z, gallery.z[searched], queries.item, item_g, chunk=chunk)
    chosen = ranking.of(asked)
    return retrieval(chosen, queries.item[asked], item_g) if len(chosen.query) else {}


def unimodal(
    x: Tensor, z: Tensor, rows: pd.DataFrame, item: Tensor, k: int, *, chunk: int = 4096
) -> dict[str, float]:
    """What the map did to one modality's own neighbourhoods.

    Args:
        x, z: unit rows before and after the map `[n, D_in]`, `[n, D]`.
        rows: their table; its columns `label` and `group` are read where it has them.
        item: item numbers `[n]`.
        k: neighbours of the first three measures.
        chunk: rows compared at once.

    Returns:
        `knn_overlap`, `trustworthiness`, `continuity`; `label_p@10/before`, `/after` where rows of
        other items share a label; `group_r@10/before`, `/after` where an item has rows of several
        groups.
    """
    measures = {
        "knn_overlap": knn_overlap(x, z, k),
        "trustworthiness": trustworthiness(x, z, k),
        "continuity": trustworthiness(z, x, k),
    }
    for name, column, measure in SAME_MODALITY:
        if column not in rows:
            continue
        numbers = torch.from_numpy(pd.factorize(rows[column])[0].astype(np.int64))  # missing: -1
        for when, vectors in (("before", x), ("after", z)):
            value = measure(vectors, item, numbers, 10, chunk=chunk)
            if not np.isnan(value):
                measures[f"{name}/{when}"] = value
    return measures


def _rank_table(direction: str, ranking: Ranking, queries: _Side, gallery: _Side) -> pd.DataFrame:
    """The ranks of one direction, a row per query that has a positive."""
    n_items = int(max(queries.item.max(), gallery.item.max())) + 1
    counts, rows = torch.bincount(gallery.item, minlength=n_items), queries.held.rows
    table = pd.DataFrame(
        {
            "direction": direction,
            "row": rows["row"],
            "item": rows["item"],
            "rank": ranking.best.numpy(),
            "positives": counts[queries.item].numpy(),
            "family": rows["family"],
        }
    )
    return table[table["positives"] > 0]
