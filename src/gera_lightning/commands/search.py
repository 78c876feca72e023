"""Search one modality with a row of the other, or with something new.

    gera search EXPERIMENT QUERY [k=5 side=image method=coupled_ridge budget=300 key=value ...]

    gera search image_text "a red heart"
    gera search runs/recordings my_sound.wav

A query is a row of a store (its `row`, `item` or `text`), words, a file, or a folder with / at its
end. What is new is encoded by the encoder that the store's manifest names. The folder of a run or
of an aligner may stand for the experiment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pandas as pd
import torch

from gera_lightning.aligners.aligner import Aligner
from gera_lightning.config.overrides import split_overrides
from gera_lightning.data.inspection import row_words
from gera_lightning.data.records import for_terminal
from gera_lightning.data.store import EmbeddingStore
from gera_lightning.embedding.query import encode_new, new_items, store_encoder
from gera_lightning.encoders.rebuild import none_takes, side_that_takes
from gera_lightning.experiment.load_run import aligner_folder, load_run
from gera_lightning.utils import distributed
from gera_lightning.utils.errors import UserError, check_one_of


@dataclass(frozen=True)
class Query:
    """What is searched with.

    Attributes:
        side: its modality, `a` or `b`.
        rows: frozen rows `[n, D]`.
        words: each row in words.
        item: item of a row of a store; None for something new.
        note: what is to be said of it.
    """

    side: str
    rows: np.ndarray
    words: Sequence[str]
    item: str | None = None
    note: str = ""


def search(
    target: str,
    query: str,
    overrides: Sequence[str] = (),
    *,
    k: int = 5,
    side: str = "",
    method: str = "",
    budget: int | None = None,
    encoder: str = "",
    gallery: str = "",
) -> str:
    """The best matches of a query of one modality among the rows of the other, in lines.

    Args:
        target: an experiment, or the folder of a run or an aligner, see `load_run`.
        query: a `row`, an `item` or a text of a store; else words, a file, or a folder of files
            with / at its end, which are encoded; else a part of a store's text.
        overrides: of the experiment.
        k: matches to show; right ones, rows of the same item, carry a star.
        side: modality of the query, by its name or as `a` or `b`; by default the one that has such
            a row, a first, or whose encoder takes it.
        method, budget: see `load_run`.
        encoder: where the weights of the query's encoder are, a hub name, a folder or
            `package:MODULE/FOLDER`; by default the name in the store's manifest.
        gallery: a store to search; by default that of the run. With it an aligner needs none of the
            stores that it was fitted on.

    Raises:
        UserError: nothing found to search with, or as `load_run`.
    """
    if not query.strip():
        raise UserError(
            "is empty", key="query", remedy='such as gera search speech_text "he traveled by rail"'
        )
    if k < 1:
        raise UserError("must be at least 1", key="k", value=k)
    found = _Searched.load(target, overrides, method, budget, gallery)
    asked_with = _query(found, query, found.sides(side), encoder)
    asked = "b" if asked_with.side == "a" else "a"
    rows = found.gallery(asked)
    scores, numbers = distributed.run_with_cpu_fallback(
        found.device,
        lambda device: found.aligner.to(device).search(
            asked_with.rows, rows, k, direction=asked_with.side + asked
        ),
        f"the aligner in {found.folder}",
    )
    names = found.names
    wide = max(len(name) for name in names.values())
    starred = asked_with.item is not None
    blocks = []
    for words, best, near in zip(asked_with.words, scores.tolist(), numbers.tolist(), strict=True):
        lines = [f"{names[asked_with.side]:<{wide}}          {words}"]
        for score, number in zip(best, near, strict=True):
            star = "*" if starred and rows.rows["item"].iloc[number] == asked_with.item else " "
            lines.append(
                f"{names[asked]:<{wide}}{star}{score:7.3f}  {row_words(rows.rows, number)}"
            )
        blocks.append("\n".join(lines))
    head = f"{found.folder}" + ("   (*: of the same item)" if starred else "")
    return "\n".join([*filter(None, [asked_with.note]), head, "\n\n".join(blocks)])


@dataclass(frozen=True)
class _Searched:
    """An aligner and what there is to search.

    Attributes:
        aligner: the artefact.
        folder: where it lies.
        names: of the modalities, by `a` and `b`.
        stores: those of the run; none where a gallery is named.
        other: the gallery that the user names.
        device: to compute on.
    """

    aligner: Aligner
    folder: Path
    names: Mapping[str, str]
    stores: Mapping[str, EmbeddingStore]
    other: EmbeddingStore | None
    device: torch.device

    @classmethod
    def load(
        cls,
        target: str,
        overrides: Sequence[str],
        method: str,
        budget: int | None,
        gallery: str,
    ) -> _Searched:
        place = aligner_folder(target)
        if gallery and place is not None:  # its own stores need not be there
            aligner, folder, stores = Aligner.load(place), Path(target), {}
            names = dict(zip("ab", aligner.about.get("modalities") or "ab", strict=True))
            device = distributed.device("auto")
        else:
            run = load_run(target, overrides, method=method, budget=budget)
            aligner, folder, device = run.aligner, run.folder, run.device
            stores, names = {"a": run.a, "b": run.b}, dict(zip("ab", run.modalities, strict=True))
        names = {s: for_terminal(str(name)) for s, name in names.items()}
        other = EmbeddingStore(gallery) if gallery else None
        return cls(aligner, folder, names, stores, other, device)

    def gallery(self, side: str) -> EmbeddingStore:
        """The rows of `side` that are searched."""
        return self.stores[side] if self.other is None else self.other

    def encoder(self, side: str) -> Mapping[str, Any]:
        """What is known of the encoder of `side`."""
        return self.stores[side].encoder if side in self.stores else self.aligner.encoder(side)

    def sides(self, side: str) -> list[str]:
        """The modalities that the query may be of.

        Raises:
            UserError: neither a modality's name nor `a` or `b`.
        """
        known = {name: letter for letter, name in self.names.items()}
        if not side:
            return list(self.names)
        check_one_of("side", side, list(dict.fromkeys((*known, *self.names))))
        return [known.get(side, side)]


def _query(found: _Searched, query: str, sides: Sequence[str], encoder: str) -> Query:
    """What a query stands for: a row that has this name or text, something new, or else a row whose
    text holds it.
    """
    if row := _row(found, query, sides, whole=True):
        return row
    new = new_items(query)
    side = side_that_takes({s: found.encoder(s) for s in sides}, new.modality)
    part = _row(found, query, sides, whole=False) if new.modality == "text" else None
    if side is None:
        return part or _refuse(found, new.modality, query, sides)
    try:
        known = store_encoder(found.encoder(side), encoder, found.stores.get(side))
        rows = encode_new(known, new)
    except UserError as error:
        if part is None:
            raise
        return replace(part, note=f"this row holds the words, which are not encoded: {error}")
    return Query(side, rows, [for_terminal(name) for name in new.names])


def _refuse(found: _Searched, modality: str, query: str, sides: Sequence[str]) -> NoReturn:
    none = none_takes({s: found.encoder(s) for s in sides}, found.names, modality)
    places = " and ".join(str(found.stores[s].path) for s in sides if s in found.stores)
    rowless = f"is in no `row`, `item` or `text` of {places}, and " if places else ""
    raise UserError(
        f"{rowless}{for_terminal(none)}",
        key="query",
        value=query,
        remedy="encode it yourself and call Aligner.search",
    )


def _row(found: _Searched, query: str, sides: Sequence[str], *, whole: bool) -> Query | None:
    for side in sides:
        store = found.stores.get(side)
        if store is not None and len(numbers := matching(store.rows, query, whole=whole)):
            number, more = int(numbers[0]), len(numbers) - 1
            also = f"   ({more} more rows of {found.names[side]} match)" if more else ""
            words = [row_words(store.rows, number) + also]
            return Query(side, store.read([number]), words, str(store.rows["item"].iloc[number]))
    return None


def matching(rows: pd.DataFrame, query: str, *, whole: bool) -> np.ndarray:
    """Numbers of the rows that a query names, whatever its case.

    By `row`, else by `item`, else by their whole text; or, not `whole`, by a part of their text.
    """
    wanted = query.strip().casefold()
    names = ("row", "item", "text") if whole else ("text",)
    for name in names:
        if name in rows:
            column = rows[name].fillna("").astype(str).str.casefold()
            same = column == wanted if whole else column.str.contains(wanted, regex=False)
            if same.any():
                return np.flatnonzero(same)
    return np.empty(0, dtype=np.int64)


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
