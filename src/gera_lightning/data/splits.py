"""Which items are train or test, which of them are pairs, and which rows are the unpaired pools.

Everything here reads tables of rows, never vectors:

1. `split_items`: families of near-duplicates go whole to train or to test. A hash of the family's
   name decides, so the split is the same in every run.
2. `sample_pairs`: the pairs and the two pools of one seed and budget. Budgets are nested (the first
   100 items are among the first 300). Pools come from the items outside `reserved_pairs`, so they
   are the same at every budget.
3. `folds`: the pairs of a budget in parts, for tuning inside it; families stay whole.

What a split, a budget and a fold count is a unit: an item, whose rows all go one way, or, where an
item is a class, each of its rows of a (`split_units`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from gera_lightning.config.schema import DataConfig
from gera_lightning.utils.errors import UserError

ITEMS, ROWS_A, ROWS_B, POOL_A, POOL_B, FOLDS = range(6)
"""Random streams of a seed, one per purpose: more draws from one leave the others as they were."""


def unit_hash(word: str) -> float:
    """A number in [0, 1) that depends on the word alone.

    >>> round(unit_hash("abc"), 4)
    0.7284
    """
    return int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "big") / 2**64


# ---- units and families ----


def split_units(rows_a: pd.DataFrame, rows_b: pd.DataFrame) -> np.ndarray:
    """What each row of a is split, counted and held out with: its item, or itself where the item is
    a class.

    An item whose rows in b are `both`, seen in training and searched in test, is a class: they are
    its names, and any of its rows of a may be labelled or asked for. Rows of a that are `both` are
    names themselves. The unit of every row of b is its item.

    >>> a = pd.DataFrame({"row": ["7-ann", "7-ben", "x-1"], "item": ["seven", "seven", "x"]})
    >>> b = pd.DataFrame({"item": ["seven", "x"], "split": ["both", "train"]})
    >>> split_units(a, b).tolist()
    ['seven, row 7-ann', 'seven, row 7-ben', 'x']
    """
    of_class = _of_class(rows_a, rows_b)
    if not of_class.any():
        return rows_a["item"].to_numpy(dtype=str)
    units: np.ndarray = rows_a["item"].to_numpy(dtype=object, copy=True)
    alone = rows_a[of_class]
    units[of_class] = alone["item"] + ", row " + alone["row"]
    return units.astype(str)


def _of_class(rows_a: pd.DataFrame, rows_b: pd.DataFrame) -> np.ndarray:
    """Rows of a whose item is a class and which are none of its names, `[N_a]`."""
    if "split" not in rows_b:
        return np.zeros(len(rows_a), dtype=bool)
    of_class = rows_a["item"].isin(rows_b["item"][rows_b["split"] == "both"])
    if "split" in rows_a:
        of_class &= rows_a["split"] != "both"
    return of_class.to_numpy()


def item_families(rows_a: pd.DataFrame, rows_b: pd.DataFrame) -> pd.Series:
    """The family of every item; items that share a `family` in either store are joined.

    Args:
        rows_a, rows_b: the stores' tables.

    Returns:
        Name of the family, indexed by item, items sorted. An item without a family is its own.

    >>> a = pd.DataFrame({"item": ["x", "y", "z"], "family": ["f", "f", None]})
    >>> b = pd.DataFrame({"item": ["x", "w"]})
    >>> item_families(a, b).to_dict()
    {'w': 'w', 'x': 'f', 'y': 'f', 'z': 'z'}
    """
    items = np.unique(np.concatenate([_distinct(rows["item"]) for rows in (rows_a, rows_b)]))
    members = pd.concat(
        [rows[["item", "family"]].dropna() for rows in (rows_a, rows_b) if "family" in rows]
        or [pd.DataFrame({"item": [], "family": []}, dtype=str)]
    ).drop_duplicates()
    if members.empty:
        return pd.Series(items, index=items)
    names, name_of_member = np.unique(members["family"].to_numpy(dtype=str), return_inverse=True)
    item_of_member = np.searchsorted(items, members["item"].to_numpy(dtype=str))

    # A graph whose nodes are the items, then the family names; each member row is an edge. Its
    # connected components are the families.
    nodes = len(items) + len(names)
    edges = (item_of_member, len(items) + name_of_member)
    graph = coo_array((np.ones(len(members)), edges), shape=(nodes, nodes))
    _, component = connected_components(graph, directed=False)

    # A component takes the first of its family names: that name does not change when a store gets
    # more items.
    name_of_component: dict[int, str] = {}
    for name, number in zip(names, component[len(items) :], strict=True):
        name_of_component.setdefault(number, name)
    return pd.Series(
        [
            name_of_component.get(number, item)
            for item, number in zip(items, component[: len(items)], strict=True)
        ],
        index=items,
    )


def _distinct(column: pd.Series) -> np.ndarray:
    return column.drop_duplicates().to_numpy(dtype=str)


# ---- train and test ----


@dataclass(frozen=True)
class ItemSplit:
    """Row numbers of both stores on each side of the split, and the families of the items.

    Attributes:
        train_a, train_b: rows that training may see.
        test_a, test_b: rows of the evaluated items.
        families: family of every unit (see `split_units`), indexed by unit, sorted.
    """

    train_a: np.ndarray
    train_b: np.ndarray
    test_a: np.ndarray
    test_b: np.ndarray
    families: pd.Series


def split_items(
    rows_a: pd.DataFrame,
    rows_b: pd.DataFrame,
    *,
    test_share: float = 0.15,
    dev: bool = False,
    fold: tuple[int, int] | None = None,
) -> ItemSplit:
    """Split the items of two stores into train and test, the rows of a class one by one.

    Where a store's `split` column names a unit's side (`split_units`), that side holds for the
    unit's whole family. All other families are split by a hash of their name.

    Args:
        rows_a, rows_b: the stores' tables.
        test_share: share of the families that the hash sends to test.
        dev: for design work: drop the test items, and split the train items by another hash.
        fold: number and count: all train and test items in so many parts of as many families, of
            which this one is the test.

    Raises:
        UserError: the two stores disagree, or the given split cuts an item that is no class, or a
            family.

    >>> rows = pd.DataFrame({"item": ["x", "y", "z"], "split": ["train", "test", "both"]})
    >>> split = split_items(rows, rows)
    >>> split.train_a.tolist(), split.test_a.tolist()
    ([0, 2], [1, 2])
    """
    rows_a = rows_a.assign(item=split_units(rows_a, rows_b))
    families = item_families(rows_a, rows_b)
    side_of = _sides(families, _given_sides(rows_a, rows_b), test_share)
    if dev:
        side_of = _dev_sides(families, side_of, test_share)
    if fold is not None:
        side_of = _fold_sides(families, side_of, *fold)
    train_a, test_a = _train_and_test(rows_a, side_of)
    train_b, test_b = _train_and_test(rows_b, side_of)
    return ItemSplit(train_a, train_b, test_a, test_b, families)


def split_for(rows_a: pd.DataFrame, rows_b: pd.DataFrame, data: DataConfig, seed: int) -> ItemSplit:
    """`split_items` as the settings say, for runs of this seed."""
    return split_items(
        rows_a,
        rows_b,
        test_share=data.test_share,
        dev=data.split == "dev",
        fold=(seed % data.folds, data.folds) if data.split == "folds" else None,
    )


def _given_sides(rows_a: pd.DataFrame, rows_b: pd.DataFrame) -> pd.Series:
    """The `split` of each item that has one in either store, indexed by item."""
    given_a, given_b = _given_sides_of(rows_a), _given_sides_of(rows_b)
    common = given_a.index.intersection(given_b.index)
    differ = common[given_a[common].to_numpy() != given_b[common].to_numpy()]
    if len(differ):
        item = differ[0]
        raise UserError(
            f"is {given_a[item]!r} in store a and {given_b[item]!r} in store b",
            key="item",
            value=item,
            remedy="make the split columns agree; class names, which are `both`, belong in store b",
        )
    return given_a.combine_first(given_b)


def _given_sides_of(rows: pd.DataFrame) -> pd.Series:
    if "split" not in rows:
        return pd.Series(dtype=object)
    per_item = rows[["item", "split"]].dropna().drop_duplicates()
    repeated = per_item["item"].duplicated()
    if repeated.any():
        raise UserError(
            "has rows of different splits",
            key="item",
            value=per_item["item"][repeated].iloc[0],
            remedy="give all rows of an item one split; where it is a class, let its rows in store"
            " b be `both`",
        )
    return per_item.set_index("item")["split"]


def _sides(families: pd.Series, given: pd.Series, test_share: float) -> pd.Series:
    """Side of every item: train, test, both or unused."""
    side = given.reindex(families.index).astype(object)
    side_of_family = _sides_of_families(families, side)
    undecided = families[side.isna()]
    for family in undecided.unique():
        if family not in side_of_family:
            in_test = unit_hash(f"test:{family}") < test_share
            side_of_family[family] = "test" if in_test else "train"
    side[side.isna()] = undecided.map(side_of_family).to_numpy(dtype=object)
    return side


def _sides_of_families(families: pd.Series, side: pd.Series) -> dict[str, str]:
    """Side of each family with an item that is given to train or to test.

    Raises:
        UserError: a family with items of both.
    """
    decided = side[side.isin(["train", "test"])]
    family = families[decided.index]
    per_family = decided.groupby(family.to_numpy()).nunique()
    if (per_family > 1).any():
        raise UserError(
            "has items of train and of test in the `split` column",
            key="family",
            value=per_family.idxmax(),
            remedy="keep near-duplicates on one side",
        )
    return dict(zip(family, decided, strict=True))


def _dev_sides(families: pd.Series, side: pd.Series, test_share: float) -> pd.Series:
    """The train items split again; test items become unused, `both` stays."""
    in_test = np.array([unit_hash(f"dev:{family}") < test_share for family in families])
    again = np.where(in_test, "test", "train")
    return side.where(side == "both", np.where(side == "train", again, "unused"))


def _fold_sides(families: pd.Series, side: pd.Series, number: int, count: int) -> pd.Series:
    """The items of train and test in parts of as many families, one of them the test."""
    split = side.isin(["train", "test"])
    by_hash = sorted(families[split].unique(), key=lambda family: unit_hash(f"fold:{family}"))
    in_test = families.isin(by_hash[number::count])
    return side.where(~split, np.where(in_test, "test", "train"))


def _train_and_test(rows: pd.DataFrame, side_of: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers of a store on each side; rows of `both` are on both."""
    side = side_of[rows["item"]].to_numpy()
    train, test = (np.flatnonzero(np.isin(side, [name, "both"])) for name in ("train", "test"))
    return train, test


