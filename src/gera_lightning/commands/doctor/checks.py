"""What the rows, pairs and neighbours of two stores say about aligning them. Nothing is fitted
here.

Legend: `n` rows, `D` width, `K` neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from gera_lightning.data.inspection import Scan
from gera_lightning.data.splits import ItemSplit, matched_items
from gera_lightning.data.store import EmbeddingStore
from gera_lightning.evaluation.similarity import affinity
from gera_lightning.geometry.neighbors import NeighborGraph, knn_graph
from gera_lightning.models.maps import normalized
from gera_lightning.utils.errors import UserError

OK, NOTE, ERROR, SUGGESTION = "ok", "note", "ERROR", "next"
SMALL_NORM = 1e-3
"""Of the median: such a row's direction is noise."""
SPREAD = 0.01
"""Rows nearer to their mean direction than this are told apart by rounding alone (float16: 0.0005 a
value).
"""
FEW_PAIRS = 10
FEW_TEST_ITEMS = 20
FOLLOWS = {"group": 0.4, "label": 0.2}
"""Neighbours follow a column where they share it more than chance gives by this much of what is
left to 1. Our values: among the shipped stores the speech rows, which diffusion harms, lie at 0.56,
    the pictures, which it helps, at 0.28.
"""


@dataclass(frozen=True)
class Finding:
    """One thing that was found: `mark` is `ok`, `note` (worth knowing), `ERROR` (in the way) or
    `next` (what to run).
    """

    mark: str
    words: str

    def __str__(self) -> str:
        return f"{self.mark:<5}{self.words}"


def row_findings(store: EmbeddingStore, side: str, found: Scan) -> Iterator[Finding]:
    """Damage of single rows: files, values, norms, copies."""
    name = store.encoder.get("name") or "an encoder that is not recorded"
    yield Finding(OK, f"{side}: {len(store):,} rows of width {store.dim} by {name}")
    try:
        store.verify()
    except UserError as error:
        yield Finding(ERROR, f"{side}: {error}")
    bad = found.damaged
    if len(bad):
        first = store.rows["row"].iloc[bad[0]]
        yield Finding(
            ERROR,
            f"{side}: {len(bad):,} rows hold NaN or infinity, the first is {first!r}: embed them"
            " again or leave them out",
        )
    norms = found.norms[np.isfinite(found.norms)]
    small = int((norms <= SMALL_NORM * np.median(norms)).sum()) if len(norms) else 0
    if small:
        mark = ERROR if small > 0.05 * len(norms) else NOTE
        yield Finding(
            mark,
            f"{side}: {small:,} rows have norm 0 or nearly so, their direction means nothing: leave"
            " them out",
        )
    share = found.copies / max(len(store), 1)
    if share > 0.5:
        yield Finding(
            ERROR,
            f"{side}: {share:.0%} of the rows are exact copies of another: the encoder or its input"
            " has collapsed",
        )
    elif found.copies:
        yield Finding(
            NOTE,
            f"{side}: {found.copies:,} rows ({share:.1%}) are exact copies of an earlier one: one"
            " `family` keeps copies together",
        )


def leak_findings(side: str, found: Scan, train: np.ndarray, test: np.ndarray) -> Iterator[Finding]:
    """Test rows that are exact copies of train rows; rows of `split` `both` are meant to be on both
    sides.
    """
    leaked = np.isin(found.codes[np.setdiff1d(test, train)], found.codes[train])
    if leaked.any():
        yield Finding(
            ERROR,
            f"{side}: {int(leaked.sum()):,} test rows are exact copies of train rows, so results"
            " would flatter: give the items of copies one `family`, which no split cuts",
        )


def pair_findings(a: EmbeddingStore, b: EmbeddingStore, split: ItemSplit) -> Iterator[Finding]:
    """How many pairs there are, what is unpaired, and whether paired neighbourhoods agree."""
    if a.data_hash == b.data_hash:
        yield Finding(
            ERROR,
            f"pairs: a and b are the same store twice ({a.path}, {b.path}): name one of each"
            " modality",
        )
        return
    items_a, items_b = (
        np.unique(s.rows["item"].to_numpy(dtype=str)[rows])
        for s, rows in ((a, split.train_a), (b, split.train_b))
    )
    items = matched_items(a.rows, b.rows, split)
    held = np.intersect1d(
        a.rows["item"].to_numpy(dtype=str)[split.test_a],
        b.rows["item"].to_numpy(dtype=str)[split.test_b],
    )
    alone = (
        f"unpaired items: {len(items_a) - len(items):,} of a, {len(items_b) - len(items):,} of b"
    )
    if len(items) < FEW_PAIRS:
        yield Finding(
            ERROR,
            f"pairs: {len(items)} train items have a row in both stores, at least {FEW_PAIRS} are"
            " needed: rows with the same `item` are a pair, so check both `item` columns"
            f" ({alone})",
        )
        return
    families = split.families[items].nunique()
    yield Finding(
        OK,
        f"pairs: {len(items):,} train items in {families:,} families, {len(held):,} test items;"
        f" {alone}",
    )
    if not len(held):
        mark = ERROR if len(split.test_a) or len(split.test_b) else NOTE
        yield Finding(
            mark,
            "pairs: no test item has a row in both stores, so runs measure nothing: check the"
            " `split` column, or take gera align",
        )
    elif len(held) < FEW_TEST_ITEMS:
        yield Finding(
            NOTE,
            f"pairs: {len(held)} test items are few to measure on: raise data.test_share, or take"
            " gera align",
        )
    found = affinity([a], [b], most=2000)
    paired, shuffled = found.table["knn"][0], found.table["knn_shuffled"][0]
    text = f"agreement: mutual {found.k}-NN of pairs {paired:.3f}, of shuffled pairs {shuffled:.3f}"
    if paired > 1.5 * shuffled:
        yield Finding(OK, f"{text}: what is near in a is near in b")
    else:
        yield Finding(
            NOTE,
            f"{text}: neighbourhoods do not agree; check that `item` pairs the right rows,"
            " otherwise expect little",
        )


