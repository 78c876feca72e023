from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from gera_lightning.data import store as module
from gera_lightning.data import verification
from gera_lightning.data.store import (
    EmbeddingStore,
    StoreWriter,
    cast_vectors,
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
    settings = {"encoder": ENCODER, "source": SOURCE, **settings}
    return write_store(path, x, table(len(x)), **settings)


def refused(key: object, make: Callable[[], object], value: object = None) -> UserError:
    """The mistake that `make` reports, which must be that of this key and value."""
    with pytest.raises(UserError) as caught:
        make()
    assert (caught.value.key, caught.value.value) == (str(key), value)
    return caught.value


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
    store = write(tmp_path / "s", dtype="float32", shard_rows=3)
    mask = np.arange(17) % 3 == 1
    np.testing.assert_array_equal(store.read(mask), vectors()[mask])
    np.testing.assert_array_equal(store.read(mask.tolist()), vectors()[mask])
    assert store.read([]).shape == (0, 5)
    with pytest.raises(IndexError):
        store.read(mask[:5])


@pytest.mark.parametrize("index", [17, -18, 10**9])
def test_an_index_beyond_the_store_is_no_row(tmp_path, index):
    opened = write(tmp_path / "s", shard_rows=4)
    with pytest.raises(IndexError):
        opened.read([0, index])


def test_the_folder_is_the_documented_layout(tmp_path):
    """Read with NumPy, pandas and json alone, as clip-retrieval and autofaiss do."""
    folder = tmp_path / "s"
    write(folder, dtype="float16", shard_rows=7)
    shards = [(f"emb_{n:04d}.npy", f"rows_{n:04d}.parquet") for n in range(3)]
    assert {path.name for path in folder.iterdir()} == {"manifest.json", *sum(shards, ())}
    manifest = json.loads((folder / "manifest.json").read_text())
    listed = manifest.pop("shards")
    assert manifest == {
        "format": "gera-embeddings",
        "version": 1,
        "dim": 5,
        "dtype": "float16",
        "count": 17,
        "encoder": ENCODER,
        "source": SOURCE,
    }
    assert [(shard["vectors"], shard["rows"]) for shard in listed] == shards
    parts = [np.load(folder / name) for name, _ in shards]
    tables = [pd.read_parquet(folder / name) for _, name in shards]
    assert [len(part) for part in parts] == [len(rows) for rows in tables] == [7, 7, 3]
    assert all(part.dtype == np.float16 and part.flags.c_contiguous for part in parts)
    np.testing.assert_array_equal(np.concatenate(parts), vectors().astype(np.float16))
    for shard in listed:
        for name in ("vectors", "rows"):
            content = (folder / shard[name]).read_bytes()
            assert hashlib.sha256(content).hexdigest() == shard[f"{name}_sha256"]


def test_item_alone_is_enough(tmp_path):
    """A mapping of lists or a table, no row names, no encoder, no source."""
    items, texts = ["x", "y", "x"], ["one", "two", "three"]
    as_lists = write_store(tmp_path / "l", vectors(3), {"item": items, "text": texts})
    as_table = write_store(tmp_path / "t", vectors(3), pd.DataFrame({"item": items, "text": texts}))
    assert as_lists.rows.to_dict("list") == {
        "row": ["x-0", "y-0", "x-1"],
        "item": items,
        "text": texts,
    }
    assert as_lists.data_hash == as_table.data_hash
    assert (as_lists.encoder, as_lists.manifest["source"]) == ({}, {"name": "unknown"})
    path = str(tmp_path / "l")
    assert repr(as_lists) == f"EmbeddingStore({path!r}, rows=3, width=5, encoder='unknown')"


def test_vectors_stay_on_the_disk_until_they_are_read(tmp_path):
    opened = write(tmp_path / "s", dtype="float32")
    opened.read([1])
    path = tmp_path / "s" / "emb_0000.npy"
    with path.open("r+b") as file:  # in place: a copy made at opening would not see it
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
    refused(path, lambda: EmbeddingStore(tmp_path / "s"))
    assert not sprung.exists()
    np.load(path, allow_pickle=True)
    assert sprung.exists()  # the trap works


def test_the_data_hash_is_of_contents_alone(tmp_path):
    hashes = {name: write(tmp_path / name, dtype="float32").data_hash for name in ("here", "there")}
    assert hashes["here"] == hashes["there"]
    assert write(tmp_path / "other", vectors(seed=1), dtype="float32").data_hash != hashes["here"]
    other_rows = table().assign(item="i0")
    changed = write_store(tmp_path / "rows", vectors(), other_rows, dtype="float32")
    assert changed.data_hash != hashes["here"]


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
    refused(tmp_path / "s" / name, opened.verify)
    assert not is_whole(tmp_path / "s")
    assert not is_whole(tmp_path / "nothing")


@pytest.mark.parametrize("how", ["cut", "gone"])
@pytest.mark.parametrize("name", ["emb_0001.npy", "rows_0001.parquet", "manifest.json"])
def test_a_store_with_a_broken_file_is_refused_by_name(tmp_path, name, how):
    write(tmp_path / "s", dtype="float32", shard_rows=7)
    damage(tmp_path / "s" / name, how)
    with pytest.raises(UserError, match=name):
        _ = EmbeddingStore(tmp_path / "s").rows


@pytest.mark.parametrize(
    ("change", "file"),
    [
        ({"format": "other"}, "manifest.json"),
        ({"version": 2}, "manifest.json"),
        ({"count": 16}, "manifest.json"),
        ({"dim": 6}, "emb_0000.npy"),
        ({"dim": "wide"}, "manifest.json"),
        ({"shards": [{"vectors": "x"}]}, "manifest.json"),
        ({"shards": None}, "manifest.json"),
        *(({key: ...}, "manifest.json") for key in ("format", "version", "dim", "count", "shards")),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(tmp_path, change, file):
    """Also one that lacks a key (...)."""
    write(tmp_path / "s", dtype="float32")
    path = tmp_path / "s" / "manifest.json"
    manifest = {**json.loads(path.read_text()), **change}
    path.write_text(json.dumps({key: v for key, v in manifest.items() if v is not ...}))
    refused(tmp_path / "s" / file, lambda: EmbeddingStore(tmp_path / "s"))


def test_vectors_of_another_type_are_refused(tmp_path):
    write(tmp_path / "s", dtype="float32")
    np.save(tmp_path / "s" / "emb_0000.npy", vectors().astype(np.float64))
    refused(tmp_path / "s" / "emb_0000.npy", lambda: EmbeddingStore(tmp_path / "s"))


def test_rows_that_do_not_match_the_vectors_are_refused(tmp_path):
    write(tmp_path / "s")
    table(16).to_parquet(tmp_path / "s" / "rows_0000.parquet")
    refused(tmp_path / "s" / "rows_0000.parquet", lambda: EmbeddingStore(tmp_path / "s").rows)


@pytest.mark.parametrize("how", ["bit", "cut", "gone", "noise"])
@pytest.mark.parametrize("name", ["emb_0001.npy", "rows_0001.parquet"])
def test_a_file_is_compared_with_its_checksum_before_it_is_read(tmp_path, name, how):
    write(tmp_path / "s", dtype="float32", shard_rows=7).read()
    path = tmp_path / "s" / name
    if how != "noise":
        damage(path, how)
    elif name.endswith(".npy"):
        np.save(path, np.load(path)[::-1])
    else:
        pd.read_parquet(path).iloc[::-1].to_parquet(path, index=False)

    def read() -> None:
        store = EmbeddingStore(tmp_path / "s")
        assert len(store.rows)
        store.read()

    refused(path, read)
    refused(path, read)  # what was refused is not kept as checked


def test_shards_that_are_not_read_are_not_checked(tmp_path):
    x = vectors()
    write(tmp_path / "s", x, dtype="float32", shard_rows=7)
    damage(tmp_path / "s" / "emb_0001.npy", "bit")
    store = EmbeddingStore(tmp_path / "s")
    np.testing.assert_array_equal(store.read([0, 16]), x[[0, 16]])
    refused(tmp_path / "s" / "emb_0001.npy", lambda: store.read([0, 7]))


def test_a_file_is_checked_once_until_it_changes(tmp_path, monkeypatch):
    hashed = []
    honest = verification.file_sha256
    monkeypatch.setattr(
        verification, "file_sha256", lambda path: hashed.append(Path(path).name) or honest(path)
    )
    write(tmp_path / "s", dtype="float32", shard_rows=7)
    for _ in range(2):
        EmbeddingStore(tmp_path / "s").read()
    assert sorted(hashed) == ["emb_0000.npy", "emb_0001.npy", "emb_0002.npy"]
    os.utime(tmp_path / "s" / "emb_0001.npy")
    EmbeddingStore(tmp_path / "s").read()
    assert hashed[3:] == ["emb_0001.npy"]


@pytest.mark.parametrize("cache", ["unwritable", "damaged"])
def test_a_store_is_read_without_a_cache_too(tmp_path, monkeypatch, cache):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if cache == "unwritable":
        (tmp_path / "cache").write_text("a file")
    write(tmp_path / "s").read()
    for file in (tmp_path / "cache").rglob("*.json"):
        file.write_text("[]" if cache == "damaged" else "")
    assert len(EmbeddingStore(tmp_path / "s").read()) == 17


@pytest.mark.parametrize("name", ["../s/emb_0000.npy", "/etc/passwd", "", ".."])
@pytest.mark.parametrize("key", ["vectors", "rows"])
def test_files_of_a_store_lie_in_its_folder(tmp_path, key, name):
    write(tmp_path / "s")
    path = tmp_path / "s" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["shards"][0][key] = name
    path.write_text(json.dumps(manifest))
    refused(path, lambda: EmbeddingStore(tmp_path / "s"))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_vector_that_is_not_finite_is_named_when_it_is_read(tmp_path, bad):
    x = vectors()
    x[9, 2] = x[12, 0] = bad
    opened = write(tmp_path / "s", x, dtype="float32", shard_rows=7)
    np.testing.assert_array_equal(opened.read(range(9)), x[:9])
    error = refused(tmp_path / "s", lambda: opened.read([0, 12, 9]))
    assert "2 vectors" in error.problem
    assert "'r12'" in error.problem


def test_folders_of_stores_are_found(tmp_path):
    for name in ("layers/layer_02", "layers/layer_10", "alone"):
        write(tmp_path / name)
    (tmp_path / "layers" / "notes").mkdir()
    layers = store_folders(tmp_path / "layers")
    assert [folder.name for folder in layers] == ["layer_02", "layer_10"]
    assert store_folders(tmp_path / "alone") == [tmp_path / "alone"]
    assert store_folders(tmp_path / "nothing") == []
    for path, remedy in (("layers", "layer_02, layer_10"), ("nothing", "check the path")):
        with pytest.raises(UserError) as caught:
            EmbeddingStore(tmp_path / path)
        assert remedy in caught.value.remedy


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no disk that is always full")
@pytest.mark.parametrize("name", ["emb_0001.npy", "rows_0001.parquet"])
def test_a_disk_that_is_full_is_told_with_the_file(tmp_path, name):
    writer = StoreWriter(tmp_path / "s")
    writer.append(vectors(), table())
    (tmp_path / "s" / name).symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as caught:
        writer.append(vectors(), table(start=17))
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(tmp_path / "s" / name)
    (tmp_path / "s" / name).unlink()
    again = StoreWriter(tmp_path / "s")
    assert again.count == 17
    again.append(vectors(), table(start=17))
    assert len(again.finish(ENCODER, SOURCE).read()) == 34


# ---- the contract of rows ----


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"item": ...}, "'item'"),
        ({"item": ["a", None, "b"]}, "'item' at position 1"),
        ({"row": ["a", "b", np.nan]}, "'row' at position 2"),
        ({"item": [7, 8, 9]}, "7 in column 'item'"),
        ({"row": ["a", "b", "a"]}, "'a' twice"),
        ({"split": ["train", "test", "tset"]}, "'tset'"),
    ],
)
def test_rows_that_break_the_contract_are_refused(tmp_path, change, found):
    rows = table(3).assign(**change)
    rows = rows.drop(columns=[column for column, values in change.items() if values is ...])
    error = refused("here", lambda: check_rows(rows, "here"))
    assert found in error.problem
    refused(tmp_path / "s", lambda: write_store(tmp_path / "s", vectors(3), rows))
    assert not (tmp_path / "s").exists()


