from __future__ import annotations

import string
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gera_lightning.data.splits import (
    ItemSplit,
    Sample,
    check_sides,
    folds,
    item_families,
    matched_items,
    sample_pairs,
    split_items,
    unit_hash,
)
from gera_lightning.utils.errors import UserError


def table(items: list[str], name: str = "a", **columns: list[Any]) -> pd.DataFrame:
    return pd.DataFrame(
        {"row": [f"{item}-{name}-{n}" for n, item in enumerate(items)], "item": items, **columns}
    )


def items_of(rows: pd.DataFrame, numbers: np.ndarray) -> set[str]:
    return set(rows["item"].iloc[numbers])


def sides(rows_a: pd.DataFrame, rows_b: pd.DataFrame, **settings_: Any) -> dict[str, set[str]]:
    """Items of train and test, over both stores."""
    split = split_items(rows_a, rows_b, **settings_)
    return {
        "train": items_of(rows_a, split.train_a) | items_of(rows_b, split.train_b),
        "test": items_of(rows_a, split.test_a) | items_of(rows_b, split.test_b),
    }


names = st.text(string.ascii_lowercase, min_size=1, max_size=3)
tables = st.lists(
    st.tuples(names, st.none() | st.sampled_from("PQRSTUVW")), min_size=1, max_size=25
)
"""(item, family) of each row of a store; an item may have several rows of several families."""


def slow_families(*stores: list[tuple[str, str | None]]) -> dict[str, frozenset[str]]:
    """Which items hang together: join sets as long as any two share a family."""
    groups = [({item}, {family} - {None}) for store in stores for item, family in store]
    changed = True
    while changed:
        changed = False
        for i in range(len(groups)):
            for j in range(i + 1, len(groups)):
                if groups[i][0] & groups[j][0] or groups[i][1] & groups[j][1]:
                    groups[i] = (groups[i][0] | groups[j][0], groups[i][1] | groups[j][1])
                    del groups[j]
                    changed = True
                    break
            if changed:
                break
    return {item: frozenset(members) for members, _ in groups for item in members}


# ---- families ----


@settings(max_examples=60, deadline=None)
@given(tables, tables)
def test_families_are_what_hangs_together_over_both_stores(a, b):
    families = item_families(
        *(table([i for i, _ in rows], family=[f for _, f in rows]) for rows in (a, b))
    )
    slow = slow_families(a, b)
    assert families.index.tolist() == sorted(slow)
    fast = {
        item: frozenset(families.index[families == family]) for item, family in families.items()
    }
    assert fast == slow


def test_one_store_may_have_no_families():
    with_names, without = table(["x", "y", "z"], family=["F", "F", "G"]), table(["x", "w"])
    assert item_families(with_names, without).to_dict() == {"x": "F", "y": "F", "z": "G", "w": "w"}
    assert item_families(without, without).to_dict() == {"x": "x", "w": "w"}


# ---- train and test ----


@settings(max_examples=60, deadline=None)
@given(tables, tables, st.sampled_from([0.2, 0.5, 0.8]), st.booleans())
def test_the_split_never_cuts_a_family(a, b, share, dev):
    others = [(f"other-{n}", None) for n in range(120)]  # so that no side is empty
    rows_a, rows_b = (
        table([i for i, _ in rows], family=[f for _, f in rows])
        for rows in ([*a, *others], [*b, *others])
    )
    found = sides(rows_a, rows_b, test_share=share, dev=dev)
    assert not found["train"] & found["test"]
    for members in slow_families(a, b).values():
        assert not (members & found["train"] and members & found["test"])
    if not dev:
        assert found["train"] | found["test"] == {i for i, _ in [*a, *b, *others]}


def test_the_share_is_that_of_the_families():
    items = [f"i{n:04d}" for n in range(3000)]
    rows = table(items, family=[f"f{n // 3}" for n in range(3000)])
    found = sides(rows, rows, test_share=0.15)
    assert len(found["test"]) / 3 == pytest.approx(150, abs=4 * np.sqrt(1000 * 0.15 * 0.85))


def test_the_side_of_an_item_does_not_depend_on_the_others_nor_on_the_order():
    items = [f"i{n:03d}" for n in range(200)]
    before = sides(table(items), table(items))
    more = [f"j{n:03d}" for n in range(100)]
    after = sides(table([*more, *items[::-1]]), table(items))
    assert before["test"] == after["test"] & set(items)
    assert before["test"]


def test_unit_hash_is_uniform_and_fixed():
    values = np.array([unit_hash(f"w{n}") for n in range(4000)])
    assert ((values >= 0) & (values < 1)).all()
    # Kolmogorov-Smirnov, p = 0.001
    assert np.abs(np.sort(values) - np.linspace(0, 1, 4000)).max() < 1.95 / np.sqrt(4000)
    # the example of FIPS 180: the split stays the same for ever
    assert unit_hash("abc") == int("ba7816bf8f01cfea", 16) / 2**64


