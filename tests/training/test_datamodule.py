from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gera_lightning.data.splits import Sample, sample_pairs, split_items
from gera_lightning.data.store import EmbeddingStore
from gera_lightning.data.training_rows import Modality, TrainingRows, load_modality, load_rows
from gera_lightning.training import datamodule
from gera_lightning.training.batch import Batch, Patches, RowStream
from gera_lightning.training.datamodule import AlignmentDataModule
from gera_lightning.utils.errors import UserError

N, VIEWS, TEST, BUDGET, RESERVE, K = 70, 2, 10, 13, 20, 3
ITEMS = [f"i{n:03d}" for n in range(N)]
SIDES = ["test" if n < TEST else "train" for n in range(N)]


def gauss(n: int, d: int, seed: int) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=(n, d)) + 0.5).astype(np.float32)


@pytest.fixture
def stores(make_store: Callable[..., EmbeddingStore]) -> tuple[EmbeddingStore, EmbeddingStore]:
    a = make_store("a", gauss(N * VIEWS, 6, 0), item=ITEMS * VIEWS, split=SIDES * VIEWS)
    return a, make_store("b", gauss(N, 5, 1), item=ITEMS, split=SIDES)


@pytest.fixture
def drawn(stores: tuple[EmbeddingStore, EmbeddingStore]) -> Sample:
    tables = [store.rows for store in stores]
    return sample_pairs(
        *tables, split_items(*tables), budget=BUDGET, reserved_pairs=RESERVE, seed=0
    )


@pytest.fixture
def rows(stores: tuple[EmbeddingStore, EmbeddingStore], drawn: Sample) -> TrainingRows:
    return load_rows(*stores, drawn)


@pytest.fixture
def make(
    rows: TrainingRows, stream_of: Callable[..., AlignmentDataModule]
) -> Callable[..., AlignmentDataModule]:
    """A data module that is set up, of small steps unless told otherwise."""

    def build(**settings_: Any) -> AlignmentDataModule:
        data = stream_of(rows, **settings_)
        data.prepare_data()
        data.setup()
        return data

    return build