def check_sides(split: ItemSplit, test_share: float) -> None:
    """Refuse a split that nothing can be trained or measured on.

    Raises:
        UserError: a store has no train rows, or no test rows.
    """
    for part in ("train_a", "train_b", "test_a", "test_b"):
        if len(getattr(split, part)):
            continue
        side, store = part.split("_")
        items, families = len(split.families), split.families.nunique()
        column = f", and the `family` column ({families} families, never cut)"
        raise UserError(
            f"the split leaves no {side} rows in store {store} of {items} items",
            remedy=f"check the `split` column, data.test_share={test_share}"
            f"{column if families < items else ''}",
        )


def train_on_all(rows_a: pd.DataFrame, rows_b: pd.DataFrame) -> ItemSplit:
    """All rows for training and none for test: the split of an aligner that is put to use.

    Items that a store calls `unused` are left out, of a class such rows of a.
    """
    rows_a = rows_a.assign(item=split_units(rows_a, rows_b))
    unused = {
        item
        for rows in (rows_a, rows_b)
        if "split" in rows
        for item in rows["item"][rows["split"] == "unused"]
    }
    train_a, train_b = (np.flatnonzero(~rows["item"].isin(unused)) for rows in (rows_a, rows_b))
    no_rows = np.empty(0, dtype=np.int64)
    return ItemSplit(train_a, train_b, no_rows, no_rows, item_families(rows_a, rows_b))