def test_a_given_split_decides():
    items = ["a", "b", "c", "d", "e"]
    rows_a = table(items, split=["train", "test", "both", "unused", "train"])
    for rows_b in (table(items), table(items, split=["train", "test", "both", "unused", "train"])):
        found = sides(rows_a, rows_b)
        assert found == {"train": {"a", "c", "e"}, "test": {"b", "c"}}


def test_open_items_join_the_given_side_of_their_family():
    """A planted leak: near-duplicates of given items that only the other store, which has no split
    column, knows.
    """
    pairs = [f"i{n:02d}" for n in range(40)]
    kin = [f"k{n:02d}" for n in range(40)]
    given_ = ["train" if n % 2 else "test" for n in range(40)]
    rows_a = table(pairs, family=[f"f{n}" for n in range(40)], split=given_)
    rows_b = table([*pairs, *kin], family=[f"f{n}" for n in range(40)] * 2)
    found = sides(rows_a, rows_b)
    for side in ("train", "test"):
        assert found[side] == {
            name
            for group in (pairs, kin)
            for name, where in zip(group, given_, strict=True)
            if where == side
        }


def test_dev_splits_the_train_items_and_never_shows_a_test_item():
    items = [f"i{n:03d}" for n in range(400)]
    rows = table(items, family=[f"f{n // 2}" for n in range(400)])
    final, dev = sides(rows, rows, test_share=0.3), sides(rows, rows, test_share=0.3, dev=True)
    assert dev["train"] | dev["test"] == final["train"]
    assert len(dev["test"]) / 2 == pytest.approx(
        0.3 * len(final["train"]) / 2, abs=4 * np.sqrt(140 * 0.3 * 0.7)
    )  # another hash: not empty
    given_ = table(
        ["a", "b", "c", "d", *items], split=["test", "unused", "both", "train", *["train"] * 400]
    )
    dev = sides(given_, given_, dev=True)
    assert not {"a", "b"} & (dev["train"] | dev["test"])
    assert "c" in dev["train"] & dev["test"]


def test_stores_that_disagree_are_refused():
    for stores_, item in (
        ([table(["x", "y"], split=["train", side]) for side in ("test", "train")], "y"),
        ([table(["x", "x"], split=["train", "test"]), table(["x"])], "x"),
    ):
        with pytest.raises(UserError) as caught:
            split_items(*stores_)
        assert (caught.value.key, caught.value.value) == ("item", item)


def test_a_given_split_that_cuts_a_family_is_refused():
    rows = table(["x", "y", "z"], split=["train", "test", "test"], family=["f", "f", "g"])
    with pytest.raises(UserError) as caught:
        split_items(rows, table(["x"]))
    assert (caught.value.key, caught.value.value) == ("family", "f")


@pytest.mark.parametrize(
    ("a", "b", "left"),
    [
        ({"x": "test"}, {"x": "test"}, "train rows in store a"),
        ({"x": "train"}, {"x": "train"}, "test rows in store a"),
        ({"x": "train", "y": "test"}, {"y": "test"}, "train rows in store b"),
        ({"x": "train", "y": "test"}, {"x": "train", "z": "unused"}, "test rows in store b"),
    ],
)
def test_a_side_without_rows_is_named(a, b, left):
    split = split_items(*(table(list(side), split=list(side.values())) for side in (a, b)))
    with pytest.raises(UserError, match=left) as caught:
        check_sides(split, 0.15)
    assert "data.test_share=0.15" in caught.value.remedy
    assert "family" not in caught.value.remedy


def test_a_family_of_all_items_is_named_where_it_leaves_a_side_empty():
    rows = table(list("xyz"), family=["f"] * 3)
    with pytest.raises(UserError, match=r"`family` column \(1 families"):
        check_sides(split_items(rows, rows), 0.15)


# ---- budgets and pools ----


@st.composite
def draws(data: st.DrawFn) -> dict[str, Any]:
    """Two stores with 1-3 rows per item, some items in one store only, some for test."""
    n = data(st.integers(4, 30))
    matched = [f"m{i:02d}" for i in range(n)]
    stores = []
    for name in "ab":
        alone = [f"{name}{i}" for i in range(data(st.integers(0, 5)))]
        items = [
            i
            for i in [*matched, *alone, "test-x", "test-y"]
            for _ in range(data(st.integers(1, 3)))
        ]
        items = data(st.permutations(items))
        stores.append(
            table(items, name, split=["test" if i.startswith("test") else "train" for i in items])
        )
    reserve = data(st.integers(2, n))
    return {
        "stores": stores,
        "matched": matched,
        "reserved_pairs": reserve,
        "budgets": sorted(
            data(st.lists(st.integers(2, reserve), min_size=1, max_size=3, unique=True))
        ),
        "seed": data(st.integers(0, 5)),
    }


