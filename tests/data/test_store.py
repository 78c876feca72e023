from __future__ import annotations

import hashlib
import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from gera_lightning.data import store as module
from gera_lightning.data.store import (
    EmbeddingStore,
    StoreWriter,
    check_rows,
    is_whole,
    store_folders,
    write_store,
)
from gera_lightning.utils.errors import UserError

ENCODER, SOURCE = {"name": "enc", "revision": "r1"}, {"name": "test", "licence": "none"}


def vectors(n: int = 17, d: int = 5, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


def table(n: int = 17, start: int = 0) -> pd.DataFrame:
    numbers = range(start, start + n)
    return pd.DataFrame(
        {
            "row": [f"r{i}" for i in numbers],
            "item": [f"i{i // 2}" for i in numbers],
            "label": [str(i % 3) for i in numbers],
        }
    )


def write(path: Path, x: np.ndarray | None = None, **settings: Any) -> EmbeddingStore:
    x = vectors() if x is None else x
    return write_store(path, x, table(len(x)), encoder=ENCODER, source=SOURCE, **settings)


# ---- what is written is read ----


@pytest.mark.parametrize("shard_rows", [1, 7, 17, 100])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_what_is_read_is_what_was_written(tmp_path, dtype, shard_rows):
    x = vectors()
    write(tmp_path / "s", dtype=dtype, shard_rows=shard_rows)
    opened = EmbeddingStore(tmp_path / "s")
    assert len(opened) == opened.count == 17
    assert opened.dim == 5
    out = opened.read()
    assert out.dtype == np.float32
    np.testing.assert_array_equal(out, x.astype(dtype).astype(np.float32))
    pd.testing.assert_frame_equal(opened.rows, table(), check_dtype=False)
    assert opened.encoder == ENCODER
    assert opened.manifest["source"] == SOURCE
    opened.verify()


@pytest.mark.parametrize("shard_rows", [1, 4, 100])
def test_rows_are_read_in_the_order_asked_for(tmp_path, shard_rows):
    x = vectors()
    opened = write(tmp_path / "s", dtype="float32", shard_rows=shard_rows)
    for wanted in ([3, 0, 16, 3], [], [16], list(range(16, -1, -1)), [-1, -17]):
        slow = np.array([x[i] for i in wanted]).reshape(-1, 5)
        np.testing.assert_array_equal(opened.read(wanted), slow)
        np.testing.assert_array_equal(opened.read(np.array(wanted, dtype=np.int64)), slow)
    np.testing.assert_array_equal(opened.read(slice(2, 15, 3)), x[2:15:3])


def test_a_mask_reads_the_rows_it_marks(tmp_path):
    x = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
    store = write_store(
        tmp_path / "s", x, table(7), encoder={}, source={}, dtype="float32", shard_rows=3
    )
    mask = np.arange(7) % 3 == 1
    np.testing.assert_array_equal(store.read(mask), x[mask])
    np.testing.assert_array_equal(store.read(mask.tolist()), x[mask])
    assert store.read([]).shape == (0, 3)
    with pytest.raises(IndexError):
        store.read(mask[:5])


@pytest.mark.parametrize("index", [17, -18, 10**9])
def test_an_index_beyond_the_store_is_no_row(tmp_path, index):
    opened = write(tmp_path / "s", shard_rows=4)
    with pytest.raises(IndexError):
        opened.read([0, index])


def test_the_folder_is_the_documented_layout(tmp_path):
    """Read with NumPy, pandas and json alone, as clip-retrieval and autofaiss do."""
    write(tmp_path / "s", dtype="float16", shard_rows=7)
    names = [
        f"{kind}_{i:04d}.{end}"
        for kind, end in (("emb", "npy"), ("rows", "parquet"))
        for i in range(3)
    ]
    assert sorted(p.name for p in (tmp_path / "s").iterdir()) == sorted([*names, "manifest.json"])
    manifest = json.loads((tmp_path / "s" / "manifest.json").read_text())
    assert {k: manifest[k] for k in ("format", "version", "dim", "dtype", "count")} == {
        "format": "gera-embeddings",
        "version": 1,
        "dim": 5,
        "dtype": "float16",
        "count": 17,
    }
    assert [s["count"] for s in manifest["shards"]] == [7, 7, 3]
    parts = []
    for shard in manifest["shards"]:
        part = np.load(tmp_path / "s" / shard["vectors"])
        assert part.dtype == np.float16
        assert part.flags.c_contiguous
        assert len(pd.read_parquet(tmp_path / "s" / shard["rows"])) == len(part) == shard["count"]
        for name in ("vectors", "rows"):
            assert (
                hashlib.sha256((tmp_path / "s" / shard[name]).read_bytes()).hexdigest()
                == shard[f"{name}_sha256"]
            )
        parts.append(part)
    np.testing.assert_array_equal(np.concatenate(parts), vectors().astype(np.float16))


def test_vectors_stay_on_the_disk_until_they_are_read(tmp_path):
    opened = write(tmp_path / "s", dtype="float32")
    path = tmp_path / "s" / "emb_0000.npy"
    with path.open(
        "r+b"
    ) as file:  # in place: a copy made when the store was opened would not see it
        file.seek(-4 * 5 * 17, os.SEEK_END)
        file.write(np.full(5, 42, dtype=np.float32).tobytes())
    np.testing.assert_array_equal(opened.read([0]), np.full((1, 5), 42))


@pytest.mark.parametrize("kind", ["an array of objects", "a bare pickle"])
def test_no_file_is_unpickled(tmp_path, kind):
    write(tmp_path / "s", dtype="float32")
    path, sprung = tmp_path / "s" / "emb_0000.npy", tmp_path / "sprung"

    class Trap:
        def __reduce__(self):
            return Path.touch, (sprung,)

    if kind == "a bare pickle":
        path.write_bytes(pickle.dumps(Trap()))
    else:
        np.save(path, np.array([Trap()], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match=r"emb_0000\.npy: cannot be read as a \.npy array"):
        EmbeddingStore(tmp_path / "s")
    assert not sprung.exists()
    np.load(path, allow_pickle=True)
    assert sprung.exists()  # the trap works


def test_the_data_hash_is_of_contents_alone(tmp_path):
    hashes = {name: write(tmp_path / name, dtype="float32").data_hash for name in ("here", "there")}
    assert hashes["here"] == hashes["there"]
    assert write(tmp_path / "other", vectors(seed=1), dtype="float32").data_hash != hashes["here"]
    changed = table().assign(item="i0")
    rows_only = write_store(
        tmp_path / "rows", vectors(), changed, encoder=ENCODER, source=SOURCE, dtype="float32"
    )
    assert rows_only.data_hash != hashes["here"]


# ---- damage ----


def damage(path: Path, how: str) -> None:
    data = path.read_bytes()
    if how == "gone":
        path.unlink()
    elif how == "cut":
        path.write_bytes(data[: len(data) // 2])
    else:
        path.write_bytes(data[:-30] + bytes([data[-30] ^ 1]) + data[-29:])


@pytest.mark.parametrize("how", ["bit", "cut", "gone"])
@pytest.mark.parametrize("name", ["emb_0001.npy", "rows_0001.parquet"])
def test_verify_finds_the_damaged_file(tmp_path, name, how):
    opened = write(tmp_path / "s", dtype="float32", shard_rows=7)
    opened.verify()
    assert is_whole(tmp_path / "s")
    damage(tmp_path / "s" / name, how)
    with pytest.raises(UserError, match=rf"{name}: .*restore or rebuild"):
        opened.verify()
    assert not is_whole(tmp_path / "s")
    assert not is_whole(tmp_path / "nothing")


@pytest.mark.parametrize("how", ["cut", "gone"])
@pytest.mark.parametrize("name", ["emb_0001.npy", "rows_0001.parquet", "manifest.json"])
def test_a_store_with_a_broken_file_is_refused_by_name(tmp_path, name, how):
    write(tmp_path / "s", dtype="float32", shard_rows=7)
    damage(tmp_path / "s" / name, how)
    with pytest.raises(UserError, match=name) as caught:
        _ = EmbeddingStore(tmp_path / "s").rows
    assert "build" in str(caught.value)  # build it, rebuild it


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": "other"}, ["format 'other'", "reads 'gera-embeddings' version 1"]),
        ({"version": 2}, ["version 2", "reads 'gera-embeddings' version 1"]),
        ({"count": 16}, ["count is 16", "17 vectors", "rebuild"]),
        ({"dim": 6}, ["(17, 5)", "(17, 6)", "rebuild"]),
        ({"dim": "wide"}, ["not a readable manifest", "rebuild"]),
        ({"shards": [{"vectors": "x"}]}, ["not a readable manifest", "rebuild"]),
        ({"shards": None}, ["not a readable manifest", "rebuild"]),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(tmp_path, change, words):
    write(tmp_path / "s", dtype="float32")
    path = tmp_path / "s" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError) as caught:
        EmbeddingStore(tmp_path / "s")
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize("key", ["format", "version", "dim", "count", "shards"])
def test_a_manifest_without_a_key_is_refused(tmp_path, key):
    write(tmp_path / "s")
    path = tmp_path / "s" / "manifest.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != key}))
    with pytest.raises(UserError, match=f"not a readable manifest.*{key}.*rebuild"):
        EmbeddingStore(tmp_path / "s")


def test_vectors_of_another_type_are_refused(tmp_path):
    write(tmp_path / "s", dtype="float32")
    np.save(tmp_path / "s" / "emb_0000.npy", vectors().astype(np.float64))
    with pytest.raises(UserError, match=r"float64.*float16 or float32"):
        EmbeddingStore(tmp_path / "s")


def test_rows_that_do_not_match_the_vectors_are_refused(tmp_path):
    write(tmp_path / "s")
    table(16).to_parquet(tmp_path / "s" / "rows_0000.parquet")
    with pytest.raises(UserError, match=r"rows_0000\.parquet: 16 rows for 17 vectors"):
        _ = EmbeddingStore(tmp_path / "s").rows


@pytest.mark.parametrize("path", ["nowhere", "."])
def test_no_store_is_named_with_its_remedy(tmp_path, path):
    with pytest.raises(
        UserError,
        match=r"no embedding store at .*manifest\.json is missing.*check the path, or build it",
    ):
        EmbeddingStore(tmp_path / path)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_vector_that_is_not_finite_is_named_when_it_is_read(tmp_path, bad):
    x = vectors()
    x[9, 2] = x[12, 0] = bad
    opened = write(tmp_path / "s", x, dtype="float32", shard_rows=7)
    np.testing.assert_array_equal(opened.read(range(9)), x[:9])
    with pytest.raises(UserError, match=r"2 vectors are not finite.*'r12'"):
        opened.read([0, 12, 9])


# ---- the contract of rows ----


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"row": None}, ["column 'row' is missing", "item, label"]),
        ({"item": None}, ["column 'item' is missing"]),
        ({"item": ["a", None, "b"]}, ["'item' has empty values at position 1"]),
        ({"row": ["a", "b", np.nan]}, ["'row' has empty values at position 2"]),
        ({"item": [7, 8, 9]}, ["'item' holds 7, not text", "'7'"]),
        ({"row": ["a", "b", "a"]}, ["row 'a' stands there twice", "unique"]),
        (
            {"split": ["train", "test", "tset"]},
            ["split 'tset' is not one of train, test, both, unused"],
        ),
    ],
)
def test_rows_that_break_the_contract_are_refused(tmp_path, change, words):
    rows = (
        table(3)
        .assign(**{k: v for k, v in change.items() if v is not None})
        .drop(columns=[k for k, v in change.items() if v is None])
    )
    for attempt in (
        lambda: check_rows(rows, "here"),
        lambda: write_store(tmp_path / "s", vectors(3), rows, encoder=ENCODER, source=SOURCE),
    ):
        with pytest.raises(UserError) as caught:
            attempt()
        assert all(word in str(caught.value) for word in words), caught.value
    assert not (tmp_path / "s").exists()


