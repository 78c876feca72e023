from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from gera_lightning import cli
from gera_lightning.data.importing import import_store
from gera_lightning.data.store import EmbeddingStore
from gera_lightning.utils.errors import UserError

X = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
ITEMS = ["a", "b", "a", "c", "d", "e", "f"]


def refused(source: Path, target: Path, names: object = None, **options: object) -> UserError:
    """The mistake that an import reports; its key is `names`, by default the source."""
    with pytest.raises(UserError) as caught:
        import_store(source, target, **options)
    assert caught.value.key == str(names or source)
    return caught.value


def test_npy_with_a_table_of_ids(tmp_path: Path):
    np.save(tmp_path / "x.npy", X)
    pd.DataFrame(
        {"id": ITEMS, "caption": [f"text {n}" for n in range(7)], "split": ["train"] * 6 + [""]}
    ).to_csv(tmp_path / "ids.csv", index=False)
    columns = {"item": "id", "text": "caption"}
    store = import_store(
        tmp_path / "x.npy",
        tmp_path / "out",
        ids=tmp_path / "ids.csv",
        columns=columns,
        encoder="mine",
        shard_rows=3,
    )
    np.testing.assert_array_equal(store.read(), X)
    assert store.manifest["dtype"] == "float32"
    assert [shard.count for shard in store.shards] == [3, 3, 1]
    assert store.rows["item"].tolist() == ITEMS
    assert store.rows["row"].tolist() == ["a-0", "b-0", "a-1", "c-0", "d-0", "e-0", "f-0"]
    assert store.rows["text"].tolist() == [f"text {n}" for n in range(7)]
    assert store.rows["split"].isna().tolist() == [False] * 6 + [True]
    assert store.encoder == {"name": "mine"}
    store.verify()


@pytest.mark.parametrize("suffix", ["txt", "jsonl", "parquet"])
def test_ids_in_each_format(tmp_path: Path, suffix: str):
    np.save(tmp_path / "x.npy", X.astype(np.float16))
    ids = tmp_path / f"ids.{suffix}"
    if suffix == "txt":
        ids.write_text("\n".join(ITEMS) + "\n")
    elif suffix == "jsonl":
        ids.write_text("".join(json.dumps({"item": item}) + "\n" for item in ITEMS))
    else:
        pd.DataFrame({"item": ITEMS}).to_parquet(ids)
    store = import_store(tmp_path / "x.npy", tmp_path / "out", ids=ids)
    assert store.rows["item"].tolist() == ITEMS
    assert store.manifest["dtype"] == "float16"


def test_ids_of_lines_are_those_of_the_file(tmp_path: Path):
    np.save(tmp_path / "v.npy", np.eye(3))
    (tmp_path / "ids.txt").write_bytes("\ufeffimg0\r\nimg\u20281\r\nimg2".encode())
    store = import_store(tmp_path / "v.npy", tmp_path / "s", ids=tmp_path / "ids.txt")
    assert store.rows["item"].tolist() == ["img0", "img\u20281", "img2"]


def test_ids_of_bytes_are_text(tmp_path: Path):
    np.savez(tmp_path / "v.npz", vectors=np.eye(2), ids=np.array(["a", "b"], dtype="S"))
    assert import_store(tmp_path / "v.npz", tmp_path / "s").rows["item"].tolist() == ["a", "b"]


def test_npz_brings_its_own_ids(tmp_path: Path):
    np.savez(
        tmp_path / "x.npz", embeddings=X.astype(np.float64), ids=np.array(ITEMS), note=np.arange(3)
    )
    store = import_store(tmp_path / "x.npz", tmp_path / "out")
    assert store.rows["item"].tolist() == ITEMS
    assert store.manifest["dtype"] == "float32"
    np.testing.assert_allclose(store.read(), X)