def evaluate_on_all(rows_a: pd.DataFrame, rows_b: pd.DataFrame) -> ItemSplit:
    """All rows for test and none for training: the split of stores that an aligner never saw."""
    split = train_on_all(rows_a, rows_b)
    return replace(
        split,
        train_a=split.test_a,
        train_b=split.test_b,
        test_a=split.train_a,
        test_b=split.train_b,
    )


def matched_items(
    rows_a: pd.DataFrame, rows_b: pd.DataFrame, split: ItemSplit, *, test: bool = False
) -> np.ndarray:
    """Train items (or test items) with a row in both stores, sorted."""
    numbers_a, numbers_b = (split.test_a, split.test_b) if test else (split.train_a, split.train_b)
    return np.intersect1d(
        rows_a["item"].to_numpy(dtype=str)[numbers_a], rows_b["item"].to_numpy(dtype=str)[numbers_b]
    )


# ---- pairs and pools ----


def count_pairs(rows_a: pd.DataFrame, rows_b: pd.DataFrame, split: ItemSplit) -> int:
    """How many pairs the train rows make: one for each matched item, of a class one for each of its
    rows of a.
    """
    train = rows_a["item"].to_numpy(dtype=str)[split.train_a]
    matched = np.isin(train, matched_items(rows_a, rows_b, split))
    return len(np.unique(split_units(rows_a, rows_b)[split.train_a][matched]))