def test_all_splits_and_further_columns_pass():
    check_rows(table(4).assign(split=["train", "test", "both", "unused"], weight=1.5), "here")


def test_a_row_that_stands_in_two_shards_is_found(tmp_path):
    writer = StoreWriter(tmp_path / "s")
    for _ in range(2):
        writer.append(vectors(3), table(3))
    with pytest.raises(UserError, match="row 'r0' stands there twice"):
        _ = writer.finish(ENCODER, SOURCE).rows


# ---- writing ----


def test_a_store_is_never_written_over(tmp_path):
    write(tmp_path / "s", dtype="float32")
    with pytest.raises(
        UserError, match="holds a store already: remove it, or choose another folder"
    ):
        write(tmp_path / "s", vectors(seed=1))
    np.testing.assert_array_equal(EmbeddingStore(tmp_path / "s").read(), vectors())


def test_a_store_of_nothing_is_refused(tmp_path):
    with pytest.raises(UserError, match="nothing was written"):
        write(tmp_path / "s", vectors(0))


def test_an_unknown_dtype_is_refused(tmp_path):
    with pytest.raises(UserError, match="dtype='float64' is not one of float16, float32"):
        StoreWriter(tmp_path / "s", "float64")
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("x", [vectors(3), vectors(4)[0]])
def test_vectors_and_rows_must_match(tmp_path, x):
    with pytest.raises(UserError, match=r"one for each of 4 rows, got float32 \((3|5), ?\d*\)"):
        StoreWriter(tmp_path / "s").append(x, table(4))