def slow_preprocess(x: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Normalise, centre by the normalised training rows' mean, normalise again: row by row."""
    mean = sum(row / np.sqrt((row**2).sum()) for row in train.astype(np.float64)) / len(train)
    out = [row / np.sqrt((row**2).sum()) - mean for row in x.astype(np.float64)]
    return np.array([row / np.sqrt((row**2).sum()) for row in out])


def as_numbers(batch: Batch) -> list[np.ndarray]:
    """All that a step sees."""
    parts = [batch.x_a, batch.x_b, batch.item]
    for patches in (batch.patches_a, batch.patches_b):
        if patches is not None:
            parts += [patches.points[patches.members]]
    return [part.numpy() for part in parts]


def same(one: Batch, other: Batch) -> bool:
    return all(
        np.array_equal(x, y) for x, y in zip(as_numbers(one), as_numbers(other), strict=True)
    )


# ---- training rows ----


def test_rows_are_those_drawn_preprocessed(stores, drawn, rows):
    for store, modality, pairs, pool in (
        (stores[0], rows.a, drawn.pairs_a, drawn.pool_a),
        (stores[1], rows.b, drawn.pairs_b, drawn.pool_b),
    ):
        x = store.read()
        train = np.concatenate([x[pairs], x[pool]])
        np.testing.assert_allclose(modality.pairs, slow_preprocess(x[pairs], train), atol=1e-6)
        np.testing.assert_allclose(modality.pool, slow_preprocess(x[pool], train), atol=1e-6)


def test_without_centring_rows_are_normalised_only(stores, drawn):
    x = stores[1].read(drawn.pairs_b)
    modality = load_modality(stores[1], drawn.pairs_b, drawn.pool_b, center=False)
    np.testing.assert_allclose(
        modality.pairs, x / np.linalg.norm(x, axis=1, keepdims=True), atol=1e-6
    )


def test_test_rows_leave_no_trace(stores, drawn, rows, make, make_store, stream_of, tmp_path):
    """Change every test row: what training sees stays the same to the bit, neighbours too."""
    changed = []
    for name, store in zip("ab", stores, strict=True):
        x = store.read()
        x[store.rows["split"] == "test"] = 1e3
        changed.append(
            make_store(
                f"changed/{name}",
                x,
                **{c: store.rows[c].tolist() for c in ("row", "item", "split")},
            )
        )
    again = load_rows(*changed, drawn)
    other = stream_of(again, cache_dir=tmp_path / "other")
    other.setup()
    data = make()
    for step in range(4):
        assert same(data.gather(data.step_rows(step)), other.gather(other.step_rows(step)))
    assert again.a.key["data"] != rows.a.key["data"]  # the stores do differ


@pytest.mark.parametrize("paired_anchors", [False, True])
def test_batches_are_the_same_wherever_the_pools_are(stores, drawn, stream_of, paired_anchors):
    """Also those that a thread reads ahead of the steps."""
    batches = {}
    for residency in ("memory", "disk"):
        data = stream_of(
            load_rows(*stores, drawn, residency=residency),
            unpaired=6,
            paired_anchors=paired_anchors,
        )
        data.prepare_data()
        data.setup()
        assert data.reads_disk == (residency == "disk")
        steps = list(data.train_dataloader())
        assert all(isinstance(step, Batch) == data.reads_disk for step in steps)
        batches[residency] = [
            data.transfer_batch_to_device(step, torch.device("cpu"), 0) for step in steps
        ]
    assert len(batches["disk"]) == 12
    for memory, disk in zip(*batches.values(), strict=True):
        assert same(memory, disk)
        assert torch.equal(memory.unpaired_a.rows, disk.unpaired_a.rows)
        assert torch.equal(memory.unpaired_b.rows, disk.unpaired_b.rows)
        assert (memory.step, memory.count) == (disk.step, disk.count)


def test_the_key_tells_rows_and_preprocessing_apart(stores, drawn):
    pairs, pool = drawn.pairs_b, drawn.pool_b
    keys = [
        load_modality(stores[1], *args, **more).key
        for args, more in (
            ((pairs, pool), {}),
            ((pairs, pool), {"center": False}),
            ((pairs[:-1], pool), {}),
            ((pairs, pool[::-1]), {}),
            (
                (np.append(pairs, pool[0]), pool[1:]),
                {},
            ),  # the same rows, one moved from the pool to the pairs
        )
    ]
    assert len({tuple(sorted(key.items())) for key in keys}) == len(keys)
    assert load_modality(stores[1], pairs, pool).key == keys[0]


def test_item_numbers_are_equal_where_the_item_is():
    rows = TrainingRows(None, None, np.array(["x", "y", "x", "z", "y"]), np.array([]))  # type: ignore[arg-type]
    numbers = rows.item_numbers
    for i in range(5):
        for j in range(5):
            assert (numbers[i] == numbers[j]) == (rows.items[i] == rows.items[j])


# ---- streams ----


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 20), st.integers(1, 25), st.integers(0, 3), st.data())
def test_a_stream_is_shuffled_epochs_end_to_end(count, size, seed, data):
    stream = RowStream(count, size, seed, 10)
    steps = [stream[step].tolist() for step in range(2 * count)]
    assert all(len(step) == min(size, count) for step in steps)
    flat = [place for step in steps for place in step]
    for start in range(0, len(flat) - count + 1, count):
        assert sorted(flat[start : start + count]) == list(
            range(count)
        )  # every epoch holds each position once
    asked = data.draw(st.permutations(range(2 * count)))[:5]
    other = RowStream(count, size, seed, 10)
    assert [other[step].tolist() for step in asked] == [
        steps[step] for step in asked
    ]  # whatever was asked for before


def test_streams_differ_by_seed_salt_and_epoch():
    orders = {
        tuple(np.concatenate([RowStream(20, 5, seed, salt)[step] for step in range(4)]))
        for seed in (0, 1)
        for salt in (10, 11)
    }
    assert len(orders) == 4
    stream = RowStream(20, 10, 0, 10)
    assert stream[0].tolist() + stream[1].tolist() != stream[2].tolist() + stream[3].tolist()


# ---- the global batch ----