def test_rows_without_a_name_are_refused():
    refused("here", lambda: check_rows(table(3).drop(columns="row"), "here"))


def test_all_splits_and_further_columns_pass():
    check_rows(table(4).assign(split=["train", "test", "both", "unused"], weight=1.5), "here")


def test_a_row_that_is_in_two_shards_is_found(tmp_path):
    writer = StoreWriter(tmp_path / "s")
    for _ in range(2):
        writer.append(vectors(3), table(3))
    store = writer.finish(ENCODER, SOURCE)
    assert "'r0'" in refused(tmp_path / "s", lambda: store.rows).problem


@pytest.mark.parametrize(
    ("name", "split", "problem"),
    [
        ("robot", "train", "outside of split"),
        ("robot", None, "outside of split"),
        ("unseen", "test", "'unseen'"),
        ("a/b", "test", "'a/b'"),
    ],
)
def test_rows_of_a_condition_are_named_test_rows(tmp_path, name, split, problem):
    rows = table(4).assign(
        condition=[None, None, name, None], split=["train", "test", split, "test"]
    )
    assert (
        problem
        in refused(tmp_path / "s", lambda: write_store(tmp_path / "s", vectors(4), rows)).problem
    )
    fine = rows.assign(condition=[None, "robot", None, "robot"])
    assert write_store(tmp_path / "s", vectors(4), fine).rows["condition"].tolist()[1] == "robot"


