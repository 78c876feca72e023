"""Which items are for training, which for test, which are paired, and which rows are the unpaired
pools.

Everything here is about tables of rows, never about vectors:

1. `split_items`: families of near-duplicates go whole to train or to test, fixed by a hash, the
  same in every run.
2. `draw`: for one seed, the nested budgets (the first 100 items are in the first 300), one row a
   modality an item, and the two pools of unpaired rows, drawn from the items outside the reserve of
       pairs: the same pools at every budget.
3. `folds`: a budget's items in parts for tuning inside it, families kept whole.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from gera_lightning.utils.errors import UserError


def unit_hash(word: str) -> float:
    """A number in [0, 1) fixed by the word alone."""
    return int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "big") / 2**64


def item_families(rows_a: pd.DataFrame, rows_b: pd.DataFrame) -> pd.Series:
    """A family name for every item of two stores: items that share a `family` in either store are
    joined.

    Returns:
        families, indexed by item, in sorted order of items.
    """
    tables = [
        table[["item", *(["family"] if "family" in table else [])]].drop_duplicates()
        for table in (rows_a, rows_b)
    ]
    items = np.unique(np.concatenate([table["item"].to_numpy(dtype=str) for table in tables]))
    edges_item, edges_name = [], []
    for table in tables:
        if "family" in table:
            named = table[table["family"].notna()]
            edges_item.append(named["item"].to_numpy(dtype=str))
            edges_name.append(named["family"].to_numpy(dtype=str))
    if not edges_item:
        return pd.Series(items, index=items)
    names, name_number = np.unique(np.concatenate(edges_name), return_inverse=True)
    item_number = np.searchsorted(items, np.concatenate(edges_item))
    size = len(items) + len(names)
    joined = coo_array(
        (np.ones(len(item_number)), (item_number, len(items) + name_number)), shape=(size, size)
    )
    _, component = connected_components(joined, directed=False)
    # a component is named by its first family, which does not depend on what else the stores hold;
    # without one, by the item
    family_of = {}
    for name, number in zip(names[::-1], component[len(items) :][::-1], strict=True):
        family_of[number] = name
    return pd.Series(
        [family_of.get(c, item) for item, c in zip(items, component[: len(items)], strict=True)],
        index=items,
    )


@dataclass(frozen=True)
class ItemSplit:
    """Row numbers of both stores on each side of the split, and the families of the items.

    Attributes:
        train_a, train_b: rows that training may see.
        test_a, test_b: rows of the evaluated items.
        families: family of every item.
    """

    train_a: np.ndarray
    train_b: np.ndarray
    test_a: np.ndarray
    test_b: np.ndarray
    families: pd.Series


def _given_split(rows: pd.DataFrame) -> pd.Series:
    """Split of each item as a store's table gives it; items without one are absent."""
    if "split" not in rows:
        return pd.Series(dtype=object)
    per_item = rows[["item", "split"]].dropna().drop_duplicates()
    twice = per_item["item"].duplicated()
    if twice.any():
        raise UserError(
            f"item {per_item['item'][twice].iloc[0]!r} has rows of different splits: an item"
            " belongs to one side"
        )
    return per_item.set_index("item")["split"]


def split_items(
    rows_a: pd.DataFrame, rows_b: pd.DataFrame, *, test_share: float = 0.15, dev: bool = False
) -> ItemSplit:
    """Split the items of two stores: a given `split` decides, also for the rest of the item's
    family; elsewhere a hash of the family.

    Args:
        rows_a, rows_b: the stores' tables.
        test_share: share of families that the hash sends to test.
        dev: for design work: the test items are dropped, and the train items split again by another
            hash.

    Raises:
        UserError: the two stores disagree, or a given split cuts a family.
    """
    families = item_families(rows_a, rows_b)
    given_a, given_b = _given_split(rows_a), _given_split(rows_b)
    given = given_a.combine_first(given_b)
    common = given_a.index.intersection(given_b.index)
    differ = common[given_a[common].to_numpy() != given_b[common].to_numpy()]
    if len(differ):
        raise UserError(
            f"item {differ[0]!r} is {given_a[differ[0]]!r} in store a and {given_b[differ[0]]!r} in"
            " store b: make the split columns agree"
        )
    side = pd.Series(index=families.index, dtype=object)
    side.update(given)
    decided = side[side.isin(["train", "test"])]
    cut = (
        pd.DataFrame({"family": families[decided.index], "side": decided})
        .groupby("family")["side"]
        .nunique()
    )
    if (cut > 1).any():
        raise UserError(
            f"family {cut.idxmax()!r} has items of train and of test in the `split` column:"
            " near-duplicates must stay on one side"
        )
    side_of = dict(zip(families[decided.index], decided, strict=True))
    open_items = side.isna()
    hashed = {
        f: "test" if unit_hash(f"test:{f}") < test_share else "train"
        for f in families[open_items].unique()
    }
    side[open_items] = [side_of.get(f, hashed[f]) for f in families[open_items]]
    if dev:
        was_train = side.isin(["train", "both"])
        is_dev = np.array([unit_hash(f"dev:{f}") < test_share for f in families])
        side = side.where(
            side == "both", np.where(was_train, np.where(is_dev, "test", "train"), "unused")
        )
    side_a, side_b = side[rows_a["item"]].to_numpy(), side[rows_b["item"]].to_numpy()
    parts = [
        np.flatnonzero(np.isin(s, [want, "both"]))
        for want in ("train", "test")
        for s in (side_a, side_b)
    ]
    return ItemSplit(parts[0], parts[1], parts[2], parts[3], families)


