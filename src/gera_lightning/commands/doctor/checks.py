"""Checks of the rows, pairs and neighbours of two stores. Nothing is fitted here.

Legend: `n` rows, `D` width. `name` is that of the modality, such as `speech`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from gera_lightning.config.schema import DEFAULT_METHOD
from gera_lightning.data.inspection import Scan
from gera_lightning.data.leaks import Leaks
from gera_lightning.data.splits import ItemSplit, count_pairs, matched_items, split_units
from gera_lightning.data.store import EmbeddingStore
from gera_lightning.evaluation.similarity import affinity
from gera_lightning.geometry.neighbors import NeighborGraph, knn_graph
from gera_lightning.models.maps import normalized
from gera_lightning.utils.errors import UserError

OK, NOTE, ERROR, SUGGESTION = "ok", "note", "ERROR", "next"
SMALL_NORM = 1e-3
"""Share of the median norm; the direction of a smaller row is noise."""
MIN_SPREAD = 0.01
"""Rows nearer to their mean direction than this differ by little more than rounding (float16:
0.0005 per value).
"""
FEW_PAIRS = 10
FEW_TEST_ITEMS = 20
MIN_AGREEMENT = {"group": 0.4, "label": 0.2}
"""Neighbours follow a column where `(share - chance) / (1 - chance)` is above this, `share` being
how many neighbours have the row's value. Our values: of the shipped stores, speech, which diffusion
harms, has 0.56 for `group`, and pictures, which it helps, 0.28.
"""


@dataclass(frozen=True)
class Finding:
    """One finding.

    Attributes:
        level: `ok`, `note` (worth knowing), `ERROR` (must be mended) or `next` (what to run).
        text: for people.
    """

    level: str
    text: str

    def __str__(self) -> str:
        return f"{self.level:<6}{self.text}"


def row_findings(store: EmbeddingStore, name: str, found: Scan) -> Iterator[Finding]:
    """Damage of single rows: files, values, norms, copies."""
    encoder = store.encoder.get("name") or "an encoder that is not recorded"
    yield Finding(OK, f"{name}: {len(store):,} rows of width {store.dim} by {encoder}")
    try:
        store.verify()
    except UserError as error:
        yield Finding(ERROR, f"{name}: {error}")
    bad = found.damaged
    if len(bad):
        first = store.rows["row"].iloc[bad[0]]
        yield Finding(
            ERROR,
            f"{name}: {len(bad):,} rows hold NaN or infinity, the first is {first!r}: embed them"
            " again or leave them out",
        )
    norms = found.norms[np.isfinite(found.norms)]
    small = int((norms <= SMALL_NORM * np.median(norms)).sum()) if len(norms) else 0
    if small:
        yield Finding(
            ERROR if small > 0.05 * len(norms) else NOTE,
            f"{name}: {small:,} rows have norm 0 or nearly so, so their direction means nothing:"
            " leave them out",
        )
    share = found.copies / max(len(store), 1)
    if share > 0.5:
        yield Finding(
            ERROR,
            f"{name}: {share:.0%} of the rows are exact copies of another: the encoder or its input"
            " has collapsed",
        )
    elif found.copies:
        yield Finding(
            NOTE,
            f"{name}: {found.copies:,} rows ({share:.1%}) are exact copies of an earlier one: give"
            " copies one `family`, so that no split parts them",
        )


def leak_findings(leaks: Leaks, names: Sequence[str]) -> Iterator[Finding]:
    """Test rows that are exact copies of train rows."""
    if len(leaks.items):
        yield Finding(
            ERROR,
            f"pairs: {len(leaks.items):,} test items are exact copies of train items, so results"
            " would be too good: give copies one `family`, which no split parts, or leave them out",
        )
    for name, rows in zip(names, leaks.rows.values(), strict=True):
        if len(rows):
            yield Finding(
                NOTE,
                f"{name}: {len(rows):,} test rows are exact copies of train rows of other items:"
                " one `family` would keep copies together",
            )


def pair_findings(
    a: EmbeddingStore, b: EmbeddingStore, split: ItemSplit, names: Sequence[str] = ("a", "b")
) -> Iterator[Finding]:
    """How many pairs and unpaired items there are, and whether paired neighbourhoods agree."""
    if a.data_hash == b.data_hash:
        yield Finding(
            ERROR,
            f"pairs: this is the same store twice ({a.path}, {b.path}): name one of each modality",
        )
        return
    items = matched_items(a.rows, b.rows, split)
    only_a = len(_items(a, split.train_a)) - len(items)
    only_b = len(_items(b, split.train_b)) - len(items)
    unpaired = f"unpaired items: {only_a:,} of {names[0]}, {only_b:,} of {names[1]}"
    if count_pairs(a.rows, b.rows, split) < FEW_PAIRS:
        yield Finding(
            ERROR,
            f"pairs: {len(items)} train items have a row in both stores, at least {FEW_PAIRS} are"
            " needed: rows with the same `item` are a pair, so check both `item` columns"
            f" ({unpaired})",
        )
        return
    test_items = np.intersect1d(_items(a, split.test_a), _items(b, split.test_b))
    rows = a.rows["item"].to_numpy(dtype=str)
    classes = np.unique(rows[split_units(a.rows, b.rows) != rows])
    if len(classes):
        yield _classes(a, split, classes, names)
        items = np.setdiff1d(items, classes)
        if not len(items):
            return
    yield Finding(
        OK,
        f"pairs: {len(items):,} train items in {split.families[items].nunique():,} families,"
        f" {len(test_items):,} test items; {unpaired}",
    )
    if not len(test_items):
        yield Finding(
            ERROR if len(split.test_a) or len(split.test_b) else NOTE,
            "pairs: no test item has a row in both stores, so runs measure nothing: check the"
            " `split` column, or take gera align",
        )
    elif len(test_items) < FEW_TEST_ITEMS:
        yield Finding(
            NOTE,
            f"pairs: {len(test_items)} test items are few to measure on: cross-validate"
            " (data.split=folds seeds=[0,1,2,3,4]), raise data.test_share, or take gera align",
        )
    yield _agreement(a, b, names)


def _classes(
    a: EmbeddingStore, split: ItemSplit, classes: np.ndarray, names: Sequence[str]
) -> Finding:
    """How many labelled rows the classes have, and how many are asked for."""
    rows = a.rows["item"][a.rows["item"].isin(classes)]
    train, test = (
        rows[rows.index.isin(side)].value_counts() for side in (split.train_a, split.test_a)
    )
    fewest = train.min() if len(train) else 0
    text = (
        f"classes: {len(train):,} with {train.sum():,} labelled train rows of {names[0]}"
        f" ({fewest:,} at least each), named by {names[1]}; {test.sum():,} test rows of"
        f" {len(test):,} classes, {len(test.index.difference(train.index)):,} of them without train"
        " rows"
    )
    if len(test):
        return Finding(OK, text)
    return Finding(NOTE, f"{text}: runs measure nothing, take gera align")


def _items(store: EmbeddingStore, rows: np.ndarray) -> np.ndarray:
    """Items of rows, each once."""
    return np.unique(store.rows["item"].to_numpy(dtype=str)[rows])


def _agreement(a: EmbeddingStore, b: EmbeddingStore, names: Sequence[str]) -> Finding:
    """Whether pairs that are near in one modality are near in the other."""
    found = affinity([a], [b], most=2000)
    paired, shuffled = found.table["knn"][0], found.table["knn_shuffled"][0]
    text = f"agreement: mutual {found.k}-NN of pairs {paired:.3f}, of shuffled pairs {shuffled:.3f}"
    if paired > 1.5 * shuffled:
        return Finding(OK, f"{text}: what is near in {names[0]} is near in {names[1]}")
    return Finding(
        NOTE,
        f"{text}: neighbourhoods do not agree; check that `item` pairs the right rows, otherwise"
        " expect little",
    )


def spread_findings(x: Tensor, name: str) -> Iterator[Finding]:
    """Whether rows `[n, D]` point in different directions."""
    z = normalized(x.double())
    mean = float(z.mean(0).norm())
    spread = float(max(1 - mean**2, 0) ** 0.5)
    values = torch.linalg.svdvals(z - z.mean(0)).square()
    dimensions = float(values.sum() ** 2 / values.square().sum().clamp(min=1e-300))
    if spread < MIN_SPREAD:
        yield Finding(
            ERROR,
            f"{name}: all rows point the same way (spread {spread:.2g} of 1): the embeddings have"
            " collapsed, look at the encoder",
        )
    elif dimensions < 2:
        yield Finding(
            ERROR,
            f"{name}: the rows lie on a line ({dimensions:.1f} effective dimensions): the"
            " embeddings have collapsed",
        )
    else:
        yield Finding(
            OK,
            f"{name}: {dimensions:.0f} effective dimensions of {x.shape[1]}, spread {spread:.2f}"
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
    """Share of a row's neighbours in its own group, and the share by chance.

    By chance it is the mean over rows of `(n_g - 1) / (n - 1)`; rows without a group do not count.
    """
    numbers = pd.factorize(group)[0]
    has = numbers >= 0
    near = graph.indices.cpu().numpy()
    same = (numbers[near] == numbers[:, None])[has].mean()
    sizes = np.bincount(numbers[has])[numbers[has]]
    return float(same), float((sizes - 1).mean() / (len(numbers) - 1))


def neighbor_findings(x: Tensor, rows: pd.DataFrame, name: str, k: int) -> Iterator[Finding]:
    """Whether geometry can help: is the neighbour graph connected, and what do neighbours share.

    Args:
        x: preprocessed rows `[n, D]`.
        rows: their table.
        name: of the modality.
        k: neighbours.
    """
    graph = knn_graph(x, k)
    yield _connected(graph, name)
    for column, least in MIN_AGREEMENT.items():
        if column in rows and rows[column].nunique() > 1:
            share, chance = shared_group(graph, rows[column])
            follow = share > chance + least * (1 - chance)
            text = (
                f"{name}: {share:.0%} of neighbours share the row's `{column}`, {chance:.0%} by"
                " chance"
            )
            yield _label(text, follow) if column == "label" else _group(text, follow)


def _connected(graph: NeighborGraph, name: str) -> Finding:
    """Whether diffusion reaches all rows."""
    n, k = graph.indices.shape
    sizes = components(graph)
    if len(sizes) == 1:
        return Finding(OK, f"{name}: the graph of {k} neighbours is connected")
    text = (
        f"{name}: the neighbour graph has {len(sizes)} parts, the largest holds"
        f" {sizes[0] / n:.0%} of the rows"
    )
    if sizes[0] >= 0.9 * n:
        return Finding(OK, text)
    return Finding(
        NOTE,
        f"{text}: diffusion cannot pass between them, so the unpaired rows say little; more"
        " neighbours may join them",
    )


def _label(text: str, follow: bool) -> Finding:
    meaning = "follow the label" if follow else "say little about the label"
    return Finding(OK, f"{text}: neighbours {meaning}")


def _group(text: str, follow: bool) -> Finding:
    """What it means that neighbours share the voice or the renderer."""
    if not follow:
        return Finding(OK, f"{text}: neighbours cross groups, so diffusion over them may denoise")
    return Finding(
        NOTE,
        f"{text}: neighbours follow the group (voice, renderer), not the content, so diffusion over"
        f" them blurs content; `{DEFAULT_METHOD}` chooses its filters by the pairs, other presets"
        " do not diffuse; more groups in the pool would help",
    )
