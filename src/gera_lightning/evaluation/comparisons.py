"""Comparisons of methods over finished runs: a paired bootstrap over seeds and families of test
items, Holm-corrected, and label multipliers.

Legend: `M` methods, `N` budgets, `S` seeds, `I` families of test items, `B` draws; axes of draws
are `[B + 1]`, see `statistics`. Runs that are not there are NaN.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from gera_lightning.evaluation.statistics import (
    Estimate,
    detectable,
    estimate,
    holm,
    holm_levels,
    interval,
    p_value,
    pairs_needed,
    resampled_recall,
    resampling_weights,
    rising_curve,
)
from gera_lightning.utils.errors import UserError

DIRECTIONS = ("ab", "ba")
CHUNK = 1000
"""Draws whose weights are in memory as floats at once."""


@dataclass(frozen=True)
class Hits:
    """Which test items each run found, family by family: near-duplicates are found or missed
    together, so they are drawn together.

    Attributes:
        methods, budgets, seeds: labels of the first three axes.
        hits: query rows of a family with rank <= top, `[M, N, S, 2, I]` (directions ab, ba); NaN:
            no such run.
        rows: query rows of a family, `[2, I]`.
    """

    methods: list[str]
    budgets: list[int]
    seeds: list[int]
    hits: np.ndarray
    rows: np.ndarray

    def only(self, direction: str) -> Hits:
        """The same with the queries of one direction alone."""
        kept = np.array([[float(d == direction)] for d in DIRECTIONS])
        return Hits(self.methods, self.budgets, self.seeds, self.hits * kept, self.rows * kept)

    def of(self, methods: Sequence[str]) -> Hits:
        """The same with the runs of some methods alone."""
        places = [self.methods.index(name) for name in methods]
        return Hits(list(methods), self.budgets, self.seeds, self.hits[places], self.rows)


def load_hits(runs: pd.DataFrame, top: int = 10) -> Hits:
    """Read the ranks of finished runs.

    Args:
        runs: one row a run: `method`, `budget`, `seed`, and `folder`, its run folder; runs without
            `ranks.parquet` are passed over.
        top: a rank up to it is a hit.

    Raises:
        UserError: two runs of one method, budget and seed, or runs with other test items.
    """
    methods, budgets = list(dict.fromkeys(runs["method"])), sorted({int(n) for n in runs["budget"]})
    seeds = sorted({int(s) for s in runs["seed"]})
    twice = runs.duplicated(["method", "budget", "seed"])
    if twice.any():
        raise UserError(
            f"{runs['folder'][twice].iloc[0]}: a second run of the same method, budget and seed:"
            " keep one of them"
        )
    first: _Counts | None = None
    cube = np.empty(0)
    for method, budget, seed, folder in zip(
        runs["method"], runs["budget"], runs["seed"], runs["folder"], strict=True
    ):
        path = Path(folder) / "ranks.parquet"
        if not path.exists():
            continue
        counts = _counts_by_family(_read_ranks(path), top)
        if first is None:
            first = counts
            cube = np.full((len(methods), len(budgets), len(seeds), *counts.hits.shape), np.nan)
        if not (counts.families.equals(first.families) and (counts.rows == first.rows).all()):
            raise UserError(
                f"{path}: has other test items than the runs before it: runs to compare need"
                " the same stores and the same split"
            )
        cube[methods.index(method), budgets.index(budget), seeds.index(seed)] = counts.hits
    if first is None:
        raise UserError(
            "none of the runs has a ranks.parquet: run the experiment again with overwrite=true"
        )
    return Hits(methods, budgets, seeds, cube, first.rows)


def hits_of(ranks: Mapping[str, pd.DataFrame], top: int = 10) -> Hits:
    """Which items several aligners found, from tables of ranks as `evaluate` gives them, by name;
    each is a method of one run at budget 0. The tables are of the same items.
    """
    counts = {name: _counts_by_family(table, top) for name, table in ranks.items()}
    first = next(iter(counts.values()))
    cube = np.stack([one.hits for one in counts.values()])[:, None, None]
    return Hits(list(ranks), [0], [0], cube, first.rows)


@dataclass(frozen=True)
class _Counts:
    """Query rows of each family, `[2, I]`: those with rank <= top, and all."""

    families: pd.Index
    hits: np.ndarray
    rows: np.ndarray


def _read_ranks(path: Path) -> pd.DataFrame:
    """Columns `direction`, `rank` and `family` (of older runs `item`) of a run's ranks."""
    with pq.ParquetFile(path) as file:
        family = "family" if "family" in file.schema_arrow.names else "item"
        table = file.read(["direction", "rank", family]).to_pandas()
    return table.rename(columns={family: "family"})