# ---- number formats ----


def test_cast_vectors_equals_a_loop_over_rows_and_layers():
    scales = 10.0 ** np.random.default_rng(0).integers(-12, 8, (40, 3, 1))
    x = np.random.default_rng(1).normal(size=(40, 3, 2)) * scales
    x[3] = 0
    cast = cast_vectors(x, "float16")
    for row, not_finite, underflows in zip(x, cast.not_finite, cast.underflows, strict=True):
        halves = [[np.float16(np.clip(value, -6e4, 6e4)) for value in layer] for layer in row]
        assert not_finite == any(abs(value) >= 65_520 for layer in row for value in layer)
        lost = [any(layer) and not any(half) for layer, half in zip(row, halves, strict=True)]
        assert underflows == any(lost)
    assert cast.usable.tolist() == (~(cast.not_finite | cast.underflows)).tolist()
    assert len(cast.reasons) == (~cast.usable).sum() > 5
    assert cast_vectors(x, "float32").usable.all()


@pytest.mark.parametrize("value", [65_520, -1e6, 1e-9])  # 65,520 is the least that is infinite
def test_values_that_do_not_fit_float16_are_refused(tmp_path, value):
    x = vectors()
    x[9], x[3, 1] = 0, np.inf  # what is not finite already is a matter of reading
    x[9, 2] = value
    make = lambda: write(tmp_path / "s", x, dtype="float16", shard_rows=7)  # noqa: E731
    assert "'r9'" in refused("dtype", make, "float16").problem
    np.testing.assert_array_equal(write(tmp_path / "s", x, dtype="float32").read([9]), x[9:10])
    x[9, 2] = 65_519
    assert write(tmp_path / "half", x, dtype="float16").read([9])[0, 2] == 65_504