def pairs_in_words(count: int, matched: int) -> str:
    """What these pairs are, for a message.

    >>> pairs_in_words(40, 40)
    'the 40 train items with a row in both stores'
    >>> pairs_in_words(200, 10)
    'the 200 train rows of 10 classes'
    """
    if count == matched:
        return f"the {count} train items with a row in both stores"
    return f"the {count} train rows of {matched} classes"


@dataclass(frozen=True)
class Sample:
    """What one seed and budget train on: row numbers of the stores.

    Attributes:
        pairs_a, pairs_b: paired rows, `[n]` each; row i of one is paired with row i of the other.
        items: item of each pair.
        pool_a, pool_b: unpaired rows of each modality.
    """

    pairs_a: np.ndarray
    pairs_b: np.ndarray
    items: np.ndarray
    pool_a: np.ndarray
    pool_b: np.ndarray


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
    """The pairs and pools of one seed and budget.

    Matched items (train items with a row in both stores) are put in an order that the seed fixes.
    The first `budget` are the pairs. All items without a partner are in the pools, and the matched
    ones behind the first `reserved_pairs` fill them up: each is in one pool, so that both hold as
    many items, or nearly.

    Of a class every row of a may be a pair with its name: first one of each class, then a second
    one, and so on. What is behind the first `reserved_pairs` of all these is in the pool of a,
    without its label. Names are in the pool of b as well, paired or not: they are known, and that
    tells of no row of a which class it is.

    Args:
        rows_a, rows_b: the stores' tables.
        split: which rows training may see.
        budget: number of paired items, one row per modality each; of labelled rows of classes.
        reserved_pairs: matched items, or rows, that are kept for pairs (the largest budget).
        seed: fixes the order of the items, of the rows of each, and of the pools.
        shared_pools: give both pools all items outside `reserved_pairs`, so that they hold
            hidden pairs.
        pool_size: most rows per pool; all by default.
        extra_views: use all rows of a paired item, not one; a row of a class stays one.

    Raises:
        UserError: a budget beyond `reserved_pairs`, or more reserved than there are.

    >>> rows = pd.DataFrame({"item": ["u", "v", "w", "x", "y", "z"], "split": "train"})
    >>> sample = sample_pairs(rows, rows, split_items(rows, rows),
    ...                       budget=2, reserved_pairs=2, seed=0)
    >>> sample.items.tolist(), sample.pairs_a.tolist(), len(sample.pool_a), len(sample.pool_b)
    (['x', 'w'], [3, 2], 2, 2)
    """
    item_names = split.families.index
    store_a = _RowsByItem.of(rows_a, split.train_a, item_names, _stream(seed, ROWS_A))
    store_b = _RowsByItem.of(rows_b, split.train_b, item_names, _stream(seed, ROWS_B))
    matched = np.intersect1d(store_a.items, store_b.items)
    is_class = _classes(rows_a, rows_b, item_names)

    # in order: each item's first row, in the drawn order of items, then each class's second, ...
    place = np.argsort(_stream(seed, ITEMS).permutation(len(matched)))
    rows_each = np.where(is_class, store_a.counts, 1)[matched]
    item, view = np.repeat(matched, rows_each), _count_up(rows_each)
    order = np.lexsort([np.repeat(place, rows_each), view])
    item, view = item[order], view[order]
    _check_budget(budget, reserved_pairs, len(item), len(matched))

    # pairs: each once, or as often as the modality with more rows of the item has rows
    views = np.ones(budget, dtype=np.int64)
    if extra_views:
        most = np.where(is_class, 1, np.maximum(store_a.counts, store_b.counts))
        views = most[item[:budget]]
    item_of_pair = np.repeat(item[:budget], views)
    view_of_pair = np.repeat(view[:budget], views) + _count_up(views)

    # pools: what is not reserved, no item in both of them; rows of classes
    item, view = item[reserved_pairs:], view[reserved_pairs:]
    unlabelled, outside = is_class[item], item[~is_class[item]]
    unmatched_a, unmatched_b = (np.setdiff1d(store.items, matched) for store in (store_a, store_b))
    level = (len(outside) + len(unmatched_b) - len(unmatched_a)) // 2
    cut = min(max(level, 0), len(outside))
    outside_a, outside_b = (outside, outside) if shared_pools else (outside[:cut], outside[cut:])
    pool_a = store_a.all_rows(np.concatenate([outside_a, unmatched_a]))
    pool_a = np.concatenate([pool_a, store_a.rows_of(item[unlabelled], view[unlabelled])])
    names = matched[is_class[matched]]
    pool_b = store_b.all_rows(np.concatenate([outside_b, unmatched_b, names]))

    return Sample(
        pairs_a=store_a.rows_of(item_of_pair, view_of_pair),
        pairs_b=store_b.rows_of(item_of_pair, view_of_pair),
        items=item_names[item_of_pair].to_numpy(dtype=str),
        pool_a=_stream(seed, POOL_A).permutation(pool_a)[:pool_size],
        pool_b=_stream(seed, POOL_B).permutation(pool_b)[:pool_size],
    )


