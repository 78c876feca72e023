"""Unpaired rows without neighbours in the stream of steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from gera_lightning.data.training_rows import Modality, TrainingRows
from gera_lightning.models.preprocessing import Preprocessing
from gera_lightning.training.datamodule import AlignmentDataModule
from gera_lightning.utils.errors import UserError

PAIRS, POOLS, SIZE = 6, {"a": 23, "b": 9}, 10


def rows(pool_a: int = POOLS["a"], pool_b: int = POOLS["b"]) -> TrainingRows:
    """Row i of a pool is i in its first column, a pair's is negative."""

    def modality(n: int) -> Modality:
        return Modality(
            -torch.ones(PAIRS, 2),
            torch.arange(float(n)).unsqueeze(1).expand(n, 2),
            Preprocessing(None),
            {"data": str(n)},
            np.arange(n).astype(str),
        )

    items = np.arange(PAIRS).astype(str)
    return TrainingRows(modality(pool_a), modality(pool_b), items, items)


@pytest.fixture
def make(stream_of: Callable[..., AlignmentDataModule]) -> Callable[..., AlignmentDataModule]:
    def build(**settings: Any) -> AlignmentDataModule:
        data = stream_of(rows(), **{"k": None, "unpaired": SIZE, "pairs": 4, **settings})
        data.setup()
        return data

    return build


def numbers(
    data: AlignmentDataModule, step: int, side: str, rank: int = 0, size: int = 1
) -> list[int]:
    unpaired = getattr(data.gather(data.step_rows(step, rank, size)), f"unpaired_{side}")
    return unpaired.rows[:, 0].int().tolist()


def test_a_step_holds_rows_of_the_pools(make):
    data = make()
    batch = data.gather(data.step_rows(0))
    assert batch.unpaired_a.count == len(batch.unpaired_a.rows) == SIZE
    assert (
        batch.unpaired_b.count == len(batch.unpaired_b.rows) == POOLS["b"]
    )  # all, where the pool is smaller
    for side, count in POOLS.items():
        found = numbers(data, 0, side)
        assert len(set(found)) == len(found)
        assert set(found) <= set(range(count))
    assert data.graphs == {}  # no neighbours were looked for


def test_every_row_comes_once_an_epoch(make):
    data = make()
    found = [number for step in range(POOLS["a"]) for number in numbers(data, step, "a")]
    for epoch in range(SIZE):
        assert sorted(found[epoch * POOLS["a"] : (epoch + 1) * POOLS["a"]]) == list(
            range(POOLS["a"])
        )


@pytest.mark.parametrize("size", [2, 3, 12])
@pytest.mark.parametrize("step", [0, 5])
def test_the_processes_shares_interleave_to_the_joined_batch(make, size, step):
    data = make()
    for side in "ab":
        joined = np.full(len(numbers(data, step, side)), -1)
        for rank in range(size):
            joined[rank::size] = numbers(data, step, side, rank, size)
        assert joined.tolist() == numbers(data, step, side)


def test_the_streams_of_the_modalities_and_of_seeds_differ(make):
    one, other = make(), make(seed=1)
    one.rows, other.rows = rows(23, 23), rows(23, 23)
    for data in (one, other):
        data.setup()
    assert numbers(one, 0, "a") != numbers(one, 0, "b")
    assert numbers(one, 0, "a") != numbers(other, 0, "a")
    assert numbers(one, 0, "a") == numbers(one, 0, "a")


def test_they_change_nothing_else_of_a_step(make):
    """Twins with and without such a loss see the same pairs and patches."""
    with_, without = (
        make(k=3, anchors=5),
        make(k=3, anchors=5, unpaired=None),
    )
    for step in range(4):
        one, other = (data.gather(data.step_rows(step)) for data in (with_, without))
        assert torch.equal(one.item, other.item)
        for side in "ab":
            patches = [getattr(batch, f"patches_{side}") for batch in (one, other)]
            assert torch.equal(
                patches[0].points[patches[0].members], patches[1].points[patches[1].members]
            )
    assert other.unpaired_a is None
    assert other.unpaired_b is None


@pytest.mark.parametrize("pools", [(1, 9), (9, 0)])
def test_pools_without_two_rows_are_refused(stream_of, pools):
    with pytest.raises(UserError, match=rf"has {min(pools)} unpaired rows"):
        stream_of(rows(*pools), k=None, unpaired=SIZE)