def spread_findings(x: Tensor, side: str) -> Iterator[Finding]:
    """Whether rows `[n, D]` point in different directions at all."""
    z = normalized(x.double())
    mean = float(z.mean(0).norm())
    spread = float(max(1 - mean**2, 0) ** 0.5)
    values = torch.linalg.svdvals(z - z.mean(0)).square()
    dimensions = float(values.sum() ** 2 / values.square().sum().clamp(min=1e-300))
    if spread < SPREAD:
        yield Finding(
            ERROR,
            f"{side}: all rows point the same way (spread {spread:.2g} of 1): the embeddings have"
            " collapsed, look at the encoder",
        )
    elif dimensions < 2:
        yield Finding(
            ERROR,
            f"{side}: the rows lie on a line ({dimensions:.1f} effective dimensions): the"
            " embeddings have collapsed",
        )
    else:
        yield Finding(
            OK,
            f"{side}: {dimensions:.0f} effective dimensions of {x.shape[1]}, spread {spread:.2f}"
            " of 1",
        )


def components(graph: NeighborGraph) -> np.ndarray:
    """Sizes of the graph's connected parts, largest first; an edge joins both ways."""
    n, k = graph.indices.shape
    ends = np.repeat(np.arange(n), k), graph.indices.cpu().numpy().ravel()
    _, part = connected_components(
        coo_array((np.ones(n * k), ends), shape=(n, n)), directed=True, connection="weak"
    )
    return np.sort(np.bincount(part))[::-1]


def shared_group(graph: NeighborGraph, group: pd.Series) -> tuple[float, float]:
    """Share of a row's neighbours in its own group, and what chance gives, `mean (n_g - 1) / (n -
    1)`; rows without a group do not count.
    """
    numbers = pd.factorize(group)[0]
    has = numbers >= 0
    near = graph.indices.cpu().numpy()
    same = (numbers[near] == numbers[:, None])[has].mean()
    sizes = np.bincount(numbers[has])[numbers[has]]
    return float(same), float((sizes - 1).mean() / (len(numbers) - 1))


def neighbor_findings(x: Tensor, rows: pd.DataFrame, side: str, k: int) -> Iterator[Finding]:
    """Whether geometry can help: parts of the neighbour graph, and what neighbours share.

    Args:
        x: preprocessed rows `[n, D]`.
        rows: their table.
        side: name of the modality.
        k: neighbours.
    """
    graph = knn_graph(x, k)
    sizes = components(graph)
    if len(sizes) == 1:
        yield Finding(OK, f"{side}: the graph of {graph.indices.shape[1]} neighbours is connected")
    else:
        mark = NOTE if sizes[0] < 0.9 * len(x) else OK
        meaning = (
            ": diffusion cannot pass between them, so the unpaired rows say little; more neighbours"
            " may join them"
            if mark == NOTE
            else ""
        )
        yield Finding(
            mark,
            f"{side}: the neighbour graph has {len(sizes)} parts, the largest holds"
            f" {sizes[0] / len(x):.0%} of the rows{meaning}",
        )
    for column, much in FOLLOWS.items():
        if column not in rows or rows[column].nunique() < 2:
            continue
        share, chance = shared_group(graph, rows[column])
        text = (
            f"{side}: {share:.0%} of neighbours share the row's `{column}`, {chance:.0%} by chance"
        )
        beyond = share > chance + much * (1 - chance)
        if column == "label":
            yield Finding(
                OK, f"{text}: neighbours {'follow' if beyond else 'say little of'} the label"
            )
        elif beyond:
            yield Finding(
                NOTE,
                f"{text}: neighbours follow the nuisance (voice, renderer), not the content, so"
                " diffusing over them blurs content; `gera` chooses its filters by the pairs,"
                " other presets do not diffuse; more groups in the pool would help",
            )
        else:
            yield Finding(
                OK, f"{text}: neighbours cross the nuisance, so diffusion over them may denoise"
            )