def _counts_by_family(ranks: pd.DataFrame, top: int) -> _Counts:
    """Counts of a run; 0 where a direction asks none."""
    codes, families = pd.factorize(ranks["family"], sort=True)
    hit = (ranks["rank"] <= top).to_numpy()
    asked = [(ranks["direction"] == direction).to_numpy() for direction in DIRECTIONS]
    count = [np.bincount(codes[way], minlength=len(families)) for way in asked]
    found = [np.bincount(codes[way & hit], minlength=len(families)) for way in asked]
    return _Counts(pd.Index(families), np.stack(found).astype(float), np.stack(count).astype(float))


@dataclass(frozen=True)
class Difference:
    """A method's recall less another's, at one budget.

    Attributes:
        estimate: with the interval at the plain level.
        p: two-sided.
        error: standard deviation of the draws.
        draws: `[B + 1]`.
        seeds: how many seeds both have.
    """

    method: str
    reference: str
    budget: int
    estimate: Estimate
    p: float
    error: float
    draws: np.ndarray = field(repr=False)
    seeds: int


@dataclass(frozen=True)
class Bootstrap:
    """A paired bootstrap over seeds and families of test items: all methods and budgets meet the
    same drawn families and seeds.

    With one seed only families are drawn. Few seeds give intervals that are too narrow: the drawn
    seeds' variance is `(S - 1)/S` of the sample's.

    Args:
        hits: what each run found.
        draws: resamples.
        seed: of the random generator.
        level: of the intervals, 0.05 for 95 %.
    """

    hits: Hits
    draws: int = 2000
    seed: int = 0
    level: float = 0.05
    _drawn_seeds: dict[tuple[int, ...], np.ndarray] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @cached_property
    def by_seed(self) -> np.ndarray:
        """Recall of each run under each draw of families, `[B + 1, M, N, S]`; the draws of one
        run lie side by side in memory.
        """
        hits, rows = self.hits.hits, self.hits.rows
        weights = _family_weights(rows.shape[1], self.draws, self.seed)
        found = np.empty((*hits.shape[:3], len(weights)))
        for start in range(0, len(weights), CHUNK):
            part = weights[start : start + CHUNK].astype(np.float32)
            recall = resampled_recall(hits, rows, part)
            found[..., start : start + CHUNK] = np.moveaxis(recall, 0, -1)
        return np.moveaxis(found, -1, 0)

    def seeds_of(self, method: str, budget: int) -> set[int]:
        """Numbers on the axis of seeds of the runs that are there."""
        if method not in self.hits.methods or budget not in self.hits.budgets:
            return set()
        at = self.hits.hits[
            self.hits.methods.index(method), self.hits.budgets.index(budget), :, 0, 0
        ]
        return set(np.flatnonzero(~np.isnan(at)).tolist())

    def draws_of(self, method: str, budget: int, among: Iterable[int] | None = None) -> np.ndarray:
        """Mean recall over seeds `[B + 1]`, seeds resampled too; `among`: seeds to use, all that
        are there by default.
        """
        used = sorted(self.seeds_of(method, budget) if among is None else among)
        weights = self._seed_weights(tuple(used))
        values = self.by_seed[
            :, self.hits.methods.index(method), self.hits.budgets.index(budget), used
        ]
        return np.multiply(values, weights, order="C").sum(1) / len(used)

    def _seed_weights(self, used: tuple[int, ...]) -> np.ndarray:
        """How often each of a set of seeds is drawn, alike for every method and budget."""
        if used not in self._drawn_seeds:
            rng = np.random.default_rng([self.seed, 1, *used])
            self._drawn_seeds[used] = resampling_weights(len(used), self.draws, rng)
        return self._drawn_seeds[used]

    def recall(self, method: str, budget: int) -> Estimate | None:
        """Mean recall with its interval; None without runs."""
        return (
            estimate(self.draws_of(method, budget), self.level)
            if self.seeds_of(method, budget)
            else None
        )

    def difference(self, method: str, reference: str, budget: int) -> Difference | None:
        """Recall of `method` less that of `reference` over the seeds that both have; None where
        they share none.
        """
        common = self.seeds_of(method, budget) & self.seeds_of(reference, budget)
        if not common:
            return None
        draws = self.draws_of(method, budget, common) - self.draws_of(reference, budget, common)
        return Difference(
            method,
            reference,
            budget,
            estimate(draws, self.level),
            p_value(draws),
            float(np.nanstd(draws[1:])),
            draws,
            len(common),
        )


