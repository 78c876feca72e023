"""What is in a store, for people: counts, norms, duplicates, damage, and whether neighbours make
sense.

Legend: `N` rows, `D` width.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from gera_lightning.data.store import EmbeddingStore
from gera_lightning.utils.errors import UserError

CHUNK = 16_384
BINS = 10
BAR = 30


@dataclass(frozen=True)
class Scan:
    """One pass over a store's vectors.

    Attributes:
        norms: L2 norm of each row `[N]`, not finite where a value is not.
        codes: a number of each row's values `[N]`, the same for exact copies.
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
    """First row and vectors `[n, D]` float32 of each part of a store, unlike `read` also those that
    are not finite.
    """
    start = 0
    for shard in store.shards:
        vectors = np.load(store.path / shard.vectors, mmap_mode="r", allow_pickle=False)
        for at in range(0, len(vectors), size):
            part = np.asarray(vectors[at : at + size], dtype=np.float32)
            yield start + at, part
        start += len(vectors)


def scan(store: EmbeddingStore) -> Scan:
    """Norms and exact copies."""
    norms, hashes = [], []
    for _, part in chunks(store):
        with np.errstate(invalid="ignore", over="ignore"):
            norms.append(np.linalg.norm(part.astype(np.float64), axis=1))
        hashes.append(
            np.array([hash(row.tobytes()) for row in part + 0.0], dtype=np.int64)
        )  # -0.0 and 0.0 are the same
    if not norms:
        return Scan(np.empty(0), np.empty(0, dtype=np.int64))
    return Scan(np.concatenate(norms), np.concatenate(hashes))


def largest_difference(fresh: EmbeddingStore, kept: EmbeddingStore) -> float:
    """`max |x - y| / |y|` over the rows of `fresh`, against the rows of the same name of `kept`:
    1e-3 or so is float16's rounding.

    Raises:
        UserError: a row that `kept` does not have, or another width.
    """
    number = pd.Series(range(len(kept)), index=kept.rows["row"])
    missing = fresh.rows["row"][~fresh.rows["row"].isin(number.index)]
    if len(missing) or fresh.dim != kept.dim:
        what = (
            f"row {missing.iloc[0]!r} is not in {kept.path}"
            if len(missing)
            else f"width {fresh.dim}, but {kept.path} has {kept.dim}"
        )
        raise UserError(f"{fresh.path}: {what}: other data or another encoder")
    y = kept.read(number[fresh.rows["row"]].to_numpy())
    return float((np.linalg.norm(fresh.read() - y, axis=1) / np.linalg.norm(y, axis=1)).max())


def nearest(store: EmbeddingStore, rows: list[int], k: int) -> list[list[tuple[int, float]]]:
    """The k nearest other rows of some rows by cosine, with it, best first; rows that are not
    finite are passed over.
    """
    queries = _unit(store.read(rows))
    best_score = np.full((len(rows), k), -np.inf, dtype=np.float32)
    best_row = np.full((len(rows), k), -1, dtype=np.int64)
    for start, part in chunks(store):
        with np.errstate(invalid="ignore"):
            scores = queries @ _unit(part).T
        scores = np.where(np.isfinite(scores), scores, -np.inf)
        for position, row in enumerate(rows):
            if start <= row < start + len(part):
                scores[position, row - start] = -np.inf
        numbers = np.broadcast_to(np.arange(start, start + len(part)), scores.shape)
        every, names = (
            np.concatenate([best_score, scores], 1),
            np.concatenate([best_row, numbers], 1),
        )
        order = np.argsort(-every, axis=1, kind="stable")[:, :k]
        best_score, best_row = (
            np.take_along_axis(every, order, 1),
            np.take_along_axis(names, order, 1),
        )
    return [
        [(int(row), float(score)) for row, score in zip(*pair, strict=True) if np.isfinite(score)]
        for pair in zip(best_row, best_score, strict=True)
    ]


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def inspect_store(
    path: str | os.PathLike[str], *, examples: int = 3, neighbors: int = 3, seed: int = 0
) -> str:
    """A page about a store.

    Args:
        path: the store's folder.
        examples: rows whose neighbours are shown, drawn by `seed`.
        neighbors: how many of them.
        seed: see `examples`.

    Raises:
        UserError: no store there, or one that cannot be opened.
    """
    for key, value, low in (("examples", examples, 0), ("neighbors", neighbors, 1)):
        if not isinstance(value, int) or value < low:
            raise UserError(f"{key}={value!r} must be a whole number of at least {low}")
    store = EmbeddingStore(path)
    found = scan(store)
    lines = [
        (
            f"{store.path}: {len(store):,} rows of width {store.dim},"
            f" {store.manifest.get('dtype')}, {len(store.shards)} shards"
        ),
        *_sources(store),
        f"checksums    {_checksums(store)}",
        *_table_lines(store.rows),
        f"not finite   {_named(store.rows, found.damaged)}",
        f"zero         {_named(store.rows, np.flatnonzero(found.norms == 0))}",
        f"copies       {found.copies:,} rows are exact copies of an earlier one",
        *_histogram(found.norms),
        *_neighbor_lines(store, found, examples, neighbors, seed),
    ]
    return "\n".join(lines)


def _sources(store: EmbeddingStore) -> list[str]:
    def words(record: dict[str, object]) -> str:
        return (
            ", ".join(f"{key} {value}" for key, value in record.items() if value not in (None, ""))
            or "not recorded"
        )

    return [
        f"encoder      {words(store.encoder)}",
        f"source       {words(store.manifest.get('source') or {})}",
    ]


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


def _named(rows: pd.DataFrame, numbers: np.ndarray) -> str:
    return (
        "none"
        if not len(numbers)
        else f"{len(numbers):,} rows, the first is {rows['row'].iloc[numbers[0]]!r}"
    )


def _histogram(norms: np.ndarray) -> list[str]:
    norms = norms[np.isfinite(norms)]
    if not len(norms):
        return []
    if np.ptp(norms) <= 2e-3 * norms.max():  # the rounding of float16 is no spread
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
    """A row in words: its text, else its path, else its item."""
    record = rows.iloc[number]
    for column in ("text", "path"):
        if column in rows and isinstance(record[column], str) and record[column]:
            text = " ".join(str(record[column]).split())
            return f"{text[:90]}{'...' if len(text) > 90 else ''}  [{record['row']}]"
    return str(record["row"])
