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
from gera_lightning.utils.errors import UserError

X = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
ITEMS = ["a", "b", "a", "c", "d", "e", "f"]


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
    with pytest.raises(UserError, match=r"holds 2 arrays of two dimensions.*name one, key="):
        import_store(tmp_path / "x.safetensors", tmp_path / "out")
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
    with pytest.raises(UserError, match="side='txt' is not one of image, text"):
        import_store(folder, tmp_path / "out", side="txt")
    pd.read_parquet(folder / "metadata" / "metadata_2.parquet").iloc[:1].to_parquet(
        folder / "metadata" / "metadata_2.parquet"
    )
    with pytest.raises(UserError, match="1 rows for 2 vectors"):
        import_store(folder, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == [], "the first part is taken back"
    (folder / "metadata" / "metadata_2.parquet").unlink()
    with pytest.raises(UserError, match=r"metadata_2.parquet: missing"):
        import_store(folder, tmp_path / "out2")
    with pytest.raises(UserError, match="no clip-retrieval folder"):
        import_store(tmp_path, tmp_path / "out3")


def test_rows_that_are_not_finite_are_named_and_left_out(tmp_path: Path):
    x = X.copy()
    x[1, 0], x[3, 2] = np.nan, 1e6
    np.save(tmp_path / "x.npy", x)
    store = import_store(tmp_path / "x.npy", tmp_path / "out", dtype="float16")
    assert store.rows["item"].tolist() == ["0", "2", "4", "5", "6"]
    assert store.manifest["source"]["skipped"] == 2
    lines = [
        json.loads(line) for line in (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()
    ]
    assert [(line["item"], line["reason"]) for line in lines] == [
        (n, "values that are not finite in float16") for n in ("1", "3")
    ]


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (lambda p: np.save(p / "x.npy", X[0]), {}, "not vectors"),
        (lambda p: np.save(p / "x.npy", np.array([["a"]])), {}, "not vectors"),
        (
            lambda p: np.save(p / "x.npy", np.array([[{}]], dtype=object), allow_pickle=True),
            {},
            "cannot be read",
        ),
        (lambda p: (p / "x.npy").write_bytes(b"cut"), {}, "cannot be read"),
        (lambda p: np.save(p / "x.npy", X), {"ids": "nowhere.csv"}, "there is no such file"),
        (lambda p: np.save(p / "x.npy", X), {"shard_rows": 0}, "shard_rows=0"),
        (lambda p: np.save(p / "x.npy", X), {"dtype": "int8"}, "dtype='int8'"),
        (
            lambda p: np.save(p / "x.npy", np.full((2, 2), np.nan)),
            {},
            "no vectors that can be kept",
        ),
        (lambda p: None, {}, "there is no such file or folder"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, make, options: dict, message: str):
    make(tmp_path)
    with pytest.raises(UserError, match=message):
        import_store(tmp_path / "x.npy", tmp_path / "out", **options)


def test_ids_must_fit_the_vectors(tmp_path: Path):
    np.save(tmp_path / "x.npy", X)
    (tmp_path / "ids.txt").write_text("a\nb\n")
    with pytest.raises(UserError, match="2 ids for 7 vectors"):
        import_store(tmp_path / "x.npy", tmp_path / "out", ids=tmp_path / "ids.txt")
    (tmp_path / "ids.csv").write_text("name\n" + "x\n" * 7)
    with pytest.raises(
        UserError, match=r"no column 'item' for item \(has name\): name it, columns.item=THEIRS"
    ):
        import_store(tmp_path / "x.npy", tmp_path / "out", ids=tmp_path / "ids.csv")
    (tmp_path / "ids.csv").write_text("item\n" + "x\n" * 6 + '""\n')
    with pytest.raises(UserError, match="empty values at position 6"):
        import_store(tmp_path / "x.npy", tmp_path / "out", ids=tmp_path / "ids.csv")


def test_rows_that_are_too_small_are_named_and_left_out(tmp_path: Path):
    x = X.copy()
    x[2], x[4] = 1e-9, 0
    np.save(tmp_path / "x.npy", x)
    store = import_store(tmp_path / "x.npy", tmp_path / "out", dtype="float16")
    assert store.rows["item"].tolist() == [
        "0",
        "1",
        "3",
        "4",
        "5",
        "6",
    ], "a row of zeros is what it was"
    [line] = [
        json.loads(line) for line in (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()
    ]
    assert (line["item"], line["reason"]) == ("2", "values that are too small for float16")


def test_vectors_are_not_imported_over_themselves(tmp_path: Path):
    np.save(tmp_path / "emb_0000.npy", X)
    before = (tmp_path / "emb_0000.npy").read_bytes()
    with pytest.raises(UserError, match=r"holds emb_0000\.npy, which is of no store"):
        import_store(tmp_path / "emb_0000.npy", tmp_path)
    assert (tmp_path / "emb_0000.npy").read_bytes() == before


def test_a_store_that_is_there_is_kept(tmp_path: Path):
    np.save(tmp_path / "x.npy", X)
    import_store(tmp_path / "x.npy", tmp_path / "out")
    with pytest.raises(UserError, match="holds a store already"):
        import_store(tmp_path / "x.npy", tmp_path / "out")


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
    (tmp_path / "split=train").mkdir()
    (tmp_path / "x.npy").rename(
        tmp_path / "split=train" / "x.npy"
    )  # as partitions of a data set are called
    assert (
        cli.main(["import", str(tmp_path / "split=train" / "x.npy"), str(tmp_path / "again")]) == 0
    )
    assert "7 rows of width 3" in capsys.readouterr().out
    for bad, message in (
        (words[:2], "takes two paths"),
        ([*words[:3], "id=x"], "did you mean 'ids'"),
    ):
        assert cli.main(bad) == 2
        assert message in capsys.readouterr().err
