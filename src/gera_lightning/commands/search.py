"""Search one modality with a row of the other.

    gera search EXPERIMENT QUERY [k=5 side=a method=gera budget=300 key=value ...]

    gera search image_text "red heart"

In place of an experiment, the folder of a run or of an aligner.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from gera_lightning.config.overrides import split_overrides
from gera_lightning.data.inspection import row_words
from gera_lightning.experiment.load_run import load_run
from gera_lightning.utils import distributed
from gera_lightning.utils.errors import UserError


def search(
    target: str,
    query: str,
    overrides: Sequence[str] = (),
    *,
    k: int = 5,
    side: str = "",
    method: str = "",
    budget: int | None = None,
) -> str:
    """The best matches of a row of the experiment's stores, in lines.

    Args:
        target: see `load_run`.
        query: a `row`, an `item`, a text, or a part of one.
        overrides: of the experiment.
        k: matches to show; right ones, rows of the same item, carry a star.
        side: modality of the query, `a` or `b`; by default the one that knows it, a first.
        method, budget: see `load_run`.

    Raises:
        UserError: nothing of that name, or as `load_run`.
    """
    if not query.strip():
        raise UserError(
            'the query is empty: gera search speech_text "he traveled by rail", or make search'
            ' EXP=speech_text Q="he traveled by rail"'
        )
    if k < 1 or side not in ("", "a", "b"):
        raise UserError(f"k={k} must be at least 1, and side={side!r} a or b")
    run = load_run(target, overrides, method=method, budget=budget)
    found = {s: matching(getattr(run, s).rows, query) for s in side or "ab"}
    asking = next((s for s, numbers in found.items() if len(numbers)), None)
    if asking is None:
        raise UserError(
            f"{query!r} is in no `row`, `item` or `text` of"
            f" {' and '.join(str(getattr(run, s).path) for s in found)}"
        )
    answering = "b" if asking == "a" else "a"
    asked, gallery = getattr(run, asking), getattr(run, answering)
    number = int(found[asking][0])
    scores, rows = distributed.run_with_cpu_fallback(
        run.device,
        lambda device: run.aligner.to(device).search(
            asked.read([number]), gallery, k, direction=asking + answering
        ),
        f"the aligner in {run.folder}",
    )
    item = asked.rows["item"].iloc[number]
    more = (
        f"   ({len(found[asking]) - 1} more rows of {asking} match)"
        if len(found[asking]) > 1
        else ""
    )
    lines = [
        f"{run.folder}   (*: of the same item)",
        f"{asking}      {row_words(asked.rows, number)}{more}",
    ]
    for score, row in zip(scores[0].tolist(), rows[0].tolist(), strict=True):
        star = "*" if gallery.rows["item"].iloc[row] == item else " "
        lines.append(f"{answering}{star}{score:7.3f}  {row_words(gallery.rows, row)}")
    return "\n".join(lines)


def matching(rows: pd.DataFrame, query: str) -> np.ndarray:
    """Numbers of the rows that a query names: by `row`, else by `item`, else by their whole text,
    else by a part of it; case does not count.
    """
    wanted = query.strip().casefold()
    columns = [
        rows[name].fillna("").astype(str).str.casefold()
        for name in ("row", "item", "text")
        if name in rows
    ]
    for column in columns:
        same = np.flatnonzero(column == wanted)
        if len(same):
            return same
    return (
        np.flatnonzero(columns[-1].str.contains(wanted, regex=False))
        if "text" in rows
        else np.empty(0, dtype=np.int64)
    )


def run(words: Sequence[str]) -> None:
    """The command line's `gera search`."""
    if len(words) < 2:
        raise UserError(
            'gera search takes an experiment and a query, such as: gera search image_text "red'
            ' heart"'
        )
    options, overrides = split_overrides(words[2:], search)
    print(search(words[0], words[1], overrides, **options))