@pytest.mark.parametrize("count", [8, 10])
def test_as_many_vectors_as_rows_are_asked_for(tmp_path, count):
    """Also where each shard's own numbers would agree: 10 vectors, 8 rows, 4 a shard."""
    with pytest.raises(UserError, match=f"{count} vectors for {18 - count} rows: one each"):
        write_store(
            tmp_path / "s",
            vectors(count),
            table(18 - count),
            encoder=ENCODER,
            source=SOURCE,
            shard_rows=4,
        )
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("value", [65_520, -1e6])  # 65,520 is the least that rounds to infinity
def test_values_beyond_float16_are_refused(tmp_path, value):
    x = vectors()
    x[9, 2], x[3, 1] = value, np.inf  # what is not finite already is a matter of reading
    with pytest.raises(
        UserError, match=r"row 'r9' has values beyond float16's 65504: write it with dtype=float32"
    ):
        write(tmp_path / "s", x, dtype="float16", shard_rows=7)
    np.testing.assert_array_equal(write(tmp_path / "s", x, dtype="float32").read([9]), x[9:10])
    x[9, 2] = 65_519
    assert write(tmp_path / "half", x, dtype="float16").read([9])[0, 2] == 65_504


@pytest.mark.parametrize(
    "where", ["before the vectors", "in the vectors", "before the record", "in the record"]
)
def test_an_interrupted_writer_goes_on_after_its_last_whole_shard(tmp_path, monkeypatch, where):
    whole = write(tmp_path / "whole", dtype="float32", shard_rows=7)
    x, rows, path = vectors(), table(), tmp_path / "s"
    writer = StoreWriter(path, "float32")
    writer.append(x[:7], rows[:7])

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if where == "before the vectors":
            patch.setattr(np, "save", killed)
        elif where == "in the vectors":
            patch.setattr(
                np, "save", lambda name, _: Path(name).write_bytes(b"\x93NUMPY half") and killed()
            )
        elif where == "before the record":
            patch.setattr(module, "replace_atomically", killed)
        else:
            patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            writer.append(x[7:14], rows[7:14])
    with pytest.raises(UserError, match="no embedding store"):  # not yet
        EmbeddingStore(path)
    again = StoreWriter(path, "float32")
    assert again.count == 7
    for start in range(again.count, 17, 7):
        again.append(x[start : start + 7], rows[start : start + 7])
    finished = again.finish(ENCODER, SOURCE)
    assert finished.data_hash == whole.data_hash
    finished.verify()
    assert not list(path.glob("shard_*.json"))