def _stream(seed: int, purpose: int) -> np.random.Generator:
    return np.random.default_rng([seed, purpose])


def _classes(rows_a: pd.DataFrame, rows_b: pd.DataFrame, item_names: pd.Index) -> np.ndarray:
    """Which items are classes, see `split_units`."""
    return item_names.isin(rows_a["item"][_of_class(rows_a, rows_b)])


def _check_budget(budget: int, reserved_pairs: int, pairs: int, matched: int) -> None:
    available = pairs_in_words(pairs, matched)
    if budget > pairs:
        raise UserError(
            f"asks for more pairs than {available}",
            key="budgets",
            value=budget,
            remedy="lower the budget",
        )
    if reserved_pairs > pairs:
        raise UserError(
            f"(the largest budget by default) is more than {available}",
            key="data.reserved_pairs",
            value=reserved_pairs,
            remedy=f"lower it, such as data.reserved_pairs={budget}",
        )
    if not 1 < budget <= reserved_pairs:
        raise UserError(
            f"must lie between 2 and data.reserved_pairs={reserved_pairs}",
            key="budgets",
            value=budget,
            remedy="change one of them",
        )


@dataclass(frozen=True)
class _RowsByItem:
    """The train rows of one store, grouped by item.

    An item is a number: its position in the sorted list of all items of both stores. Its rows are
    `rows[start : start + count]`, in an order drawn at random.

    Attributes:
        rows: row numbers of the store, item after item.
        starts, counts: of each item, where its rows begin and how many there are (0 for an item
            without a train row here).
    """

    rows: np.ndarray
    starts: np.ndarray
    counts: np.ndarray

    @classmethod
    def of(
        cls,
        table: pd.DataFrame,
        train: np.ndarray,
        item_names: pd.Index,
        stream: np.random.Generator,
    ) -> _RowsByItem:
        shuffled = stream.permutation(train)
        item_of_row = item_names.get_indexer(pd.Index(table["item"]))[shuffled]
        by_item = np.argsort(item_of_row, kind="stable")  # rows of an item stay in the drawn order
        counts = np.bincount(item_of_row, minlength=len(item_names))
        return cls(shuffled[by_item], np.cumsum(counts) - counts, counts)

    @property
    def items(self) -> np.ndarray:
        """Items with a row, ascending."""
        return np.flatnonzero(self.counts)

    def rows_of(self, items: np.ndarray, view: np.ndarray) -> np.ndarray:
        """One row per item, its `view`-th; an item with fewer rows starts again at its first."""
        return self.rows[self.starts[items] + view % self.counts[items]]

    def all_rows(self, items: np.ndarray) -> np.ndarray:
        """All rows of these items, item after item."""
        counts = self.counts[items]
        return self.rows_of(np.repeat(items, counts), _count_up(counts))


