"""Retrievals to look at, good and bad, of one finished run."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd

from gera_lightning.aligners.aligner import Aligner
from gera_lightning.config import Config
from gera_lightning.data.held_out import HeldOut
from gera_lightning.experiment.paired_stores import Stores
from gera_lightning.experiment.results import Sweep
from gera_lightning.report.document import Answer, Block, Example, Section, Text
from gera_lightning.utils.errors import UserError

SHOWN = 5
GOOD, BAD = 3, 3


def section(sweep: Sweep, method: str, config: Config) -> Section:
    """Queries of a method at its largest budget and least seed, with their first answers.

    Good ones are spread evenly over the queries of rank 1, bad ones over those beyond rank 10 in
    order of rank: not hand-picked, not the worst alone. Without the stores, or without the run's
        aligner, the section says so.
    """
    runs = sweep.runs[sweep.runs["method"] == method]
    run = runs.sort_values(["budget", "seed"], ascending=[False, True]).iloc[0]
    title = "Examples"
    try:
        stores = Stores.open(
            dataclasses.replace(config, data=dataclasses.replace(config.data, split=sweep.split))
        )
        if stores.data_hash != run["data_hash"]:
            raise UserError("the stores now hold other data than the runs had")
        aligner = Aligner.load(Path(run["folder"]) / "aligner")
        ranks = pd.read_parquet(Path(run["folder"]) / "ranks.parquet")
    except (UserError, OSError) as error:
        return Section(title, [Text(f"No examples can be shown: {error}.")])
    blocks: list[Block] = [
        Text(
            f"Of {method} at {run['budget']} pairs, seed {run['seed']}. For each direction: queries"
            " spread evenly over those whose right answer comes first, then over those whose right"
            " answer is not among the first 10. Right answers stand out."
        )
    ]
    held = stores.held_out
    for direction, query, gallery in (("ab", held.a, held.b), ("ba", held.b, held.a)):
        blocks += _direction(
            aligner, ranks[ranks["direction"] == direction], direction, query, gallery
        )
    return Section(title, blocks)


def _direction(
    aligner: Aligner, ranks: pd.DataFrame, direction: str, query: HeldOut, gallery: HeldOut
) -> list[Block]:
    numbers = pd.Series(range(len(query.rows)), index=query.rows["row"])
    blocks: list[Block] = [
        Text(f"{direction[0]} → {direction[1]}, {len(gallery.rows)} rows to find among")
    ]
    chosen = pd.concat(
        [
            _spread(ranks[ranks["rank"] == 1], GOOD),
            _spread(ranks[ranks["rank"] > 10].sort_values("rank"), BAD),
        ]
    )
    asked = numbers.reindex(chosen["row"]).dropna().astype(int).to_numpy()
    if not len(asked):
        return []
    scores, found = aligner.search(query.x[asked.tolist()], gallery.x, SHOWN, direction=direction)
    texts, asking = row_texts(gallery.rows), row_texts(query.rows)
    for number, values, places in zip(asked, scores.tolist(), found.tolist(), strict=True):
        row = query.rows.iloc[number]
        rank = float(ranks.loc[ranks["row"] == row["row"], "rank"].iloc[0])
        right = gallery.rows["item"] == row["item"]
        note = f"right answer at rank {rank:g} of {len(gallery.rows)}"
        if rank > SHOWN:
            note += f": {texts[int(np.flatnonzero(right)[0])]}"
        answers = [
            Answer(texts[at], value, bool(right.iloc[at]))
            for at, value in zip(places, values, strict=True)
        ]
        blocks.append(Example(asking[number], note, answers))
    return blocks


def _spread(table: pd.DataFrame, count: int) -> pd.DataFrame:
    """`count` rows, evenly over the table."""
    return table.iloc[np.unique(np.linspace(0, len(table) - 1, min(count, len(table))).astype(int))]


def row_texts(rows: pd.DataFrame) -> list[str]:
    """What to call each row: its text or else its item, and its group."""
    text = rows["text"].fillna(rows["item"]) if "text" in rows else rows["item"]
    out = [str(value) if len(str(value)) <= 160 else f"{str(value)[:159]}…" for value in text]
    if "group" in rows:
        out = [
            f"{value} ({group})" if isinstance(group, str) else value
            for value, group in zip(out, rows["group"], strict=True)
        ]
    return out