@pytest.mark.parametrize("size", [2, 3])
def test_processes_share_the_batch_of_one(make, size):
    data = make()
    for step in (0, 1, 5, 11):
        whole = data.step_rows(step)
        shares = [data.step_rows(step, rank, size) for rank in range(size)]
        for rank, share in enumerate(shares):
            assert share.pairs.tolist() == whole.pairs[rank::size].tolist()
            for one, other in (
                (share.patches_a, whole.patches_a),
                (share.patches_b, whole.patches_b),
            ):
                expected = np.array_split(other[0][other[1]], size)[rank]
                np.testing.assert_array_equal(one[0][one[1]], expected)
        joined, parts = data.gather(whole), [data.gather(share) for share in shares]
        assert {part.count for part in parts} == {joined.count} == {5}
        assert {part.patches_a.count for part in parts} == {joined.patches_a.count} == {8}
        for number, expected in enumerate(as_numbers(joined)):
            shared = [as_numbers(part)[number] for part in parts]
            out = np.empty_like(expected)
            for rank, part in enumerate(shared):
                out[rank::size] = part
            # pairs are dealt out in turn, anchors in parts
            np.testing.assert_array_equal(out if number < 3 else np.concatenate(shared), expected)


def test_a_step_depends_on_seed_and_step_alone(make):
    first, again, other = make(seed=4), make(seed=4), make(seed=5)
    asked = [7, 0, 11, 3]
    seen = {step: first.gather(first.step_rows(step)) for step in range(12)}
    assert all(same(again.gather(again.step_rows(step)), seen[step]) for step in asked)
    assert not any(same(other.gather(other.step_rows(step)), seen[step]) for step in asked)
    assert not same(seen[0], seen[1])


@pytest.mark.parametrize(("rank", "size"), [(0, 1), (1, 2), (2, 3)])
@pytest.mark.parametrize("start", [0, 5])
def test_going_on_at_a_step_gives_the_rest_of_the_stream(make, monkeypatch, rank, size, start):
    monkeypatch.setattr(datamodule, "world", lambda: (rank, size))
    whole = make()
    assert whole.trainer is None
    uninterrupted = [
        whole.transfer_batch_to_device(step, torch.device("cpu"), 0)
        for step in whole.train_dataloader()
    ]
    resumed = make()
    resumed.trainer = SimpleNamespace(global_step=start)
    rest = [
        resumed.transfer_batch_to_device(step, torch.device("cpu"), 0)
        for step in resumed.train_dataloader()
    ]
    assert [batch.step for batch in uninterrupted] == list(range(12))
    assert [batch.step for batch in rest] == list(range(start, 12))
    assert all(same(one, other) for one, other in zip(rest, uninterrupted[start:], strict=True))
    assert all(len(batch.x_a) == len(range(rank, 5, size)) for batch in rest)