def test_a_writer_that_does_not_resume_starts_over(tmp_path):
    old = StoreWriter(tmp_path / "s", "float32")
    for start in (0, 7):
        old.append(vectors(7), table(7, start))
    np.save(tmp_path / "s" / "emb_0002.npy", vectors())  # a shard that was being written
    writer = StoreWriter(tmp_path / "s", "float32", resume=False)
    assert writer.count == 0
    writer.append(vectors(3, seed=1), table(3))
    np.testing.assert_array_equal(writer.finish(ENCODER, SOURCE).read(), vectors(3, seed=1))
    assert sorted(p.name for p in (tmp_path / "s").iterdir()) == [
        "emb_0000.npy",
        "manifest.json",
        "rows_0000.parquet",
    ]


def test_a_half_written_run_of_embed_is_not_written_over(tmp_path):
    (tmp_path / "s" / ".embed").mkdir(parents=True)
    StoreWriter(tmp_path / "s").append(vectors(7), table(7))
    before = {p.name: p.read_bytes() for p in (tmp_path / "s").iterdir() if p.is_file()}
    with pytest.raises(UserError, match="unfinished run of gera embed"):
        write(tmp_path / "s", vectors(3, seed=1))
    assert {p.name: p.read_bytes() for p in (tmp_path / "s").iterdir() if p.is_file()} == before


