from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from gera_lightning.data import synthetic
from gera_lightning.data.store import EmbeddingStore
from gera_lightning.data.synthetic import SyntheticViews
from gera_lightning.utils.errors import UserError

SMALL = {"items": 300, "latent_dim": 2, "dim_a": 96, "dim_b": 48, "classes": 4}


def by_item(store: EmbeddingStore) -> tuple[np.ndarray, pd.DataFrame]:
    """Vectors and rows in the order of the items."""
    order = store.rows["item"].argsort().to_numpy()
    return store.read(order), store.rows.iloc[order].reset_index(drop=True)


def test_both_views_hold_the_same_items_once(tmp_path):
    a, b = SyntheticViews(**SMALL).stores(tmp_path)
    assert (len(a), a.dim, len(b), b.dim) == (300, 96, 300, 48)
    (_, rows_a), (_, rows_b) = by_item(a), by_item(b)
    assert rows_a["item"].is_unique
    assert rows_a["item"].tolist() == rows_b["item"].tolist()
    assert rows_a["label"].tolist() == rows_b["label"].tolist()
    for store in (a, b):
        store.verify()


def test_the_order_of_rows_tells_nothing(tmp_path):
    a, b = SyntheticViews(**SMALL).stores(tmp_path)
    places = [
        pd.Series(range(300), index=store.rows["item"]).sort_index().to_numpy() for store in (a, b)
    ]
    for one, other in (
        (places[0], places[1]),
        (places[0], np.arange(300)),
        (places[1], np.arange(300)),
    ):
        assert abs(np.corrcoef(one, other)[0, 1]) < 4 / np.sqrt(300)


def test_the_seed_fixes_everything_and_nothing_else_does(tmp_path):
    hashes = [
        [s.data_hash for s in SyntheticViews(**SMALL, seed=seed).stores(tmp_path / where)]
        for where, seed in (("x", 0), ("y", 0), ("x", 1))
    ]
    assert hashes[0] == hashes[1]
    assert not set(hashes[0]) & set(hashes[2])


def test_noise_has_the_norm_that_is_asked_for(tmp_path):
    clean = SyntheticViews(**SMALL, noise=0.0).stores(tmp_path)
    noisy = SyntheticViews(**SMALL, noise=0.5).stores(tmp_path)
    for one, other in zip(clean, noisy, strict=True):
        (signal, _), (seen, _) = by_item(one), by_item(other)
        # over random features the norm of the signal is 1 on average
        assert np.mean((signal**2).sum(1)) == pytest.approx(1, rel=0.3)
        assert np.mean(((seen - signal) ** 2).sum(1)) == pytest.approx(0.25, rel=0.05)


def test_views_share_their_points_and_not_their_noise(tmp_path):
    """What is left of one view when the clean view is taken away does not predict what is left of
    the other.
    """
    settings = {**SMALL, "dim_b": SMALL["dim_a"]}
    noise = []
    for one, other in zip(
        SyntheticViews(**settings, noise=0.0).stores(tmp_path),
        SyntheticViews(**settings, noise=0.5).stores(tmp_path),
        strict=True,
    ):
        noise.append(by_item(other)[0] - by_item(one)[0])
    assert abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 4 / np.sqrt(noise[0].size)


def test_without_noise_views_have_the_same_neighbours(tmp_path):
    """Both are smooth embeddings of one torus: near in one is near in the other, and labels are
    arcs, so neighbours share them.
    """
    a, b = (
        by_item(store)
        for store in SyntheticViews(**{**SMALL, "features": 2048}, noise=0.0, frequency=0.5).stores(
            tmp_path
        )
    )
    near = []
    for x, _ in (a, b):
        d2 = ((x[:, None] - x[None]) ** 2).sum(-1)
        np.fill_diagonal(d2, np.inf)
        near.append(d2.argsort(1)[:, :10])
    overlap = np.mean([len(set(one) & set(other)) / 10 for one, other in zip(*near, strict=True)])
    assert overlap > 0.6  # chance is 10 / 299
    label = a[1]["label"].to_numpy()
    assert (label[near[0]] == label[:, None]).mean() > 0.7  # chance is 1 / 4


