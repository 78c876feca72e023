"""What a store holds, for people to read: counts, norms, copies, damage, and nearest neighbours.

Legend: `N` rows, `D` width.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from gera_lightning.data.leaks import row_codes
from gera_lightning.data.records import for_terminal
from gera_lightning.data.store import EmbeddingStore
from gera_lightning.utils.errors import UserError

CHUNK = 16_384
"""Rows read at a time."""
BINS = 10
"""Bars of the histogram of norms."""
BAR = 30
"""Characters of the longest bar."""
TEXT_WIDTH = 90
"""Characters shown of a row's text."""


@dataclass(frozen=True)
class Scan:
    """What one pass over a store's vectors finds.

    Attributes:
        norms: L2 norm of each row `[N]`, not finite where a value is not.
        codes: hash of each row's values `[N]`, the same for exact copies.
    """

    norms: np.ndarray
    codes: np.ndarray

    @property
    def copies(self) -> int:
        """Rows that are an exact copy of an earlier one."""
        return len(self.codes) - len(np.unique(self.codes))

    @property
    def damaged(self) -> np.ndarray:
        """Rows with a value that is not finite."""
        return np.flatnonzero(~np.isfinite(self.norms))


def chunks(store: EmbeddingStore, size: int = CHUNK) -> Iterator[tuple[int, np.ndarray]]:
    """First row and vectors `[n, D]` float32 of each part of a store.

    Unlike `EmbeddingStore.read` it also gives vectors that are not finite.
    """
    first = 0
    for shard in store.shards:
        vectors = np.load(store.path / shard.vectors, mmap_mode="r", allow_pickle=False)
        for start in range(0, len(vectors), size):
            part = np.asarray(vectors[start : start + size], dtype=np.float32)
            yield first + start, part
        first += len(vectors)


def scan(store: EmbeddingStore) -> Scan:
    """Norms and exact copies of a store's rows.

    >>> import tempfile
    >>> from gera_lightning.data.store import write_store
    >>> folder = tempfile.TemporaryDirectory()
    >>> x = np.array([[3.0, 4.0], [0.0, 1.0], [3.0, 4.0]])
    >>> found = scan(write_store(f"{folder.name}/x", x, {"item": ["a", "b", "c"]}))
    >>> found.norms.tolist(), found.copies, len(found.damaged)
    ([5.0, 1.0, 5.0], 1, 0)
    """
    norms, codes = [np.empty(0)], [np.empty(0, dtype=np.uint64)]
    for _, part in chunks(store):
        with np.errstate(invalid="ignore", over="ignore"):
            norms.append(np.linalg.norm(part.astype(np.float64), axis=1))
        codes.append(row_codes(part))
    return Scan(np.concatenate(norms), np.concatenate(codes))


def largest_difference(store: EmbeddingStore, reference: EmbeddingStore) -> float:
    """`max |x - y| / |y|` over the rows x of a store and the rows y of the same name in another.

    The rounding of float16 gives about 1e-3.

    Raises:
        UserError: a row that `reference` does not have, or another width.
    """
    names = store.rows["row"]
    number_of = pd.Series(range(len(reference)), index=reference.rows["row"])
    missing = names[~names.isin(number_of.index)]
    if len(missing) or store.dim != reference.dim:
        difference = (
            f"has the row {missing.iloc[0]!r}, which is not in {reference.path}"
            if len(missing)
            else f"has width {store.dim}, but {reference.path} has {reference.dim}"
        )
        raise UserError(
            difference, key=str(store.path), remedy="compare stores of one corpus and encoder"
        )
    y = reference.read(number_of[names].to_numpy())
    return float((np.linalg.norm(store.read() - y, axis=1) / np.linalg.norm(y, axis=1)).max())


