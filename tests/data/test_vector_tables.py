"""Vectors in tables: Parquet files, and what `datasets` saves to disk, written here as it writes
it.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gera_lightning import cli
from gera_lightning.data.importing import import_store
from gera_lightning.utils.errors import UserError

X = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
ITEMS = ["a", "b", "a", "c", "d", "e", "f"]


def table(x=X, **columns) -> pa.Table:
    """Vectors as lists in a column `embedding`."""
    return pa.table({"embedding": pa.array(list(x), type=pa.list_(pa.float32())), **columns})


def saved(folder: Path, *parts: pa.Table, batch: int = 2, **state) -> Path:
    """A split as `Dataset.save_to_disk` lays it out: Arrow streams of small batches, named in
    `state.json`.
    """
    folder.mkdir(parents=True)
    names = [f"data-{n:05d}-of-{len(parts):05d}.arrow" for n in range(len(parts))]
    for name, part in zip(names, parts, strict=True):
        with (
            pa.OSFile(str(folder / name), "wb") as file,
            pa.ipc.new_stream(file, part.schema) as stream,
        ):
            stream.write_table(part, max_chunksize=batch)
    (folder / "state.json").write_text(
        json.dumps({"_data_files": [{"filename": name} for name in names], **state})
    )
    (folder / "dataset_info.json").write_text("{}")
    return folder


def test_a_parquet_file_with_its_columns(tmp_path):
    pq.write_table(
        table(id=ITEMS, text=[f"t{n}" for n in range(7)], other=[b"x"] * 7), tmp_path / "x.parquet"
    )
    store = import_store(tmp_path / "x.parquet", tmp_path / "out", columns={"item": "id"})
    np.testing.assert_array_equal(store.read(), X)
    assert store.rows["item"].tolist() == ITEMS
    assert store.rows["row"].tolist() == ["a-0", "b-0", "a-1", "c-0", "d-0", "e-0", "f-0"]
    assert store.rows["text"].tolist() == [f"t{n}" for n in range(7)]
    assert set(store.rows) == {"row", "item", "text"}
    store.verify()


@pytest.mark.parametrize(
    ("kind", "given", "kept"),
    [
        (pa.list_(pa.float64()), np.float64, "float32"),
        (pa.large_list(pa.float16()), np.float16, "float16"),
        (pa.list_(pa.float32(), 3), np.float32, "float32"),
        (pa.list_(pa.int8()), np.int8, "float32"),
    ],
)
def test_each_kind_of_list(tmp_path, kind, given, kept):
    x = np.round(X * 4).astype(given)
    folder = saved(
        tmp_path / "x", pa.table({"item": ITEMS, "vector": pa.array(list(x), type=kind)})
    )
    store = import_store(folder, tmp_path / "out")
    assert store.manifest["dtype"] == kept
    np.testing.assert_array_equal(store.read(), x)


def test_a_folder_of_parquet_files_is_one_store(tmp_path):
    for n, part in enumerate((slice(0, 4), slice(4, 7))):
        pq.write_table(
            table(X[part], item=ITEMS[part]), tmp_path / f"train-{n:05d}-of-00002.parquet"
        )
    store = import_store(tmp_path, tmp_path / "out")
    np.testing.assert_array_equal(store.read(), X)
    assert store.rows["item"].tolist() == ITEMS


def test_parts_of_a_folder_come_in_the_order_of_their_numbers(tmp_path):
    x = np.arange(48, dtype="float32").reshape(24, 2) + 1
    (tmp_path / "parts").mkdir()
    for part in range(12):
        rows = pa.array(x[2 * part : 2 * part + 2].tolist())
        pq.write_table(pa.table({"embedding": rows}), tmp_path / "parts" / f"part.{part}.parquet")
    (tmp_path / "parts" / "._part.3.parquet").write_bytes(b"another system's")
    store = import_store(tmp_path / "parts", tmp_path / "store")
    np.testing.assert_array_equal(store.read(), x)


def test_a_saved_dataset_small_batches_become_whole_shards(tmp_path):
    folder = saved(tmp_path / "x", table(X[:5], item=ITEMS[:5]), table(X[5:], item=ITEMS[5:]))
    store = import_store(folder, tmp_path / "out", shard_rows=4)
    assert [shard.count for shard in store.shards] == [4, 3]
    np.testing.assert_array_equal(store.read(), X)
    assert store.rows["item"].tolist() == ITEMS


def test_splits_of_a_saved_dataset_are_the_stores_others_are_left_out(tmp_path):
    for name, part in (("train", slice(0, 4)), ("validation", slice(4, 5)), ("test", slice(5, 7))):
        saved(tmp_path / "x" / name, table(X[part]))
    (tmp_path / "x" / "dataset_dict.json").write_text(
        json.dumps({"splits": ["train", "validation", "test"]})
    )
    store = import_store(tmp_path / "x", tmp_path / "out")
    np.testing.assert_array_equal(store.read(), X[[0, 1, 2, 3, 5, 6]])
    assert store.rows["split"].tolist() == ["train"] * 4 + ["test"] * 2
    expected = [*(f"train/{n}" for n in range(4)), "test/0", "test/1"]
    assert store.rows["item"].tolist() == expected


def test_one_split_alone_is_split_as_stores_without_one_are(tmp_path):
    saved(tmp_path / "x" / "train", table(X))
    (tmp_path / "x" / "dataset_dict.json").write_text(json.dumps({"splits": ["train"]}))
    assert "split" not in import_store(tmp_path / "x", tmp_path / "out").rows


def test_a_missing_vector_is_left_out_and_listed(tmp_path):
    vectors = pa.array([*X[:3].tolist(), None, *X[4:].tolist()], type=pa.list_(pa.float32()))
    pq.write_table(pa.table({"item": ITEMS, "v": vectors}), tmp_path / "x.parquet")
    store = import_store(tmp_path / "x.parquet", tmp_path / "out")
    np.testing.assert_array_equal(store.read(), np.delete(X, 3, 0))
    [line] = (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()
    assert json.loads(line)["item"] == "c"


def test_the_command(tmp_path, capsys):
    pq.write_table(
        pa.table({"a": list(X), "b": list(X[:, :2]), "item": ITEMS}), tmp_path / "x.parquet"
    )
    words = ["import", str(tmp_path / "x.parquet"), str(tmp_path / "out")]
    assert cli.main(words) == 2
    assert "(a, b): name one, key=" in capsys.readouterr().err
    assert cli.main([*words, "key=b"]) == 0
    assert "7 rows of width 2" in capsys.readouterr().out


def broken(folder: Path) -> Path:
    saved(folder, table(item=ITEMS))
    (folder / "data-00000-of-00001.arrow").write_bytes(b"no arrow")
    return folder


@pytest.mark.parametrize(
    ("make", "options", "named"),
    [
        (lambda f: saved(f, table(item=ITEMS)), {"key": "embeding"}, "'embedding'"),
        (lambda f: saved(f, pa.table({"item": ITEMS})), {}, "0 columns"),
        (lambda f: saved(f, table(item=ITEMS)), {"columns": {"item": "name"}}, "'name' for item"),
        (lambda f: saved(f, table(item=ITEMS)), {"ids": "ids.csv"}, "ids="),
        (lambda f: saved(f, table(), _indices_files=[{"filename": "i"}]), {}, "flatten_indices"),
        (lambda f: saved(f, pa.table({"v": [[1.0], [1.0, 2.0]]})), {}, "widths.*1 and 2"),
        (lambda f: saved(f, pa.table({"v": [[1.0], [2.0], [1.0, 2.0]]})), {}, "widths.*1 and 2"),
        (lambda f: saved(f, pa.table({"v": [None, None, [1.0]]})), {}, "first 2 rows"),
        (broken, {}, "cannot be read"),
    ],
)
def test_mistakes_name_what_is_wrong(tmp_path, make, options, named):
    with pytest.raises(UserError, match=named):
        import_store(make(tmp_path / "x"), tmp_path / "out", **options)
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.parametrize("description", ['{"splits": ["all"]}', "{}"])
def test_a_dataset_without_train_or_test_is_refused(tmp_path, description):
    saved(tmp_path / "x" / "all", table())
    (tmp_path / "x" / "dataset_dict.json").write_text(description)
    with pytest.raises(UserError) as caught:
        import_store(tmp_path / "x", tmp_path / "out")
    assert caught.value.key == str(tmp_path / "x")


def test_what_the_library_itself_saves(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"v": datasets.Sequence(datasets.Value("float32")), "item": datasets.Value("string")}
    )
    whole = datasets.Dataset.from_dict({"v": list(X), "item": ITEMS}, features=features)
    datasets.DatasetDict(
        {"train": whole.select([4, 1, 6, 2]), "test": whole.select([5])}
    ).save_to_disk(str(tmp_path / "x"))
    store = import_store(tmp_path / "x", tmp_path / "out")
    np.testing.assert_array_equal(store.read(), X[[4, 1, 6, 2, 5]])
    assert store.rows["item"].tolist() == ["d", "b", "f", "a", "e"]
