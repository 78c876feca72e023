from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from gera_lightning.data.importing import rows_from
from gera_lightning.data.records import text_of
from gera_lightning.embedding.corpus import Manifest


@pytest.mark.parametrize(
    ("value", "words"),
    [
        *[
            (0, "0"),
            (0.0, "0"),
            (7.0, "7"),
            (np.float32(7), "7"),
            (np.int64(7), "7"),
            (0.5, "0.5"),
            (" a ", " a "),
            ("7.0", "7.0"),
        ],
        *[
            (False, "False"),
            (np.inf, "inf"),
            (None, None),
            (np.nan, None),
            (np.float32("nan"), None),
            ("", None),
            (" \n", None),
        ],
    ],
)
def test_a_value_of_a_table_in_words(value: object, words: str | None):
    assert text_of(value) == words


def test_numbered_items_are_the_same_in_a_corpus_and_in_an_import(tmp_path: Path):
    """Also item 0, and where a gap in the table makes floats of its numbers."""
    table = pd.DataFrame({"item": [0, 1, None], "text": ["a", "b", "c"]})
    assert table["item"].dtype == float
    table.to_parquet(tmp_path / "table.parquet")
    listed = Manifest(tmp_path / "table.parquet", "text").listing()
    assert listed.rows["item"].tolist() == ["0", "1"]
    assert [entry.reason for entry in listed.skipped] == ["no item"]
    assert rows_from(table.iloc[:2].to_dict("records"), {}, "here")["item"].tolist() == ["0", "1"]