def _count_up(counts: np.ndarray) -> np.ndarray:
    """`0 .. c - 1` for each c of `counts`, one after the other: [2, 3] gives [0, 1, 0, 1, 2]."""
    return np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts)


# ---- folds ----


def folds(
    items: Sequence[str] | np.ndarray, families: pd.Series, count: int, seed: int
) -> list[np.ndarray]:
    """Positions of `items` in `count` folds of nearly equal size; families stay whole.

    Args:
        items: item of each pair.
        families: family of every item, indexed by item.
        count: number of folds.
        seed: fixes which families share a fold.

    Raises:
        UserError: fewer families than folds.

    >>> [fold.tolist() for fold in folds(["x", "y", "z"], pd.Series({"x": "f", "y": "g", "z": "f"}),
    ...                                  count=2, seed=0)]
    [[0, 2], [1]]
    """
    family = families[np.asarray(items)].to_numpy()
    names = np.unique(family)
    if len(names) < count:
        raise UserError(
            f"is more than the {len(names)} families of items among the pairs",
            key="tuning.folds",
            value=count,
            remedy="use fewer folds or more pairs",
        )
    # the largest family first, each to the fold that is smallest so far; ties keep the drawn order
    family_size = pd.Series(family).value_counts()
    drawn = _stream(seed, FOLDS).permutation(names)
    fold_size = np.zeros(count, dtype=int)
    fold_of = {}
    for name in sorted(drawn, key=lambda name: -family_size[name]):
        fold_of[name] = int(fold_size.argmin())
        fold_size[fold_of[name]] += family_size[name]
    fold = np.array([fold_of[name] for name in family])
    return [np.flatnonzero(fold == number) for number in range(count)]