def rows_of(rows: pd.DataFrame, items: set[str]) -> list[int]:
    return [n for n, item in enumerate(rows["item"]) if item in items]


@settings(max_examples=60, deadline=None)
@given(draws(), st.booleans())
def test_budgets_are_nested_pairs_and_pools_are_what_is_left(case, shared):
    rows_a, rows_b = case["stores"]
    split = split_items(rows_a, rows_b)
    settings_ = {
        "reserved_pairs": case["reserved_pairs"],
        "seed": case["seed"],
        "shared_pools": shared,
    }
    drawn = [sample_pairs(rows_a, rows_b, split, budget=n, **settings_) for n in case["budgets"]]
    largest = sample_pairs(rows_a, rows_b, split, budget=case["reserved_pairs"], **settings_)
    for n, one in zip(case["budgets"], drawn, strict=True):
        assert len(one.items) == len(set(one.items)) == n  # n items with one row a modality each
        for rows, numbers in ((rows_a, one.pairs_a), (rows_b, one.pairs_b)):
            assert rows["item"].iloc[numbers].tolist() == one.items.tolist()
        for key in ("items", "pairs_a", "pairs_b"):  # the smaller is the beginning of the larger
            assert getattr(largest, key)[:n].tolist() == getattr(one, key).tolist()
        for key in ("pool_a", "pool_b"):  # the same at every budget
            assert getattr(largest, key).tolist() == getattr(one, key).tolist()
    outside = set(case["matched"]) - set(largest.items)
    pools = {"a": items_of(rows_a, largest.pool_a), "b": items_of(rows_b, largest.pool_b)}
    if shared:
        assert pools["a"] & set(case["matched"]) == pools["b"] & set(case["matched"]) == outside
    else:
        assert not pools["a"] & pools["b"]
        assert (pools["a"] | pools["b"]) & set(case["matched"]) == outside
        small, large = sorted(pools.values(), key=len)
        assert len(large) - len(small) <= 1 or not large & outside  # level, as far as can be
    for side, rows, numbers in (("a", rows_a, largest.pool_a), ("b", rows_b, largest.pool_b)):
        alone = {i for i in rows["item"] if i.startswith(side)}
        assert alone <= pools[side]
        assert sorted(numbers) == rows_of(rows, pools[side])  # all rows of its items, each once


@settings(max_examples=30, deadline=None)
@given(draws())
def test_extra_views_use_every_row_of_a_paired_item(case):
    rows_a, rows_b = case["stores"]
    split = split_items(rows_a, rows_b)
    settings_ = {
        "budget": case["reserved_pairs"],
        "reserved_pairs": case["reserved_pairs"],
        "seed": case["seed"],
    }
    one, all_ = (
        sample_pairs(rows_a, rows_b, split, extra_views=extra, **settings_)
        for extra in (False, True)
    )
    assert set(all_.items) == set(one.items)
    for item in set(one.items):
        here = all_.items == item
        counts = [rows_of(rows, {item}) for rows in (rows_a, rows_b)]
        assert here.sum() == max(map(len, counts))
        assert sorted(set(all_.pairs_a[here])) == counts[0]
        assert sorted(set(all_.pairs_b[here])) == counts[1]
    assert all_.pool_a.tolist() == one.pool_a.tolist()


def stores(n: int = 60, views: int = 2) -> tuple[pd.DataFrame, pd.DataFrame, ItemSplit]:
    items = [f"i{i:03d}" for i in range(n)]
    sides_ = ["train"] * (n - 10) + ["test"] * 10
    rows_a, rows_b = (
        table(items * views, "a", split=sides_ * views),
        table(items, "b", split=sides_),
    )
    return rows_a, rows_b, split_items(rows_a, rows_b)


def same(one: Sample, other: Sample) -> bool:
    return all(
        np.array_equal(getattr(one, key), getattr(other, key))
        for key in ("pairs_a", "pairs_b", "items", "pool_a", "pool_b")
    )


def test_a_seed_fixes_the_draw():
    args = stores()
    first, again, other = (
        sample_pairs(*args, budget=10, reserved_pairs=20, seed=seed) for seed in (3, 3, 4)
    )
    assert same(first, again)
    assert set(first.items) != set(other.items)
    assert first.pool_a.tolist() != other.pool_a.tolist()


