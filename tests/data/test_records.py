from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gera_lightning.data.importing import rows_from
from gera_lightning.data.records import text_of
from gera_lightning.embedding.corpus import Listing, Manifest
from gera_lightning.utils.errors import UserError


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


# ---- text files and tables, as other tools write them ----


def listed(path: Path, **columns: str) -> Listing:
    return Manifest(path, "text", columns=columns).listing()


def test_a_tsv_file_has_no_quotes(tmp_path: Path):
    """As Common Voice writes it: a text may begin with one."""
    texts = ["One.", '"Hello, he said.', "Two.", 'Say "no".', '"Good-bye.']
    lines = [f"{number}.mp3\t{text}" for number, text in enumerate(texts)]
    (tmp_path / "t.tsv").write_text("\n".join(["path\tsentence", *lines, ""]))
    found = listed(tmp_path / "t.tsv", item="path", text="sentence")
    assert found.rows["text"].tolist() == texts
    assert not found.skipped


@pytest.mark.parametrize(
    ("rows", "line"),
    [
        ('1,one\n2,"two\n3,three\n4,four\n', 3),
        ('1,one\n2,"two\n3,"three"\n', 3),
        ('1,"two\nlines"\n2,"A "sign" says"\n', 4),
    ],
)
def test_a_quote_that_is_left_open_names_its_line(tmp_path: Path, rows: str, line: int):
    (tmp_path / "t.csv").write_text("item,text\n" + rows)
    with pytest.raises(UserError) as error:
        listed(tmp_path / "t.csv")
    assert error.value.key == str(tmp_path / "t.csv")
    assert f"line {line} " in error.value.problem


def test_quoted_and_long_fields_of_a_csv_file_are_read(tmp_path: Path):
    texts = ['A sign says "STOP", twice', "two\nlines", "word " * 60_000 + "end"]
    pd.DataFrame({"item": ["1", "2", "3"], "text": texts}).to_csv(tmp_path / "t.csv", index=False)
    assert listed(tmp_path / "t.csv").rows["text"].tolist() == texts


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_marks_and_line_breaks_are_no_part_of_a_text(tmp_path: Path, mark: str, end: str):
    text = "a dog\u2028on\x85a\x0bhill"
    for name, lines in {
        "t.csv": ["item,text", f"im0,{text}"],
        "t.tsv": ["item\ttext", f"im0\t{text}"],
        "t.jsonl": [json.dumps({"item": "im0", "text": text}, ensure_ascii=False)],
    }.items():
        (tmp_path / name).write_bytes((mark + end.join([*lines, ""])).encode())
        rows = listed(tmp_path / name).rows
        assert rows[["item", "text"]].values.tolist() == [["im0", text]], name


@pytest.mark.parametrize(
    ("content", "line"), [('{"item": "1"}\n"img0"\n', 2), ("[1]\n", 1), ('{"item": "1"}\n{"it', 2)]
)
def test_a_line_of_json_that_is_no_mapping_is_named(tmp_path: Path, content: str, line: int):
    (tmp_path / "t.jsonl").write_text(content)
    with pytest.raises(UserError, match=f"line {line}") as error:
        listed(tmp_path / "t.jsonl")
    assert error.value.key == str(tmp_path / "t.jsonl")


# ---- values ----


def test_a_list_of_captions_is_a_row_each(tmp_path: Path):
    record = {"item": "im0", "text": ["a dog runs", "it's a dog"]}
    (tmp_path / "c.jsonl").write_text(json.dumps(record) + '\n{"item": "im1", "text": []}\n')
    pq.write_table(pa.Table.from_pylist([record]), tmp_path / "c.parquet")
    for name, skipped in (("c.jsonl", ["no text"]), ("c.parquet", [])):
        found = listed(tmp_path / name)
        assert found.rows.to_dict("list") == {
            "row": ["im0-0", "im0-1"],
            "item": ["im0", "im0"],
            "text": ["a dog runs", "it's a dog"],
        }
        assert [entry.reason for entry in found.skipped] == skipped


def test_whole_numbers_with_gaps_and_bytes_stay_what_they_are(tmp_path: Path):
    number = 4873214862074860544
    families = pa.array([number, number + 1, None], pa.int64())
    columns = {"item": pa.array([b"p", b"q", b"r"]), "text": [b"a dog", b"a cat", b"an owl"]}
    pq.write_table(pa.table({**columns, "family": families}), tmp_path / "t.parquet")
    rows = listed(tmp_path / "t.parquet").rows
    assert rows["item"].tolist() == ["p", "q", "r"]
    assert rows["text"].tolist() == ["a dog", "a cat", "an owl"]
    assert rows["family"].tolist()[:2] == [str(number), str(number + 1)]
    assert rows["family"].isna().tolist() == [False, False, True]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("half \ud83d", "its text is half a character"),
        (b"\xff\xfe", "its text is bytes that are no text"),
        ({"en": "a dog"}, "its text is a dict where one value belongs"),
    ],
)
def test_a_value_that_no_store_can_keep_skips_its_item_alone(value: object, reason: str):
    entries = [{"item": "1", "text": value}, {"item": "2", "text": "a cat"}]
    found = Listing.of(entries, "text", "here")
    assert found.rows["item"].tolist() == ["2"]
    assert [(entry.item, entry.reason) for entry in found.skipped] == [("1", reason)]
    with pytest.raises(UserError) as error:
        rows_from(entries, {}, "here")
    assert error.value.key == "here"
