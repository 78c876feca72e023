"""Planted faults and structures, and what is said of them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from gera_lightning.commands.doctor.checks import (
    ERROR,
    NOTE,
    OK,
    components,
    leak_findings,
    neighbor_findings,
    pair_findings,
    row_findings,
    shared_group,
    spread_findings,
)
from gera_lightning.data.inspection import scan
from gera_lightning.data.leaks import Leaks
from gera_lightning.data.splits import split_items
from gera_lightning.geometry.neighbors import knn_graph


def cloud(n: int, d: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


def texts(findings, level: str) -> str:
    return " | ".join(finding.text for finding in findings if finding.level == level)


# ---- rows ----


def test_a_whole_store_is_fine(make_store):
    store = make_store("a", cloud(40, 5))
    [finding] = row_findings(store, "a", scan(store))
    assert (finding.level, finding.text) == (OK, "a: 40 rows of width 5 by enc-a")


def test_damage_is_counted_and_named(make_store):
    x = cloud(40, 5)
    x[7, 2], x[9, 0] = np.nan, np.inf
    store = make_store("a", x)
    assert "2 rows hold NaN or infinity, the first is 'i0007-a-7'" in texts(
        row_findings(store, "a", scan(store)), ERROR
    )


@pytest.mark.parametrize(("zeros", "mark"), [(1, NOTE), (10, ERROR)])
def test_rows_without_a_direction_are_counted(make_store, zeros, mark):
    x = cloud(40, 5)
    x[:zeros] *= 1e-5
    store = make_store("a", x)
    assert f"{zeros} rows have norm 0 or nearly so" in texts(
        row_findings(store, "a", scan(store)), mark
    )


def test_few_copies_are_noted_and_many_are_a_collapse(make_store):
    x = cloud(40, 5)
    x[3] = x[30] = x[0]
    store = make_store("a", x)
    assert "2 rows (5.0%) are exact copies" in texts(row_findings(store, "a", scan(store)), NOTE)
    collapsed = make_store("b", np.tile(x[:2], (20, 1)))
    assert "95% of the rows are exact copies" in texts(
        row_findings(collapsed, "b", scan(collapsed)), ERROR
    )


def test_a_file_that_is_not_the_manifests_is_named(make_store):
    store = make_store("a", cloud(7, 5))
    np.save(store.path / "emb_0000.npy", cloud(7, 5, seed=1))
    assert "emb_0000.npy" in texts(row_findings(store, "a", scan(store)), ERROR)


def test_copies_across_the_split_are_said(make_store):
    split = ["train"] * 14 + ["test"] * 6
    x = cloud(20, 4)
    x[[15, 16]] = x[3]
    clean, leaky = (
        make_store("a", cloud(20, 4, seed=1), split=split),
        make_store("b", x, split=split),
    )
    for stores, level, words in (
        ((clean, clean), None, ""),
        ((clean, leaky), NOTE, "text: 2 test rows are exact copies of train rows of other items"),
        ((leaky, leaky), ERROR, "pairs: 2 test items are exact copies of train items"),
    ):
        tables = dict(zip("ab", (store.rows for store in stores), strict=True))
        codes = dict(zip("ab", (scan(store).codes for store in stores), strict=True))
        leaks = Leaks.of(tables, codes, split_items(tables["a"], tables["b"]))
        found = list(leak_findings(leaks, ("speech", "text")))
        assert [words in finding.text for finding in found if finding.level == level] == (
            [True] if level else []
        )


# ---- pairs ----


def test_pairs_families_and_unpaired_items_are_counted(make_store):
    items = [f"i{n:02d}" for n in range(40)]
    split = ["test" if n < 10 else "train" for n in range(40)]
    x = cloud(40, 6)
    family = [f"f{n // 2}" for n in range(40)]
    a = make_store("a", x, item=items, split=split, family=family)
    b = make_store("b", x[5:], item=items[5:35] + [f"other{n}" for n in range(5)], split=split[5:])
    found = list(pair_findings(a, b, split_items(a.rows, b.rows)))
    assert "25 train items in 13 families, 5 test items; unpaired items: 5 of a, 5 of b" in texts(
        found, OK
    )
    assert "what is near in a is near in b" in texts(found, OK)
    assert "5 test items are few to measure on" in texts(found, NOTE)


def test_too_few_pairs_and_pairs_that_are_none_are_told_apart(make_store):
    items = [f"i{n:03d}" for n in range(200)]
    a = make_store("a", cloud(200, 6), item=items)
    stranger = make_store("b", cloud(200, 6, seed=1), item=items)
    assert "check that `item` pairs the right rows" in texts(
        pair_findings(a, stranger, split_items(a.rows, stranger.rows)), NOTE
    )
    other = make_store("c", cloud(200, 6), item=[f"j{n}" for n in range(197)] + items[:3])
    words = texts(pair_findings(a, other, split_items(a.rows, other.rows)), ERROR)
    assert "train items have a row in both stores, at least 10 are needed" in words


def test_stores_without_test_items_can_be_aligned_but_not_measured(make_store):
    items, x = [f"i{n:03d}" for n in range(60)], cloud(60, 6)
    a, b = (
        make_store(side, x * scale, item=items, split=["train"] * 60)
        for side, scale in (("a", 1), ("b", 2))
    )
    assert "runs measure nothing: check the `split` column, or take gera align" in texts(
        pair_findings(a, b, split_items(a.rows, b.rows)), NOTE
    )
    half = make_store("c", x * 3, item=[*items[:59], "other"], split=["train"] * 59 + ["test"])
    assert "runs measure nothing" in texts(
        pair_findings(a, half, split_items(a.rows, half.rows)), ERROR
    )


# ---- geometry ----


def test_effective_dimensions_are_those_of_the_cloud():
    x = torch.zeros(4000, 30)
    x[:, :6] = torch.from_numpy(cloud(4000, 6))
    assert "a: 6 effective dimensions of 30, spread 1.00" in texts(spread_findings(x, "a"), OK)


def test_a_collapsed_encoder_is_seen():
    x = torch.from_numpy(cloud(100, 8))
    assert "all rows point the same way" in texts(spread_findings(x * 1e-4 + 1, "a"), ERROR)
    line = torch.from_numpy(cloud(100, 1)).sign() * torch.ones(8) + x * 0.01
    assert "the rows lie on a line" in texts(spread_findings(line, "a"), ERROR)


def flood_sizes(neighbors: list[set[int]]) -> list[int]:
    """Sizes of connected parts by walking, edges both ways."""
    both = [set(near) for near in neighbors]
    for i, near in enumerate(neighbors):
        for j in near:
            both[j].add(i)
    left, sizes = set(range(len(both))), []
    while left:
        reached = {left.pop()}
        todo = list(reached)
        while todo:
            new = both[todo.pop()] - reached
            reached |= new
            todo += new
        left -= reached
        sizes.append(len(reached))
    return sorted(sizes, reverse=True)


def test_parts_of_the_graph_equal_a_walk_over_it():
    x = torch.from_numpy(cloud(90, 2))
    x[:30] += 50
    x[30:50] -= 50
    for k in (1, 2, 4):
        graph = knn_graph(x, k)
        assert components(graph).tolist() == flood_sizes(
            [set(row) for row in graph.indices.tolist()]
        )
    assert components(knn_graph(x, 10)).tolist() == [40, 30, 20]


def test_a_graph_in_parts_is_noted_only_where_no_part_holds_nearly_all():
    x = torch.from_numpy(cloud(100, 2))
    rows = pd.DataFrame({"item": range(100)})
    assert "connected" in texts(neighbor_findings(x, rows, "a", 6), OK)
    x[:50] += 60
    assert "has 2 parts, the largest holds 50%" in texts(neighbor_findings(x, rows, "a", 6), NOTE)
    x[:50] -= 60
    x[:8] += 60
    assert "has 2 parts, the largest holds 92%" in texts(neighbor_findings(x, rows, "a", 6), OK)


def test_the_share_of_a_group_equals_a_loop_and_its_chance_a_shuffle():
    x = torch.from_numpy(cloud(120, 3))
    group = pd.Series([["p", "q", "r", None][n % 4] if n % 3 else "p" for n in range(120)])
    graph = knn_graph(x, 5)
    known = [n for n in range(120) if pd.notna(group[n])]
    loop = np.mean([group[int(j)] == group[n] for n in known for j in graph.indices[n]])
    share, chance = shared_group(graph, group)
    assert share == pytest.approx(loop)
    every = np.mean([group[j] == group[n] for n in known for j in range(120) if j != n])
    assert chance == pytest.approx(every)


def test_neighbours_that_follow_the_nuisance_are_noted():
    x = torch.from_numpy(cloud(200, 6))
    rows = pd.DataFrame({"group": [f"voice{n % 4}" for n in range(200)], "label": ["x"] * 200})
    assert "neighbours cross groups" in texts(neighbor_findings(x, rows, "a", 8), OK)
    x[:, 0] += torch.tensor([40.0 * (n % 4) for n in range(200)])
    found = texts(neighbor_findings(x, rows, "a", 8), NOTE)
    assert (
        "100% of neighbours share the row's `group`, 25% by chance: neighbours follow the group"
        in found
    )