def test_another_order_of_test_rows_draws_the_same_rows():
    """Draws depend on what is for training alone."""
    rows_a, rows_b, split = stores()
    drawn = sample_pairs(rows_a, rows_b, split, budget=10, reserved_pairs=20, seed=0)
    without = [rows[rows["split"] == "train"].reset_index(drop=True) for rows in (rows_a, rows_b)]
    bare = ItemSplit(
        np.arange(len(without[0])),
        np.arange(len(without[1])),
        np.array([0]),
        np.array([0]),
        split.families,
    )
    again = sample_pairs(*without, bare, budget=10, reserved_pairs=20, seed=0)
    for rows, other, key in ((rows_a, without[0], "a"), (rows_b, without[1], "b")):
        for part in ("pairs", "pool"):
            one, two = getattr(drawn, f"{part}_{key}"), getattr(again, f"{part}_{key}")
            assert rows["row"].iloc[one].tolist() == other["row"].iloc[two].tolist()


def test_pool_size_keeps_the_beginning_of_the_pool():
    args = stores()
    whole = sample_pairs(*args, budget=10, reserved_pairs=20, seed=0)
    small = sample_pairs(*args, budget=10, reserved_pairs=20, seed=0, pool_size=7)
    assert small.pool_a.tolist() == whole.pool_a[:7].tolist()
    assert small.pool_b.tolist() == whole.pool_b[:7].tolist()
    assert small.items.tolist() == whole.items.tolist()


def test_pools_may_be_empty():
    drawn = sample_pairs(*stores(), budget=10, reserved_pairs=50, seed=0)
    assert len(drawn.pool_a) == len(drawn.pool_b) == 0
    assert drawn.pool_a.dtype == np.int64


@pytest.mark.parametrize(
    ("budget", "reserved_pairs", "key", "value"),
    [
        (10, 51, "data.reserved_pairs", 51),
        (51, 60, "budgets", 51),
        (21, 20, "budgets", 21),
        (1, 20, "budgets", 1),
        (0, 20, "budgets", 0),
    ],
)
def test_impossible_budgets_are_refused(budget, reserved_pairs, key, value):
    with pytest.raises(UserError) as caught:
        sample_pairs(*stores(), budget=budget, reserved_pairs=reserved_pairs, seed=0)
    assert (caught.value.key, caught.value.value) == (key, value)


def test_matched_items_are_the_train_items_of_both_stores():
    rows_a = table(["x", "y", "z", "t", "x"], split=["train", "train", "train", "test", "train"])
    rows_b = table(["z", "t", "x", "w"], split=["train", "test", "train", "train"])
    assert matched_items(rows_a, rows_b, split_items(rows_a, rows_b)).tolist() == ["x", "z"]


# ---- folds ----


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=2, max_size=60), st.integers(2, 5), st.integers(0, 3))
def test_folds_are_whole_families_in_parts_of_nearly_equal_size(family, count, seed):
    items = np.array([f"i{n:02d}" for n in range(len(family))])
    families = pd.Series([f"f{f}" for f in family], index=items)
    if families.nunique() < count:
        with pytest.raises(UserError) as caught:
            folds(items, families, count, seed)
        assert (caught.value.key, caught.value.value) == ("tuning.folds", count)
        return
    parts = folds(items, families, count, seed)
    assert len(parts) == count
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(items)))
    for name in families.unique():
        assert sum(name in set(families.iloc[part]) for part in parts) == 1
    sizes = [len(part) for part in parts]
    assert min(sizes) > 0
    assert max(sizes) - min(sizes) <= families.value_counts().max()


def test_all_views_of_an_item_are_in_one_fold():
    items = np.array([f"i{n % 10}" for n in range(30)])
    families = pd.Series([f"i{n}" for n in range(10)], index=[f"i{n}" for n in range(10)])
    for part in folds(items, families, 5, 0):
        assert len(part) == 6
        assert len(set(items[part])) == 2


def test_a_seed_fixes_the_folds():
    items = np.array([f"i{n:02d}" for n in range(40)])
    families = pd.Series(items, index=items)
    first, again, other = (
        [part.tolist() for part in folds(items, families, 4, seed)] for seed in (1, 1, 2)
    )
    assert first == again != other


def test_folds_are_equal_parts_of_all_families_and_each_is_the_test_once():
    rows = table([f"i{n}" for n in range(60)], split=["train", "test", "both"] * 20)
    rows["family"] = [f"f{n % 3}-{n // 12}" for n in range(60)]
    rows.loc[rows["split"] == "both", "family"] = None
    tested = []
    for number in range(5):
        split = split_items(rows, rows, fold=(number, 5))
        both = set(np.flatnonzero(rows["split"] == "both"))
        assert set(split.train_a) & set(split.test_a) == both
        assert set(split.train_a) | set(split.test_a) == set(range(60))
        families = [
            set(rows["family"].iloc[sorted({*side} - both)])
            for side in (split.train_a, split.test_a)
        ]
        assert not families[0] & families[1]
        assert len(families[1]) == 2
        tested += sorted({*split.test_a} - both)
    assert sorted(tested) == sorted(set(range(60)) - both)