# ---- writing ----


def test_a_store_is_never_written_over(tmp_path):
    write(tmp_path / "s", dtype="float32")
    refused(tmp_path / "s", lambda: write(tmp_path / "s", vectors(seed=1)))
    np.testing.assert_array_equal(EmbeddingStore(tmp_path / "s").read(), vectors())


@pytest.mark.parametrize(
    ("settings", "key", "value"),
    [
        ({"dtype": "float64"}, "dtype", "float64"),
        ({"shard_rows": 0}, "shard_rows", 0),
        ({"encoder": "mine"}, "encoder", "mine"),
        ({"source": ["x"]}, "source", ["x"]),
    ],
)
def test_a_mistake_is_named_before_anything_is_written(tmp_path, settings, key, value):
    refused(key, lambda: write(tmp_path / "s", **settings), value)
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    "x",
    [
        vectors(3),
        vectors(4)[0],
        vectors(4).astype(np.complex64),
        vectors(4)[:, :0],
        np.full((4, 2), "x"),
    ],
)
def test_what_is_no_vector_for_each_row_is_refused(tmp_path, x):
    writer = StoreWriter(tmp_path / "s")
    refused(tmp_path / "s", lambda: writer.append(x, table(4)))
    writer.append(vectors(4).tolist(), table(4))
    refused(tmp_path / "s", lambda: writer.append(vectors(4, d=6), table(4, start=4)))


@pytest.mark.parametrize("count", [0, 8, 10])
def test_as_many_vectors_as_rows_are_asked_for(tmp_path, count):
    """Also where the numbers of each shard would agree: 10 vectors, 8 rows, 4 per shard."""
    x, rows = vectors(count), table(18 - count if count else 0)
    refused(tmp_path / "s", lambda: write_store(tmp_path / "s", x, rows, shard_rows=4))


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
    refused(tmp_path / "s", lambda: write(tmp_path / "s", vectors(3, seed=1)))
    assert {p.name: p.read_bytes() for p in (tmp_path / "s").iterdir() if p.is_file()} == before


@pytest.mark.parametrize("name", ["emb_0000.npy", "rows_0003.parquet"])
def test_files_that_no_writer_left_are_not_written_over(tmp_path, name):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / name).write_bytes(b"theirs")
    assert name in refused(tmp_path / "s", lambda: write(tmp_path / "s")).problem
    assert [(p.name, p.read_bytes()) for p in (tmp_path / "s").iterdir()] == [(name, b"theirs")]


def test_a_writer_that_was_killed_within_its_first_shard_is_no_hindrance(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("gera_lightning.data.store.file_sha256", lambda path: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            write(tmp_path / "s")
    assert (tmp_path / "s" / "emb_0000.npy").exists()
    write(tmp_path / "s").verify()
