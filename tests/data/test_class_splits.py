"""Rows of one item on both sides of the split: classes, whose names in b are `both`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gera_lightning.data.splits import (
    Sample,
    count_pairs,
    folds,
    sample_pairs,
    split_items,
    split_units,
    train_on_all,
)
from gera_lightning.utils.errors import UserError


def rows_of(items: list[str], name: str = "a", **columns: Any) -> pd.DataFrame:
    return pd.DataFrame(
        {"row": [f"{item}-{name}{n}" for n, item in enumerate(items)], "item": items, **columns}
    )


def words(
    train: dict[str, int], test: dict[str, int] | None = None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """So many train and test rows of each class, and a name of each."""
    test = dict.fromkeys(train, 2) if test is None else test
    items = [item for rows in (train, test) for item, count in rows.items() for _ in range(count)]
    split = ["train"] * sum(train.values()) + ["test"] * sum(test.values())
    classes = sorted({*train, *test})
    return rows_of(items, split=split), rows_of(classes, "b", split=["both"] * len(classes))


def items_at(rows: pd.DataFrame, numbers: np.ndarray) -> list[str]:
    return rows["item"].iloc[numbers].tolist()


# ---- train and test ----


def test_each_row_of_a_class_has_its_own_side_and_its_name_is_on_both():
    a, b = words({"yes": 3, "no": 2}, {"yes": 1, "up": 2})
    split = split_items(a, b)
    assert items_at(a, split.train_a) == ["yes"] * 3 + ["no"] * 2
    assert items_at(a, split.test_a) == ["yes", "up", "up"]
    assert not set(split.train_a) & set(split.test_a)
    assert items_at(b, split.train_b) == items_at(b, split.test_b) == ["no", "up", "yes"]


def test_rows_without_a_split_go_by_their_own_family():
    """So a family is a speaker, and whole speakers are tested, or the class, and whole classes
    are: zero-shot. Without one each row goes alone.
    """
    items = [f"c{n % 12}" for n in range(600)]
    b = rows_of(sorted(set(items)), "b", split=["both"] * 12)
    speakers = [f"s{n // 12}" for n in range(600)]
    for family, parted in ((speakers, True), (items, False), ([None] * 600, True)):
        a = rows_of(items, family=family)
        split = split_items(a, b, test_share=0.3)
        train, test = set(split.train_a), set(split.test_a)
        assert train
        assert test
        assert train | test == set(range(600))
        assert not train & test
        named = [{family[n] for n in side} - {None} for side in (train, test)]
        assert not named[0] & named[1]
        both = set(items_at(a, split.train_a)) & set(items_at(a, split.test_a))
        assert bool(both) == parted


@pytest.mark.parametrize("split", ["dev", "folds"])
def test_design_splits_part_the_rows_of_a_class_too(split):
    a, b = words({f"c{n}": 40 for n in range(5)})
    how: dict[str, Any] = {"dev": True} if split == "dev" else {"fold": (1, 4)}
    found = split_items(a, b, test_share=0.3, **how)
    sealed = set(np.flatnonzero(a["split"] == "test"))
    assert not set(found.train_a) & set(found.test_a)
    assert set(items_at(a, found.train_a)) == set(items_at(a, found.test_a)) == set(b["item"])
    assert (split == "dev") == (not sealed & {*found.train_a, *found.test_a})
    assert len(found.test_b) == len(found.train_b) == 5


def test_a_family_on_both_sides_is_refused():
    a, b = words({"yes": 2, "no": 2})
    a["family"] = [f"take {n}" for n in range(len(a) - 1)] + ["take 0"]
    with pytest.raises(UserError) as caught:
        split_items(a, b)
    assert (caught.value.key, caught.value.value) == ("family", "take 0")


def test_an_item_on_both_sides_whose_name_is_not_both_is_refused():
    a, b = words({"yes": 2, "no": 2})
    for side in ("train", None):
        named = b.assign(split=["both", side])  # of `no` and `yes`
        with pytest.raises(UserError) as caught:
            split_items(a, named)
        assert (caught.value.key, caught.value.value) == ("item", "yes")
        assert "`both`" in caught.value.remedy


def test_names_in_a_are_refused_with_the_remedy():
    a, b = words({"yes": 2, "no": 2}, {})
    with pytest.raises(UserError, match="'both' in store a and 'train' in store b") as caught:
        split_items(b, a)
    assert "store b" in caught.value.remedy


def test_units_are_items_where_nothing_is_a_class():
    a, b = words({"yes": 2, "no": 2}, {})
    assert split_units(a, b.drop(columns="split")).tolist() == a["item"].tolist()
    assert split_units(a, b.assign(split="train")).tolist() == a["item"].tolist()
    assert len(set(split_units(a, b))) == len(a)
    both = a.assign(split="both")  # names themselves
    assert split_units(both, b).tolist() == a["item"].tolist()


def test_an_aligner_to_put_to_use_sees_the_test_rows_too_but_no_unused_one():
    a, b = words({"yes": 2, "no": 2})
    a.loc[0, "split"] = "unused"
    split = train_on_all(a, b)
    assert split.train_a.tolist() == list(range(1, len(a)))
    assert len(split.train_b) == 2
    assert count_pairs(a, b, split) == len(a) - 1


# ---- budgets and pools ----


def drawn(a: pd.DataFrame, b: pd.DataFrame, budget: int, reserved: int, seed: int = 0) -> Sample:
    split = split_items(a, b)
    return sample_pairs(a, b, split, budget=budget, reserved_pairs=reserved, seed=seed)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(1, 6), min_size=2, max_size=6),
    st.integers(0, 5),
    st.data(),
)
def test_budgets_are_nested_and_balanced_and_the_pool_is_every_other_train_row(counts, seed, data):
    a, b = words({f"c{n}": count for n, count in enumerate(counts)})
    train = np.flatnonzero(a["split"] == "train")
    assert count_pairs(a, b, split_items(a, b)) == len(train) == sum(counts)
    reserved = data.draw(st.integers(2, len(train)))
    budget = data.draw(st.integers(2, reserved))
    small, large = (drawn(a, b, n, reserved, seed) for n in (budget, reserved))
    for key in ("pairs_a", "pairs_b", "items"):
        assert getattr(small, key).tolist() == getattr(large, key)[:budget].tolist()
    for key in ("pool_a", "pool_b"):
        assert getattr(small, key).tolist() == getattr(large, key).tolist()
    assert len(set(large.pairs_a)) == reserved
    assert sorted([*large.pairs_a, *large.pool_a]) == train.tolist()
    assert items_at(a, small.pairs_a) == items_at(b, small.pairs_b) == small.items.tolist()
    # as even as the classes allow: none has a second row while another is without its first
    shots = {f"c{n}": small.items.tolist().count(f"c{n}") for n in range(len(counts))}
    for n, count in enumerate(counts):
        assert shots[f"c{n}"] >= min(count, max(shots.values()) - 1)


def test_a_seed_draws_its_own_rows_and_its_own_first_classes():
    a, b = words({f"c{n}": 9 for n in range(10)})
    first, other = (drawn(a, b, 5, 90, seed) for seed in (0, 1))
    assert set(first.items) != set(other.items)
    rows = [dict(zip(one.items, one.pairs_a, strict=True)) for one in (first, other)]
    common = set(rows[0]) & set(rows[1])
    assert any(rows[0][item] != rows[1][item] for item in common)


def test_names_are_unpaired_rows_of_b_beside_its_others():
    a, b = words({"yes": 4, "no": 4})
    assert sorted(items_at(b, drawn(a, b, 2, 4).pool_b)) == ["no", "yes"]
    more = pd.concat([b, rows_of(["a text", "left"], "t", split=["train", "both"])])
    assert sorted(items_at(more, drawn(a, more, 2, 4).pool_b)) == ["a text", "left", "no", "yes"]


def test_several_names_of_a_class_take_turns():
    a, b = words({"yes": 4, "no": 4})
    b = pd.concat([b, b.assign(row=b["row"] + "-again")], ignore_index=True)
    sample = drawn(a, b, 8, 8)
    for item in ("yes", "no"):
        used = sample.pairs_b[sample.items == item].tolist()
        assert sorted(set(used)) == rows_numbers(b, item)
        assert used[:2] == used[2:]


def rows_numbers(rows: pd.DataFrame, item: str) -> list[int]:
    return np.flatnonzero(rows["item"] == item).tolist()


def test_items_and_classes_may_stand_in_one_set():
    """Captions are items as ever; extra views are of them alone."""
    a, b = words({"yes": 3, "no": 3}, {"yes": 1})
    captions = [f"i{n}" for n in range(8)]
    a = pd.concat([a, rows_of(captions * 2, "x", split=["train"] * 16)], ignore_index=True)
    b = pd.concat([b, rows_of(captions, "x", split=["train"] * 8)], ignore_index=True)
    split = split_items(a, b)
    assert count_pairs(a, b, split) == 8 + 6
    every = sample_pairs(a, b, split, budget=14, reserved_pairs=14, seed=0)
    assert len(set(every.pairs_a)) == 14
    assert sorted(every.items.tolist()) == sorted([*captions, *["yes"] * 3, *["no"] * 3])
    views = sample_pairs(a, b, split, budget=14, reserved_pairs=14, seed=0, extra_views=True)
    assert len(set(views.pairs_a)) == 16 + 6
    some = sample_pairs(a, b, split, budget=4, reserved_pairs=4, seed=0)
    hidden = set(items_at(a, some.pool_a)) & set(items_at(b, some.pool_b))
    assert hidden <= {"yes", "no"}


@pytest.mark.parametrize(("budget", "reserved"), [(13, 13), (6, 13)])
def test_more_than_the_train_rows_of_the_classes_is_refused(budget, reserved):
    a, b = words({"yes": 6, "no": 6})
    with pytest.raises(UserError, match="the 12 train rows of 2 classes"):
        drawn(a, b, budget, reserved)


# ---- folds ----


def test_folds_hold_out_rows_and_keep_their_families():
    a, b = words({"yes": 10, "no": 10})
    a["family"] = [f"{item}-{n // 2}" for n, item in enumerate(a["item"])]
    split = split_items(a, b)
    sample = drawn(a, b, 20, 20)
    units = split_units(a, b)[sample.pairs_a]
    parts = folds(units, split.families, 5, 0)
    families = a["family"].to_numpy()[sample.pairs_a]
    for part in parts:
        rest = np.setdiff1d(np.arange(20), part)
        assert set(sample.items[rest]) == {"yes", "no"}  # no class is unknown
        assert not set(families[part]) & set(families[rest])
