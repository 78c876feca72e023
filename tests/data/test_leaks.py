import numpy as np
import pandas as pd
import pytest

from gera_lightning.config import Config
from gera_lightning.config.schema import DataConfig
from gera_lightning.data.leaks import Leaks, row_codes
from gera_lightning.data.splits import split_items
from gera_lightning.experiment.paired_stores import Stores
from gera_lightning.utils.errors import UserError


def cloud(n: int, d: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


def test_codes_are_equal_where_rows_are():
    x = cloud(500, 7)
    x[1::2] = x[::2]
    assert len(np.unique(row_codes(x))) == 250
    assert len(np.unique(row_codes(np.eye(500, dtype=np.float32)))) == 500
    x[0, [2, 5]] = x[0, [5, 2]]  # the order of values counts
    assert row_codes(x)[0] != row_codes(x)[1]


def leaks_of(a: dict, b: dict) -> Leaks:
    tables = {"a": pd.DataFrame(a), "b": pd.DataFrame(b)}
    codes = {side: table.pop("code").to_numpy() for side, table in tables.items()}
    return Leaks.of(tables, codes, split_items(tables["a"], tables["b"]))


def test_an_item_leaks_where_both_its_rows_are_copies():
    items, split = ["i0", "i1", "i2", "i3"], ["train", "train", "test", "test"]
    rows = {"row": items, "item": items, "split": split}
    found = leaks_of({**rows, "code": [1, 2, 1, 2]}, {**rows, "code": [5, 6, 7, 6]})
    assert (found.rows["a"].tolist(), found.rows["b"].tolist()) == ([2, 3], [3])
    assert found.items.tolist() == ["i3"]


def test_a_copied_row_of_a_class_leaks_and_its_name_does_not():
    a = {
        "row": ["r0", "r1", "r2", "r3"],
        "item": ["seven", "six", "seven", "six"],
        "split": ["train", "train", "test", "test"],
        "code": [1, 2, 1, 3],
    }
    b = {"row": ["seven", "six"], "item": ["seven", "six"], "split": ["both"] * 2, "code": [8, 9]}
    found = leaks_of(a, b)
    assert found.items.tolist() == ["seven, row r2"]
    assert not len(found.rows["b"])


def test_runs_refuse_items_that_were_trained_on_and_tell_of_single_copies(make_store, caplog):
    split = ["test" if n < 20 else "train" for n in range(80)]
    x, y = cloud(80, 6), cloud(80, 5, seed=1)
    y[0] = y[40]
    a, b = make_store("x", x, split=split), make_store("y", y, split=split)
    config = Config(data=DataConfig(a=str(a.path), b=str(b.path)))
    Stores.open(config).check_rows()
    assert "y: 1 test rows are exact copies of train rows of other items" in caplog.text
    x[0] = x[40]
    config.data.a = str(make_store("again/x", x, split=split).path)
    with pytest.raises(UserError, match=r"1 test items are exact copies .* the first is 'i0000'"):
        Stores.open(config).check_rows()