def test_without_ids_the_position_pairs(tmp_path: Path):
    np.save(tmp_path / "x.npy", X)
    assert import_store(tmp_path / "x.npy", tmp_path / "out").rows["item"].tolist() == [
        str(n) for n in range(7)
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_safetensors(tmp_path: Path, dtype: torch.dtype):
    tensor = torch.from_numpy(X).to(dtype)
    save_file(
        {"image": tensor, "text": tensor[:, :2].contiguous(), "scale": torch.ones(1)},
        tmp_path / "x.safetensors",
    )
    refused(tmp_path / "x.safetensors", tmp_path / "out")  # which of two
    refused(tmp_path / "x.safetensors", tmp_path / "out", key="imgae", names="key")
    store = import_store(tmp_path / "x.safetensors", tmp_path / "out", key="image")
    np.testing.assert_array_equal(store.read(), tensor.float().numpy())
    assert store.manifest["dtype"] == ("float16" if dtype == torch.float16 else "float32")


def clip_folder(folder: Path, keys: bool = True) -> Path:
    for name in ("img_emb", "text_emb", "metadata"):
        (folder / name).mkdir(parents=True)
    for number, part in ((0, slice(0, 4)), (2, slice(4, 6)), (10, slice(6, 7))):
        np.save(folder / "img_emb" / f"img_emb_{number}.npy", X[part].astype(np.float16))
        np.save(folder / "text_emb" / f"text_emb_{number}.npy", -X[part].astype(np.float16))
        table = pd.DataFrame(
            {"image_path": [f"{i}{n}.jpg" for n, i in enumerate(ITEMS)], "caption": ITEMS}
        )
        if keys:
            table["key"] = [f"k{n}" for n in range(7)]
        table.iloc[part].to_parquet(folder / "metadata" / f"metadata_{number}.parquet")
    return folder


@pytest.mark.parametrize("side", ["image", "text"])
def test_clip_retrieval_parts_come_in_the_order_of_their_numbers(tmp_path: Path, side: str):
    store = import_store(clip_folder(tmp_path / "clip"), tmp_path / "out", side=side)
    np.testing.assert_array_equal(
        store.read(), (X if side == "image" else -X).astype(np.float16).astype(np.float32)
    )
    assert store.rows["item"].tolist() == [f"k{n}" for n in range(7)]
    assert store.rows["text"].tolist() == ITEMS
    assert store.rows["path"].iloc[1] == "b1.jpg"


def test_clip_retrieval_without_keys_is_named_by_path(tmp_path: Path):
    store = import_store(clip_folder(tmp_path / "clip", keys=False), tmp_path / "out")
    assert store.rows["item"].tolist() == [f"{i}{n}.jpg" for n, i in enumerate(ITEMS)]


def test_a_clip_retrieval_folder_that_is_damaged_is_named(tmp_path: Path):
    folder = clip_folder(tmp_path / "clip")
    refused(folder, tmp_path / "out", names="side", side="txt")
    metadata = folder / "metadata" / "metadata_2.parquet"
    pd.read_parquet(metadata).iloc[:1].to_parquet(metadata)
    refused(folder, tmp_path / "out", names=metadata)
    assert list((tmp_path / "out").iterdir()) == [], "the first part is taken back"
    metadata.unlink()
    refused(folder, tmp_path / "out", names=metadata)
    refused(tmp_path, tmp_path / "out")  # no clip-retrieval folder


def test_rows_that_do_not_fit_are_named_and_left_out(tmp_path: Path):
    x = X.copy()
    x[1, 0], x[2], x[3, 2], x[4] = np.nan, 1e-9, 1e6, 0  # a row of zeros is what it was
    np.save(tmp_path / "x.npy", x)
    store = import_store(tmp_path / "x.npy", tmp_path / "out", dtype="float16")
    assert store.rows["item"].tolist() == ["0", "4", "5", "6"]
    assert store.manifest["source"]["skipped"] == 3
    text = (tmp_path / "out" / "skipped.jsonl").read_text()
    skipped = [json.loads(line) for line in text.splitlines()]
    assert [(entry["item"], entry["reason"]) for entry in skipped] == [
        ("1", "values that are not finite in float16"),
        ("2", "values that are too small for float16"),
        ("3", "values that are not finite in float16"),
    ]


@pytest.mark.parametrize(
    ("make", "options", "names"),
    [
        (lambda p: np.save(p, X[0]), {}, None),
        (lambda p: np.save(p, np.array([["a"]])), {}, None),
        (lambda p: np.save(p, np.array([[{}]], dtype=object), allow_pickle=True), {}, None),
        (lambda p: p.write_bytes(b"cut"), {}, None),
        (lambda p: np.save(p, np.full((2, 2), np.nan)), {}, None),  # nothing to keep
        (lambda p: None, {}, None),  # nothing there
        (lambda p: np.save(p, X), {"ids": "nowhere.csv"}, "ids"),
        (lambda p: np.save(p, X), {"shard_rows": 0}, "shard_rows"),
        (lambda p: np.save(p, X), {"dtype": "int8"}, "dtype"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, make, options: dict, names: str | None):
    make(tmp_path / "x.npy")
    refused(tmp_path / "x.npy", tmp_path / "out", names, **options)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("ids.txt", "a\nb\n"),  # too few
        ("ids.csv", "name\n" + "x\n" * 7),  # no items
        ("ids.csv", "item\n" + "x\n" * 6 + '""\n'),  # one without a name
    ],
)
def test_ids_must_fit_the_vectors(tmp_path: Path, name: str, content: str):
    np.save(tmp_path / "x.npy", X)
    (tmp_path / name).write_text(content)
    refused(tmp_path / "x.npy", tmp_path / "out", tmp_path / name, ids=tmp_path / name)


def test_nothing_is_written_over(tmp_path: Path):
    """Neither vectors that are imported into their own folder, nor a store."""
    np.save(tmp_path / "emb_0000.npy", X)
    before = (tmp_path / "emb_0000.npy").read_bytes()
    refused(tmp_path / "emb_0000.npy", tmp_path, names=tmp_path)
    assert (tmp_path / "emb_0000.npy").read_bytes() == before
    import_store(tmp_path / "emb_0000.npy", tmp_path / "out")
    refused(tmp_path / "emb_0000.npy", tmp_path / "out", names=tmp_path / "out")
    EmbeddingStore(tmp_path / "out").verify()


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    np.save(tmp_path / "x.npy", X)
    (tmp_path / "ids.csv").write_text("id\n" + "\n".join(ITEMS) + "\n")
    words = [
        "import",
        str(tmp_path / "x.npy"),
        str(tmp_path / "out"),
        f"ids={tmp_path / 'ids.csv'}",
        "columns.item=id",
    ]
    assert cli.main(words) == 0
    assert "7 rows of width 3" in capsys.readouterr().out
    partition = tmp_path / "split=train" / "x.npy"  # a path with "=" is a path
    partition.parent.mkdir()
    (tmp_path / "x.npy").rename(partition)
    assert cli.main(["import", str(partition), str(tmp_path / "again")]) == 0
    assert "7 rows of width 3" in capsys.readouterr().out
    for bad, named in ((words[:2], "gera import"), ([*words[:3], "id=x"], "'ids'")):
        assert cli.main(bad) == 2
        assert named in capsys.readouterr().err