def check_sides(split: ItemSplit, test_share: float) -> None:
    """Refuse a split that nothing can be measured on.

    Raises:
        UserError: nothing is left on a side.
    """
    parts = {
        f"{part} rows in store {side}": getattr(split, f"{part}_{side}")
        for part in ("train", "test")
        for side in "ab"
    }
    for name, rows in parts.items():
        if len(rows) == 0:
            items, groups = len(split.families), split.families.nunique()
            joined = (
                f", and the `family` column ({groups} families, never cut)"
                if groups < items
                else ""
            )
            raise UserError(
                f"the split leaves no {name} of {items} items: check the `split` column,"
                f" data.test_share={test_share}{joined}"
            )


def everything(rows_a: pd.DataFrame, rows_b: pd.DataFrame) -> ItemSplit:
    """All rows for training and none for test, but for items that a store calls `unused`: for an
    aligner that is put to use.
    """
    unused = {
        item
        for rows in (rows_a, rows_b)
        if "split" in rows
        for item in rows["item"][rows["split"] == "unused"]
    }
    train_a, train_b = (np.flatnonzero(~rows["item"].isin(unused)) for rows in (rows_a, rows_b))
    nothing = np.empty(0, dtype=np.int64)
    return ItemSplit(train_a, train_b, nothing, nothing, item_families(rows_a, rows_b))


@dataclass(frozen=True)
class Sample:
    """What one seed and budget train on: row numbers of the stores.

    Attributes:
        pairs_a, pairs_b: paired rows, `[n]` each, row i of one with row i of the other.
        items: item of each pair.
        pool_a, pool_b: unpaired rows of each modality.
    """

    pairs_a: np.ndarray
    pairs_b: np.ndarray
    items: np.ndarray
    pool_a: np.ndarray
    pool_b: np.ndarray


def matched_items(
    rows_a: pd.DataFrame, rows_b: pd.DataFrame, split: ItemSplit, *, test: bool = False
) -> np.ndarray:
    """Train items (or test items) with a row in both stores, sorted."""
    sides = (split.test_a, split.test_b) if test else (split.train_a, split.train_b)
    return np.intersect1d(
        *(
            rows["item"].to_numpy(dtype=str)[side]
            for rows, side in zip((rows_a, rows_b), sides, strict=True)
        )
    )


def sample_pairs(
    rows_a: pd.DataFrame,
    rows_b: pd.DataFrame,
    split: ItemSplit,
    *,
    budget: int,
    reserved_pairs: int,
    seed: int,
    shared_pools: bool = False,
    pool_size: int | None = None,
    extra_views: bool = False,
) -> Sample:
    """Pairs and pools of one seed and budget.

    Args:
        rows_a, rows_b: the stores' tables.
        split: which rows training may see.
        budget: n items, exactly one row a modality each.
        reserve: items set aside for pairs (the largest budget); pools come from the items outside.
        seed: fixes the order of items, their rows and the pools.
        shared_pools: both pools from all items outside the reserve (holds hidden pairs).
        pool_size: rows a pool at most; all by default.
        extra_views: use all rows of a paired item, not one.

    Raises:
        UserError: a budget beyond the reserve, or a reserve beyond the items.
    """
    names = split.families.index  # sorted, so that numbers of items sort as their names do
    by_item_a = _RowsByItem.of(rows_a, split.train_a, names, seed, 1)
    by_item_b = _RowsByItem.of(rows_b, split.train_b, names, seed, 2)
    items = np.intersect1d(by_item_a.items, by_item_b.items, assume_unique=True)
    _check_reserve(budget, reserved_pairs, len(items))
    order = np.random.default_rng([seed, 0]).permutation(items)
    paired, views = order[:budget], np.ones(budget, dtype=np.int64)
    if extra_views:
        views = np.maximum(by_item_a.count(paired), by_item_b.count(paired))
    paired, view = np.repeat(paired, views), _numbers_within(views)
    rest = order[reserved_pairs:]
    half = len(rest) // 2
    outside_a, outside_b = (rest, rest) if shared_pools else (rest[:half], rest[half:])
    return Sample(
        pairs_a=by_item_a.views(paired, view),
        pairs_b=by_item_b.views(paired, view),
        items=names[paired].to_numpy(dtype=str),
        pool_a=_pool(by_item_a, outside_a, items, pool_size, seed, 3),
        pool_b=_pool(by_item_b, outside_b, items, pool_size, seed, 4),
    )


