"""Search one modality with a row of the other.

    gera search EXPERIMENT QUERY [k=5 side=image method=coupled_ridge budget=300 key=value ...]

    gera search image_text "red heart"

The folder of a run or of an aligner may stand for the experiment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from gera_lightning.config.overrides import split_overrides
from gera_lightning.data.inspection import row_words
from gera_lightning.experiment.load_run import load_run
from gera_lightning.utils import distributed
from gera_lightning.utils.errors import UserError, check_one_of


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
    """The best matches of a row of one modality among the rows of the other, in lines.

    Args:
        target: an experiment, or the folder of a run or an aligner, see `load_run`.
        query: a `row`, an `item`, a text, or a part of one.
        overrides: of the experiment.
        k: matches to show; right ones, rows of the same item, carry a star.
        side: modality of the query, by its name or as `a` or `b`; by default the one that has such
            a row, a first.
        method, budget: see `load_run`.

    Raises:
        UserError: no such row, or as `load_run`.
    """
    if not query.strip():
        raise UserError(
            "is empty", key="query", remedy='such as gera search speech_text "he traveled by rail"'
        )
    if k < 1:
        raise UserError("must be at least 1", key="k", value=k)
    run = load_run(target, overrides, method=method, budget=budget)
    names = dict(zip("ab", run.modalities, strict=True))
    sides = _sides(side, names)
    found = {s: matching(getattr(run, s).rows, query) for s in sides}
    asking = next((s for s, numbers in found.items() if len(numbers)), None)
    if asking is None:
        places = " and ".join(str(getattr(run, s).path) for s in sides)
        raise UserError(f"is in no `row`, `item` or `text` of {places}", key="query", value=query)
    other = "b" if asking == "a" else "a"
    queries, gallery = getattr(run, asking), getattr(run, other)
    number = int(found[asking][0])
    scores, rows = distributed.run_with_cpu_fallback(
        run.device,
        lambda device: run.aligner.to(device).search(
            queries.read([number]), gallery, k, direction=asking + other
        ),
        f"the aligner in {run.folder}",
    )
    item = queries.rows["item"].iloc[number]
    more = len(found[asking]) - 1
    also = f"   ({more} more rows of {names[asking]} match)" if more else ""
    wide = max(len(name) for name in names.values())
    lines = [
        f"{run.folder}   (*: of the same item)",
        f"{names[asking]:<{wide}}          {row_words(queries.rows, number)}{also}",
    ]
    for score, row in zip(scores[0].tolist(), rows[0].tolist(), strict=True):
        star = "*" if gallery.rows["item"].iloc[row] == item else " "
        lines.append(f"{names[other]:<{wide}}{star}{score:7.3f}  {row_words(gallery.rows, row)}")
    return "\n".join(lines)


def _sides(side: str, names: Mapping[str, str]) -> list[str]:
    """The modalities to look for the query in, of `names` such as `{"a": "speech", ...}`.

    Raises:
        UserError: neither a modality's name nor `a` or `b`.
    """
    known = {name: letter for letter, name in names.items()}
    if not side:
        return list(names)
    check_one_of("side", side, list(dict.fromkeys((*known, *names))))
    return [known.get(side, side)]


def matching(rows: pd.DataFrame, query: str) -> np.ndarray:
    """Numbers of the rows that a query names, whatever its case.

    By `row`, else by `item`, else by their whole text, else by a part of it.
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
            "takes an experiment and a query",
            key="gera search",
            remedy='such as gera search image_text "red heart"',
        )
    options, overrides = split_overrides(words[2:], search)
    print(search(words[0], words[1], overrides, **options))