@pytest.mark.parametrize("name", ["emb_0000.npy", "rows_0003.parquet"])
def test_files_that_no_writer_left_are_not_written_over(tmp_path, name):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / name).write_bytes(b"theirs")
    with pytest.raises(UserError, match=rf"holds {name}, which is of no store"):
        write(tmp_path / "s")
    assert [(p.name, p.read_bytes()) for p in (tmp_path / "s").iterdir()] == [(name, b"theirs")]


def test_a_writer_that_was_killed_within_its_first_shard_is_no_hindrance(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("gera_lightning.data.store.file_sha256", lambda path: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            write(tmp_path / "s")
    assert (tmp_path / "s" / "emb_0000.npy").exists()
    write(tmp_path / "s").verify()


def test_folders_of_stores_are_found(tmp_path):
    for name in ("layers/layer_02", "layers/layer_10", "alone"):
        write(tmp_path / name)
    (tmp_path / "layers" / "notes").mkdir()
    assert [folder.name for folder in store_folders(tmp_path / "layers")] == [
        "layer_02",
        "layer_10",
    ]
    assert store_folders(tmp_path / "alone") == [tmp_path / "alone"]
    assert store_folders(tmp_path / "nothing") == []
    with pytest.raises(UserError, match="it holds layer_02, layer_10: name one of them"):
        EmbeddingStore(tmp_path / "layers")


@pytest.mark.parametrize(
    "x", [vectors(4).astype(np.complex64), vectors(4)[:, :0], np.full((4, 2), "x")]
)
def test_what_is_no_vector_is_refused(tmp_path, x):
    with pytest.raises(
        UserError, match=r"vectors must be real numbers \[n, D\], one for each of 4 rows"
    ):
        StoreWriter(tmp_path / "s").append(x, table(4))


def test_a_row_that_float16_would_lose_is_refused(tmp_path):
    x = vectors(4)
    x[2] *= 1e-9
    x[3] = 0  # is one already
    with pytest.raises(
        UserError,
        match=r"row 'r2' is too small for float16 and would be zero: write it with dtype=float32",
    ):
        StoreWriter(tmp_path / "s", "float16").append(x, table(4))
    StoreWriter(tmp_path / "s", "float32").append(x.tolist(), table(4))


def test_rows_that_were_changed_since_are_told(tmp_path, caplog):
    store = write(tmp_path / "s", vectors(), shard_rows=7)
    assert len(EmbeddingStore(tmp_path / "s").rows) == len(vectors())
    assert not caplog.records
    path = tmp_path / "s" / store.shards[1].rows
    changed = pd.read_parquet(path)
    changed.assign(item=changed["item"].to_numpy()[::-1]).to_parquet(path, index=False)
    assert len(EmbeddingStore(tmp_path / "s").rows) == len(vectors())
    assert [record.getMessage().split(" is not what")[0] for record in caplog.records] == [
        str(path)
    ]