def test_an_epoch_sees_every_pair_and_every_anchor_once(make):
    data = make(pairs=2, anchors=5)
    pairs = np.concatenate([data.step_rows(step).pairs for step in range(BUDGET)])
    assert sorted(pairs) == sorted([*range(BUDGET)] * 2)  # two epochs of steps of two
    pool = len(data.rows.b.pool)
    assert pool % 5 == 0
    anchors = []
    for step in range(pool // 5):
        distinct, members = data.step_rows(step).patches_b
        anchors += distinct[members[:, 0]].tolist()
    assert sorted(anchors) == list(range(pool))


def test_anchors_of_a_region_share_points_and_each_is_seen_once_an_epoch(make):
    data, alone = make(anchors=5, region=5), make(anchors=5)
    steps = range(len(data.rows.b.pool) // 5)
    points, anchors = {}, {}
    for name, stream in (("region", data), ("alone", alone)):
        rows = [stream.step_rows(step).patches_b for step in steps]
        points[name] = sum(len(distinct) for distinct, _ in rows)
        anchors[name] = [int(n) for distinct, members in rows for n in distinct[members[:, 0]]]
    assert sorted(anchors["region"]) == sorted(anchors["alone"]) == list(range(5 * len(steps)))
    assert points["region"] < points["alone"]


def test_a_small_budget_is_seen_whole_each_step(make):
    data = make(pairs=256, anchors=256)
    batch = data.gather(data.step_rows(3))
    assert batch.count == BUDGET
    assert torch.equal(batch.x_a, data.rows.a.pairs)
    assert torch.equal(batch.x_b, data.rows.b.pairs)
    assert batch.patches_a.count == len(data.rows.a.pool)


def test_chosen_positions_are_the_only_pairs(make):
    positions = np.array([2, 3, 5, 7, 11])
    data = make(positions=positions, pairs=2)
    seen = np.concatenate([data.step_rows(step).pairs for step in range(5)])
    assert sorted(seen) == sorted([*positions, *positions])
    step = data.step_rows(0)
    batch = data.gather(step)
    for place, row in enumerate(step.pairs):
        assert torch.equal(batch.x_a[place], data.rows.a.pairs[row])
        assert torch.equal(batch.x_b[place], data.rows.b.pairs[row])
        assert batch.item[place] == data.rows.item_numbers[row]


# ---- patches ----


def slow_patch(points: np.ndarray, anchor: int, k: int) -> set[int]:
    d2 = ((points - points[anchor]) ** 2).sum(1)
    d2[anchor] = np.inf
    return {anchor, *d2.argsort()[:k].tolist()}


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("side", ["a", "b"])
def test_patches_are_anchors_with_their_nearest_rows(make, side, paired):
    data = make(paired_anchors=paired)
    modality: Modality = getattr(data.rows, side)
    points = np.concatenate([modality.pool, modality.pairs]) if paired else modality.pool.numpy()
    for step in range(3):
        distinct, members = getattr(data.step_rows(step), f"patches_{side}")
        assert members.shape == (8, K + 1)
        assert sorted(set(distinct.tolist())) == distinct.tolist()  # each distinct point once ...
        assert set(members.ravel()) == set(range(len(distinct)))  # ... and none that no patch needs
        for patch in distinct[members]:
            assert set(patch.tolist()) == slow_patch(points, patch[0], K)
        gathered: Patches = getattr(data.gather(data.step_rows(step)), f"patches_{side}")
        np.testing.assert_array_equal(gathered.points[gathered.members], points[distinct[members]])


def test_paired_rows_are_anchors_only_when_asked(make):
    """No point of the pool has the coordinates of a paired row."""
    for paired, expected in ((False, False), (True, True)):
        data = make(paired_anchors=paired, anchors=256)
        points = data.gather(data.step_rows(0)).patches_a.points
        found = (points.unsqueeze(1) == data.rows.a.pairs).all(-1).any(0)
        assert found.all() if expected else not found.any()


def test_held_out_pairs_are_no_anchors_of_a_training_on_the_others(make):
    """Nor do two trainings on other pairs share a graph."""
    for kept in (np.arange(0, BUDGET, 2), np.arange(1, BUDGET, 2)):
        data = make(paired_anchors=True, anchors=256, positions=kept)
        points = data.gather(data.step_rows(0)).patches_a.points
        found = (points.unsqueeze(1) == data.rows.a.pairs).all(-1).any(0)
        assert np.flatnonzero(found).tolist() == kept.tolist()
        assert len(points) == len(data.rows.a.pool) + len(kept)


def test_the_copy_of_the_rows_goes_when_training_ends(make):
    data = make(unpaired=4)
    batch = data.gather(data.step_rows(0))
    assert data._resident is not None
    data.teardown("fit")
    assert data._resident is None
    torch.testing.assert_close(
        data.gather(data.step_rows(0)).unpaired_a.rows, batch.unpaired_a.rows
    )


def test_without_a_geometric_loss_no_graph_is_built(make, tmp_path):
    data = make(k=None)
    batch = data.gather(data.step_rows(0))
    assert batch.patches_a is batch.patches_b is None
    assert not (tmp_path / "cache").exists()


def test_graphs_are_kept_and_told_apart(make, tmp_path):
    make()
    first = set((tmp_path / "cache" / "knn").glob("*.safetensors"))
    assert len(first) == 2
    make(seed=9)  # the same rows
    assert set((tmp_path / "cache" / "knn").glob("*.safetensors")) == first
    make(paired_anchors=True)
    make(k=K + 1)
    assert len(set((tmp_path / "cache" / "knn").glob("*.safetensors"))) == 6


@pytest.mark.parametrize("size", [0, 1])
@pytest.mark.parametrize("side", ["a", "b"])
def test_a_pool_too_small_for_patches_is_refused(rows, stream_of, side, size):
    other = {key: getattr(rows, key) for key in "ab"}
    other[side] = other[side].pool_subset(np.arange(len(other[side].pool)) < size)
    small = dataclasses.replace(rows, a=other["a"], b=other["b"])
    with pytest.raises(UserError, match=rf"modality {side} has {size} unpaired rows"):
        stream_of(small)
    stream_of(small, k=None)
    stream_of(small, paired_anchors=True)