def _check_reserve(budget: int, reserved_pairs: int, matched: int) -> None:
    beyond = f"more than the {matched} train items with a row in both stores"
    if budget > matched:
        raise UserError(f"budgets: {budget} pairs are {beyond}: lower the budget")
    if reserved_pairs > matched:
        raise UserError(
            f"data.reserved_pairs={reserved_pairs} items set aside for pairs (the file's largest"
            f" budget by default) are {beyond}: lower it, such as data.reserved_pairs={budget}"
        )
    if not 1 < budget <= reserved_pairs:
        raise UserError(
            f"budgets: {budget} must lie between 2 and data.reserved_pairs={reserved_pairs}, the"
            " items set aside for pairs: change one of them"
        )


@dataclass(frozen=True)
class _RowsByItem:
    """Row numbers of each train item, an item's in an order drawn from the seed.

    Attributes:
        items: numbers of the items, ascending.
        starts: where the rows of each begin in `rows`, and their end.
        rows: row numbers of the store, item by item.
    """

    items: np.ndarray
    starts: np.ndarray
    rows: np.ndarray

    @classmethod
    def of(
        cls, table: pd.DataFrame, train: np.ndarray, names: pd.Index, seed: int, salt: int
    ) -> _RowsByItem:
        """The train rows of a store by the numbers of their items among all items' sorted `names`."""
        shuffled = np.random.default_rng([seed, salt]).permutation(train)
        number = names.get_indexer(pd.Index(table["item"]))[shuffled]
        order = np.argsort(number, kind="stable")  # an item's rows stay in the drawn order
        number = number[order]
        starts = np.flatnonzero(np.diff(number, prepend=-1))
        return cls(number[starts], np.append(starts, len(order)), shuffled[order])

    def count(self, items: np.ndarray) -> np.ndarray:
        """How many rows each of these items has."""
        at = np.searchsorted(self.items, items)
        return self.starts[at + 1] - self.starts[at]

    def views(self, items: np.ndarray, view: np.ndarray) -> np.ndarray:
        """Row number `view` of each of these items, counted round where an item has fewer."""
        return self.rows[self.starts[np.searchsorted(self.items, items)] + view % self.count(items)]

    def all(self, items: np.ndarray) -> np.ndarray:
        """All rows of these items, item by item."""
        count = self.count(items)
        return self.views(np.repeat(items, count), _numbers_within(count))


def _numbers_within(count: np.ndarray) -> np.ndarray:
    """`0 .. c - 1` for each c of `count`, one after the other."""
    return np.arange(count.sum()) - np.repeat(count.cumsum() - count, count)


def _pool(
    by_item: _RowsByItem,
    outside: np.ndarray,
    matched: np.ndarray,
    size: int | None,
    seed: int,
    salt: int,
) -> np.ndarray:
    """Rows of the given items and of all that have no partner, shuffled, at most `size`."""
    alone = np.setdiff1d(by_item.items, matched, assume_unique=True)
    return np.random.default_rng([seed, salt]).permutation(
        by_item.all(np.concatenate([outside, alone]))
    )[:size]


def folds(
    items: Sequence[str] | np.ndarray, families: pd.Series, count: int, seed: int
) -> list[np.ndarray]:
    """Positions of `items` in `count` parts of nearly equal size, families whole, shuffled by the
    seed.

    Raises:
        UserError: fewer families than parts.
    """
    groups = families[np.asarray(items)].to_numpy()
    names = np.unique(groups)
    if len(names) < count:
        raise UserError(
            f"tuning.folds={count}: the pairs hold only {len(names)} families of items: use fewer"
            " folds or more pairs"
        )
    sizes = pd.Series(groups).value_counts()
    order = np.random.default_rng([seed, 5]).permutation(names)
    load = np.zeros(count, dtype=int)
    part_of = {}
    for name in sorted(order, key=lambda n: -sizes[n]):  # stable: ties keep the shuffled order
        part_of[name] = int(load.argmin())
        load[part_of[name]] += sizes[name]
    part = np.array([part_of[name] for name in groups])
    return [np.flatnonzero(part == number) for number in range(count)]