def test_labels_are_equal_arcs(tmp_path):
    _, rows = by_item(SyntheticViews(**{**SMALL, "items": 4000}).stores(tmp_path)[0])
    share = rows["label"].value_counts(normalize=True)
    assert sorted(share.index) == ["0", "1", "2", "3"]
    assert (abs(share - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 4000)).all()


def test_many_shards_are_one_store(tmp_path, monkeypatch):
    monkeypatch.setattr(synthetic, "SHARD", 70)
    a, b = SyntheticViews(**SMALL).stores(tmp_path)
    assert [shard.count for shard in a.shards] == [70, 70, 70, 70, 20]
    (_, rows_a), (x, rows_b) = by_item(a), by_item(b)
    assert rows_a["item"].tolist() == rows_b["item"].tolist()
    assert rows_a["label"].tolist() == rows_b["label"].tolist()
    assert len(np.unique(x, axis=0)) == 300


def test_stores_are_kept(tmp_path):
    views = SyntheticViews(**SMALL)
    first = views.stores(tmp_path)
    times = [(store.path / "manifest.json").stat().st_mtime_ns for store in first]
    assert [(s.path / "manifest.json").stat().st_mtime_ns for s in views.stores(tmp_path)] == times
    other = SyntheticViews(**{**SMALL, "items": 299}).stores(tmp_path)
    assert len(other[0]) == 299
    assert len(EmbeddingStore(first[0].path)) == 300  # and the first are still there


def test_a_store_that_was_cut_off_is_made_again(tmp_path):
    views = SyntheticViews(**SMALL)
    _, b = views.stores(tmp_path)
    expected = b.data_hash
    (b.path / "manifest.json").unlink()
    (b.path / "emb_0000.npy").write_bytes(b"half")
    _, again = views.stores(tmp_path)
    again.verify()
    assert again.data_hash == expected


def test_two_at_once_make_one_store(tmp_path, monkeypatch):
    """The second waits for the first and then finds everything there."""
    written = []
    write = SyntheticViews._write

    def slow_write(views: SyntheticViews, path: Path, view: int, dim: int) -> None:
        written.append(view)
        time.sleep(0.05)  # long enough for the other to come in, if nothing kept it out
        write(views, path, view, dim)

    monkeypatch.setattr(SyntheticViews, "_write", slow_write)
    with ThreadPoolExecutor(2) as workers:
        hashes = list(
            workers.map(
                lambda _: [store.data_hash for store in SyntheticViews(**SMALL).stores(tmp_path)],
                range(2),
            )
        )
    assert written == [0, 1]
    assert hashes[0] == hashes[1]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *((key, 0) for key in ("items", "latent_dim", "dim_a", "dim_b", "features", "classes")),
        ("items", 1.5),
        ("noise", -0.1),
        ("frequency", 0.0),
    ],
)
def test_a_refused_setting_is_named(key, value):
    with pytest.raises(UserError) as caught:
        SyntheticViews(**{key: value})
    assert (caught.value.key, caught.value.value) == (key, value)


def test_a_nuisance_moves_rows_by_their_group_in_each_view_by_itself(tmp_path):
    plain = [by_item(store) for store in SyntheticViews(**SMALL).stores(tmp_path)]
    noisy = [by_item(store) for store in SyntheticViews(**SMALL, nuisance=2.0).stores(tmp_path)]
    for (x, _), (moved, rows) in zip(plain, noisy, strict=True):
        shift = moved - x
        for _, numbers in rows.groupby("group").indices.items():
            np.testing.assert_allclose(
                shift[numbers], np.broadcast_to(shift[numbers[0]], shift[numbers].shape), atol=1e-5
            )
        assert np.linalg.norm(shift, axis=1).mean() == pytest.approx(2, rel=0.1)
        assert rows["group"].nunique() == 16
    assert (noisy[0][1]["group"] == noisy[1][1]["group"]).mean() < 0.2
    with pytest.raises(UserError, match="nuisance=-1"):
        SyntheticViews(**SMALL, nuisance=-1)