@lru_cache(maxsize=1)  # those of both directions together and of each alone are the same
def _family_weights(families: int, draws: int, seed: int) -> np.ndarray:
    """How often each family is drawn, `[draws + 1, families]` uint8, the first row all ones."""
    rng, weights = np.random.default_rng(seed), np.ones((draws + 1, families), np.uint8)
    for start in range(1, draws + 1, CHUNK):
        part = weights[start : start + CHUNK]
        part[:] = resampling_weights(families, len(part), rng)[1:]
    return weights


@dataclass(frozen=True)
class Comparison:
    """A difference among several, corrected for their number.

    Attributes:
        difference: uncorrected.
        p_holm: adjusted by Holm over the peers at this budget.
        low, high: interval at Holm's level: it leaves 0 out exactly when `p_holm` is at most the
            level.
        detectable: smallest difference that such a comparison would detect, see `detectable`.
    """

    difference: Difference
    p_holm: float
    low: float
    high: float
    detectable: float


def compare(
    bootstrap: Bootstrap,
    reference: str,
    budget: int,
    *,
    sign: int = 1,
    peers: Sequence[str] | None = None,
) -> list[Comparison]:
    """`reference` less each peer (all methods by default) at a budget, Holm-corrected over the
    peers; `sign=-1`: each peer less it.
    """
    others = [
        peer for peer in (bootstrap.hits.methods if peers is None else peers) if peer != reference
    ]
    pairs = [(reference, peer) if sign > 0 else (peer, reference) for peer in others]
    found = [d for pair in pairs if (d := bootstrap.difference(*pair, budget)) is not None]
    p = [d.p for d in found]
    return [
        Comparison(
            d,
            adjusted,
            *interval(d.draws[1:], level),
            detectable(d.error, bootstrap.level / len(found)),
        )
        for d, adjusted, level in zip(found, holm(p), holm_levels(p, bootstrap.level), strict=True)
    ]


@dataclass(frozen=True)
class Multiplier:
    """Pairs that the baseline needs for a method's recall, over the method's.

    Attributes:
        least, most: the ends of what could be measured: the baseline's least and most pairs over
            the method's.
        value, low, high: estimate and interval; `-inf`: less than `least`, `inf`: more than `most`.
    """

    method: str
    baseline: str
    budget: int
    least: float
    most: float
    value: float
    low: float
    high: float

    def text(self, value: float) -> str:
        """`1.8`, `> 4`, `< 0.5`."""
        if np.isinf(value):
            return f"> {self.most:.3g}" if value > 0 else f"< {self.least:.3g}"
        return f"{value:.2f}"

    def __str__(self) -> str:
        return f"{self.text(self.value)} [{self.text(self.low)}, {self.text(self.high)}]"


def multipliers(bootstrap: Bootstrap, baseline: str) -> list[Multiplier]:
    """Label multiplier of every other method at each of its budgets, against all budgets of a
    baseline.

    Paired as differences are: over the seeds that the method has at its budget and the baseline at
        all of its own.
    """
    hits = bootstrap.hits
    budgets = [n for n in hits.budgets if bootstrap.seeds_of(baseline, n)]
    if not budgets:
        return []
    throughout = set.intersection(*(bootstrap.seeds_of(baseline, n) for n in budgets))
    curves: dict[frozenset[int], np.ndarray] = {}
    out = []
    for method in hits.methods:
        for budget in hits.budgets:
            common = frozenset(throughout & bootstrap.seeds_of(method, budget))
            if method == baseline or not common:
                continue
            if common not in curves:
                curves[common] = rising_curve(
                    np.stack([bootstrap.draws_of(baseline, n, common) for n in budgets], axis=1)
                )
            needed = (
                pairs_needed(budgets, curves[common], bootstrap.draws_of(method, budget, common))
                / budget
            )
            low, high = interval(needed[1:], bootstrap.level)
            out.append(
                Multiplier(
                    method,
                    baseline,
                    budget,
                    budgets[0] / budget,
                    budgets[-1] / budget,
                    float(needed[0]),
                    low,
                    high,
                )
            )
    return out