def nearest(store: EmbeddingStore, rows: list[int], k: int) -> list[list[tuple[int, float]]]:
    """The k nearest other rows of each of some rows, with their cosine, best first.

    Rows that are not finite are no neighbours.
    """
    queries = _unit(store.read(rows))
    best_score = np.full((len(rows), k), -np.inf, dtype=np.float32)
    best_row = np.full((len(rows), k), -1, dtype=np.int64)
    for start, part in chunks(store):
        with np.errstate(invalid="ignore"):
            score = queries @ _unit(part).T
        score = np.where(np.isfinite(score), score, -np.inf)
        for position, row in enumerate(rows):
            if start <= row < start + len(part):
                score[position, row - start] = -np.inf  # a row is not its own neighbour
        number = np.broadcast_to(np.arange(start, start + len(part)), score.shape)
        scores, numbers = np.hstack([best_score, score]), np.hstack([best_row, number])
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        best_score = np.take_along_axis(scores, order, 1)
        best_row = np.take_along_axis(numbers, order, 1)
    return [
        [(int(row), float(score)) for row, score in zip(*pair, strict=True) if np.isfinite(score)]
        for pair in zip(best_row, best_score, strict=True)
    ]


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def inspect_store(
    path: str | os.PathLike[str], *, examples: int = 3, neighbors: int = 3, seed: int = 0
) -> str:
    """A page of text about a store: the output of `gera inspect`.

    Args:
        path: the store's folder.
        examples: number of rows whose neighbours are shown.
        neighbors: number of neighbours shown for each.
        seed: which rows are drawn as examples.

    Raises:
        UserError: no store there, or one that cannot be opened.
    """
    for key, value, low in (("examples", examples, 0), ("neighbors", neighbors, 1)):
        if not isinstance(value, int) or value < low:
            raise UserError(f"must be a whole number of at least {low}", key=key, value=value)
    store = EmbeddingStore(path)
    found = scan(store)
    lines = [
        f"{store.path}: {len(store):,} rows of width {store.dim},"
        f" {store.manifest.get('dtype')}, {len(store.shards)} shards",
        f"encoder      {_as_text(store.encoder)}",
        f"source       {_as_text(store.manifest.get('source') or {})}",
        f"checksums    {_checksums(store)}",
        *_table_lines(store.rows),
        f"not finite   {_count(store.rows, found.damaged)}",
        f"zero         {_count(store.rows, np.flatnonzero(found.norms == 0))}",
        f"copies       {found.copies:,} rows are exact copies of an earlier one",
        *_histogram(found.norms),
        *_neighbor_lines(store, found, examples, neighbors, seed),
    ]
    return "\n".join(lines)


def _as_text(record: dict[str, object]) -> str:
    known = [f"{key} {value}" for key, value in record.items() if value not in (None, "")]
    return ", ".join(known) or "not recorded"


def _checksums(store: EmbeddingStore) -> str:
    try:
        store.verify()
    except UserError as error:
        return f"DIFFER: {error}"
    return "agree with the manifest"


def _table_lines(rows: pd.DataFrame) -> list[str]:
    per_item = rows["item"].value_counts()
    lines = [f"items        {len(per_item):,}, {per_item.min()} to {per_item.max()} rows each"]
    if "split" in rows:
        counts = rows["split"].fillna("(none)").value_counts()
        lines.append(
            "splits       " + ", ".join(f"{name} {count:,}" for name, count in counts.items())
        )
    for column in ("group", "family", "label"):
        if column in rows:
            lines.append(f"{column:<13}{rows[column].nunique():,} different")
    return lines


def _count(rows: pd.DataFrame, numbers: np.ndarray) -> str:
    if not len(numbers):
        return "none"
    return f"{len(numbers):,} rows, the first is {rows['row'].iloc[numbers[0]]!r}"


def _histogram(norms: np.ndarray) -> list[str]:
    norms = norms[np.isfinite(norms)]
    if not len(norms):
        return []
    if np.ptp(norms) <= 2e-3 * norms.max():  # no wider than the rounding of float16
        return [f"norms        all {norms.mean():.4g}"]
    counts, edges = np.histogram(norms, BINS)
    return [
        f"norms        median {np.median(norms):.4g}",
        *(
            f"  {low:>9.4g} to {high:<9.4g} {'#' * int(np.ceil(BAR * count / counts.max())):<{BAR}}"
            f" {count:,}"
            for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True)
        ),
    ]


def _neighbor_lines(
    store: EmbeddingStore, found: Scan, examples: int, k: int, seed: int
) -> list[str]:
    usable = np.flatnonzero(np.isfinite(found.norms) & (found.norms > 0))
    chosen = sorted(
        np.random.default_rng(seed)
        .choice(usable, min(examples, len(usable)), replace=False)
        .tolist()
    )
    lines = []
    for row, near in zip(chosen, nearest(store, chosen, k) if chosen else [], strict=True):
        lines.append(f"nearest to   {row_words(store.rows, row)}")
        lines += [f"  {score:6.3f}     {row_words(store.rows, other)}" for other, score in near]
    return lines


def row_words(rows: pd.DataFrame, number: int) -> str:
    """A row as people know it: its text, else its path, then its name."""
    record = rows.iloc[number]
    for column in ("text", "path"):
        if column in rows and isinstance(record[column], str) and record[column]:
            text = for_terminal(record[column])
            more = "..." if len(text) > TEXT_WIDTH else ""
            return f"{text[:TEXT_WIDTH]}{more}  [{for_terminal(record['row'])}]"
    return for_terminal(str(record["row"]))
