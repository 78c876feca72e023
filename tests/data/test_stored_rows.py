"""Rows that stay on disk are those in memory, to the bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from gera_lightning.config.merging import typed
from gera_lightning.data import stored_rows
from gera_lightning.data.splits import Sample
from gera_lightning.data.stored_rows import StoredRows, stay_on_disk
from gera_lightning.data.training_rows import load_modality, load_rows
from gera_lightning.geometry import neighbors
from gera_lightning.training import training_set
from gera_lightning.training.method import Method
from gera_lightning.training.training_set import TrainingSet
from gera_lightning.utils.progress import no_progress

N, PAIRS, WIDTH = 300, 9, 33


@pytest.fixture
def store(make_store):
    x = np.random.default_rng(0).normal(size=(N, WIDTH)) + 0.5
    return make_store("a", x.astype(np.float16), shard_rows=80)


@pytest.fixture
def sample():
    order = np.random.default_rng(1).permutation(N)
    pairs, pool = order[:PAIRS], order[PAIRS:]
    items = np.array([f"i{n:04d}" for n in pairs])
    return Sample(pairs, pairs, items, pool, pool)


@pytest.mark.parametrize("center", [True, False])
def test_a_modality_on_disk_is_that_in_memory(store, sample, center):
    rows = sample.pairs_a, sample.pool_a
    memory = load_modality(store, *rows, center=center)
    disk = load_modality(store, *rows, center=center, on_disk=True)
    assert isinstance(memory.pool, Tensor)
    assert isinstance(disk.pool, StoredRows)
    assert tuple(disk.pool.shape) == tuple(memory.pool.shape)
    assert disk.key == memory.key
    assert torch.equal(disk.pairs, memory.pairs)
    numbers = torch.randint(len(memory.pool), (5, 4), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(len(memory.pool)) % 3 == 1
    for index in (slice(None), slice(7), slice(0, 0), numbers, numbers[:1, 0], mask):
        assert torch.equal(disk.pool[index], memory.pool[index])
    positions = np.array([4, 2])
    assert torch.equal(disk.points(positions)[:], memory.points(positions)[:])
    again, of_memory = disk.pool_subset(mask.numpy()), memory.pool_subset(mask.numpy())
    assert isinstance(again.pool, StoredRows)
    assert again.key == of_memory.key
    assert torch.equal(again.in_memory().pool, of_memory.pool)


def test_closed_forms_get_the_first_rows_as_tensors(store, sample, monkeypatch, tmp_path):
    method = Method.from_config(typed({"closed_form": "ridge"}, "a test"))

    def first_rows(residency: str, most: int) -> list[Tensor]:
        monkeypatch.setattr(training_set, "MOST_POOL_ROWS", most)
        rows = load_rows(store, store, sample, residency=residency)
        task = TrainingSet(method, rows, pd.Series(dtype=object), 0, tmp_path, no_progress)
        seen = task.with_truncated_pools().rows
        assert isinstance(seen.a.pool, Tensor)
        assert isinstance(seen.b.pool, Tensor)
        return [seen.a.pool, seen.b.pool]

    for most, count in ((50, 50), (N, N - PAIRS)):
        memory, disk = first_rows("memory", most), first_rows("disk", most)
        assert all(torch.equal(x, y) for x, y in zip(memory, disk, strict=True))
        assert len(memory[0]) == count


@pytest.mark.parametrize("index", ["Flat", "IVF4,Flat", "auto"])
def test_the_graph_of_rows_on_disk_is_that_in_memory(store, sample, monkeypatch, index):
    """Also where they are added and searched for in blocks."""
    monkeypatch.setattr(neighbors, "EXACT_POINTS", 100)
    how = neighbors.SearchSettings(index=index)
    memory = load_modality(store, sample.pairs_a, sample.pool_a)
    disk = load_modality(store, sample.pairs_a, sample.pool_a, on_disk=True)
    whole = neighbors.knn_graph(memory.pool, 4, how=how)
    mask = np.arange(len(memory.pool)) % 2 == 0
    part = memory.pool_subset(mask).pool_graph(3, lambda m, k: neighbors.knn_graph(m.pool, k))
    on_disk = neighbors.knn_graph(disk.pool, 4, how=how)
    assert torch.equal(on_disk.indices, whole.indices)
    assert torch.equal(on_disk.distances2, whole.distances2)
    again = disk.pool_subset(mask).pool_graph(3, lambda m, k: neighbors.knn_graph(m.pool, k))
    assert torch.equal(again.indices, part.indices)
    monkeypatch.setattr(neighbors, "BLOCK", 64)
    blocked = neighbors.knn_graph(disk.pool, 4, how=how)
    np.testing.assert_allclose(blocked.distances2, whole.distances2, atol=1e-5)


def test_auto_stays_on_disk_where_memory_is_short(monkeypatch):
    monkeypatch.setattr(stored_rows, "free_memory", lambda: 1600)
    assert not stay_on_disk("auto", 100)  # 400 bytes are a quarter
    assert stay_on_disk("auto", 101)
    assert stay_on_disk("disk", 1)
    assert not stay_on_disk("memory", 10**12)


def test_free_memory_is_what_the_system_tells():
    total = int(Path("/proc/meminfo").read_text(encoding="utf-8").split()[1]) * 1024
    assert 0 < stored_rows.free_memory() < total
