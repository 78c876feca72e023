"""Retrievals to look at, right and wrong, of one finished run."""

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
from gera_lightning.report.findings import Findings
from gera_lightning.utils.errors import UserError

TOP = 5
RIGHT, WRONG = 3, 3
"""Queries shown per direction whose right answer comes first, and is not among the first 10."""
MAX_CHARACTERS = 160


def section(findings: Findings, config: Config) -> Section:
    """Queries of the reference with their first answers; empty where they cannot be computed.

    Of its run of the largest budget and smallest seed. The right ones are spread evenly over the
    queries of rank 1, the wrong ones over those beyond rank 10 in order of rank: not hand-picked,
    and not only the worst. Where the stores or the run's aligner are not there, a note of the
    sweep's says so.

    Args:
        findings: of the runs.
        config: names the stores.
    """
    sweep, title = findings.sweep, "Examples"
    runs = sweep.runs[sweep.runs["method"] == findings.reference]
    run = runs.sort_values(["budget", "seed"], ascending=[False, True]).iloc[0]
    try:
        stores = _stores(sweep, config, int(run["seed"]))
        aligner = Aligner.load(Path(run["folder"]) / "aligner")
        ranks = pd.read_parquet(Path(run["folder"]) / "ranks.parquet")
    except (UserError, OSError) as error:
        sweep.notes.append(f"No examples can be shown: {error}.")
        return Section(title, [])
    blocks: list[Block] = [
        Text(
            f"{findings.reference} at {run['budget']} pairs, seed {run['seed']}. For each"
            " direction: queries whose right answer comes first, then queries whose right answer is"
            " not among the first 10, both spread evenly. Right answers stand out."
        )
    ]
    sides = {"a": stores.held_out.a, "b": stores.held_out.b}
    for direction, words in findings.ways.items():
        query, gallery = sides[direction[0]], sides[direction[1]]
        examples = _examples(
            aligner, ranks[ranks["direction"] == direction], direction, query, gallery
        )
        if examples:
            blocks += [Text(f"{words}, among {len(gallery.rows):,} rows"), *examples]
    return Section(title, blocks, folded=True)


def _stores(sweep: Sweep, config: Config, seed: int) -> Stores:
    """The stores that the runs were made from, split as for those of a seed.

    Raises:
        UserError: they are not there, or hold other data now.
    """
    data = dataclasses.replace(config.data, split=sweep.split)
    stores = Stores.open(dataclasses.replace(config, data=data), seed)
    if stores.data_hash != sweep.data_hash:
        raise UserError("the stores now hold other data than the runs had")
    return stores


def _examples(
    aligner: Aligner, ranks: pd.DataFrame, direction: str, query: HeldOut, gallery: HeldOut
) -> list[Example]:
    """Examples of one direction."""
    wrong = ranks[ranks["rank"] > 10].sort_values("rank")
    chosen = pd.concat([_spread(ranks[ranks["rank"] == 1], RIGHT), _spread(wrong, WRONG)])
    place = pd.Series(range(len(query.rows)), index=query.rows["row"])
    numbers = place.reindex(chosen["row"]).dropna().astype(int).tolist()
    if not numbers:
        return []
    scores, answers = aligner.search(query.x[numbers], gallery.x, TOP, direction=direction)
    query_texts, gallery_texts = row_texts(query.rows), row_texts(gallery.rows)
    rank_of_row = ranks.drop_duplicates("row").set_index("row")["rank"]
    examples = []
    for number, values, rows in zip(numbers, scores.tolist(), answers.tolist(), strict=True):
        rank = float(rank_of_row[query.rows["row"].iloc[number]])
        right = (gallery.rows["item"] == query.rows["item"].iloc[number]).to_numpy()
        note = f"right answer at rank {rank:g} of {len(gallery.rows)}"
        if rank > TOP:
            note += f": {gallery_texts[int(np.flatnonzero(right)[0])]}"
        shown = [
            Answer(gallery_texts[row], value, bool(right[row]))
            for row, value in zip(rows, values, strict=True)
        ]
        examples.append(Example(query_texts[number], note, shown))
    return examples


def _spread(table: pd.DataFrame, count: int) -> pd.DataFrame:
    """`count` rows, evenly over the table."""
    return table.iloc[np.unique(np.linspace(0, len(table) - 1, min(count, len(table))).astype(int))]


def row_texts(rows: pd.DataFrame) -> list[str]:
    """A name for each row: its text or else its item, cut to `MAX_CHARACTERS`, and its group."""
    text = (rows["text"].fillna(rows["item"]) if "text" in rows else rows["item"]).astype(str)
    texts = [t if len(t) <= MAX_CHARACTERS else f"{t[: MAX_CHARACTERS - 1]}…" for t in text]
    if "group" not in rows:
        return texts
    return [
        f"{text} ({group})" if isinstance(group, str) else text
        for text, group in zip(texts, rows["group"], strict=True)
    ]
