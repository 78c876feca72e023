from __future__ import annotations

import csv
import io
import json
import os
import unicodedata
from pathlib import Path

import pandas as pd
import pytest

from gera_lightning.embedding.corpus import FolderOfFiles, Manifest, shuffled
from gera_lightning.utils.errors import UserError

CAPTIONS = """item,path,text,split,speaker,n
x,x.wav,"one, with a comma",train,s1,7
y,sub/y.wav,NA,validation,s2,8
x,x.wav,another caption,train,s1,9
z,z.wav,  ,test,s2,10
"""
RECORDS = list(csv.DictReader(io.StringIO(CAPTIONS)))


def write(folder: Path, suffix: str, records: list[dict] = RECORDS) -> Path:
    path = folder / f"table.{suffix}"
    if suffix == "jsonl":
        path.write_text("".join(json.dumps(r) + "\n" for r in records))
    elif suffix == "parquet":
        pd.DataFrame(records).to_parquet(path)
    else:
        pd.DataFrame(records).to_csv(path, index=False, sep="\t" if suffix == "tsv" else ",")
    return path


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
def test_a_table_gives_a_row_a_text(tmp_path: Path, suffix: str):
    corpus = Manifest(
        write(tmp_path, suffix),
        "text",
        columns={"group": "speaker"},
        splits={"validation": "unused"},
    )
    found = corpus.listing()
    assert found.rows.to_dict("list") == {
        "row": ["x-0", "y-0", "x-1"],
        "item": ["x", "y", "x"],
        "path": ["x.wav", "sub/y.wav", "x.wav"],
        "text": ["one, with a comma", "NA", "another caption"],
        "group": ["s1", "s2", "s1"],
        "split": ["train", "unused", "train"],
    }
    assert [(s.row, s.item, s.path, s.reason) for s in found.skipped] == [
        ("z-0", "z", "z.wav", "no text")
    ]


def test_a_sound_with_two_captions_is_one_row(tmp_path: Path):
    corpus = Manifest(write(tmp_path, "csv"), "audio", splits={"validation": "train"})
    assert corpus.listing().rows["item"].tolist() == ["x", "y", "z"]


def test_a_path_may_be_a_pattern_of_columns(tmp_path: Path):
    (tmp_path / "audio").mkdir()
    path = write(tmp_path, "csv")
    corpus = Manifest(
        path,
        "audio",
        root=tmp_path / "audio",
        columns={"path": "{speaker}/{item}_{n}.flac"},
        splits={"validation": "train"},
    )
    assert corpus.listing().rows["path"].tolist() == [
        "s1/x_7.flac",
        "s2/y_8.flac",
        "s1/x_9.flac",
        "s2/z_10.flac",
    ]


def test_a_table_a_split(tmp_path: Path):
    for name in ("train", "test"):
        (tmp_path / f"{name}.csv").write_text(f"item,text\n{name}1,one\n{name}2,two\n")
    corpus = Manifest({"train": tmp_path / "train.csv", "test": tmp_path / "test.csv"}, "text")
    rows = corpus.listing().rows
    assert rows[["item", "split"]].to_numpy().tolist() == [
        ["train1", "train"],
        ["train2", "train"],
        ["test1", "test"],
        ["test2", "test"],
    ]
    assert corpus.describe()["where"] == f"{tmp_path / 'train.csv'}, {tmp_path / 'test.csv'}"
    with pytest.raises(UserError) as caught:
        Manifest({"train": tmp_path / "train.csv", "test": "nowhere.csv"}, "text")
    assert (caught.value.key, caught.value.value) == ("path.test", "nowhere.csv")


def test_numbers_in_a_table_are_names(tmp_path: Path):
    path = write(
        tmp_path,
        "jsonl",
        [{"item": 7, "text": "seven"}, {"item": 8, "text": None}, {"item": None, "text": "nobody"}],
    )
    found = Manifest(path, "text").listing()
    assert found.rows.to_dict("list") == {"row": ["7-0"], "item": ["7"], "text": ["seven"]}
    assert [s.reason for s in found.skipped] == ["no text", "no item"]


@pytest.mark.parametrize(
    ("options", "key", "value"),
    [
        ({"columns": {"texts": "n"}}, "columns.texts", None),
        ({"columns": {"item": "itme"}}, "columns.item", "itme"),
        ({"columns": {"item": "{itme}"}}, "columns.item", "{itme}"),
        ({}, "table.csv", None),  # the split `validation`
        ({"modality": "sound"}, "modality", "sound"),
        ({"root": "nowhere"}, "root", "nowhere"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, options: dict, key: str, value: str | None):
    with pytest.raises(UserError) as caught:
        Manifest(write(tmp_path, "csv"), **{"modality": "text", **options}).listing()
    assert (caught.value.key.rpartition("/")[2], caught.value.value) == (key, value)


def test_a_table_without_items_says_how_to_name_them(tmp_path: Path):
    path = write(tmp_path, "csv", [{"id": "1", "text": "one"}])
    with pytest.raises(UserError) as caught:
        Manifest(path, "text").listing()
    assert "columns.item=" in caught.value.remedy
    assert Manifest(path, "text", columns={"item": "id"}).listing().rows["item"].tolist() == ["1"]


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("t.xlsx", b"", ".jsonl or .parquet"),
        ("t.jsonl", b'{"item": "x", "te', "not readable"),
        ("t.parquet", b"PAR1 cut", "not readable"),
        ("t.csv", b"item,text\n\xff\xfe,\n", "not readable"),
        ("t.csv", b"item,text\n", "no column"),
        ("t.csv", b'item,text\nx,"one, two"\ny,a cat, asleep\n', "line 3.*commas"),
        ("t.tsv", b"item\ttext\nx\tone\ttwo\n", "line 2.*tabs"),
        ("t.csv", b"item,text\nx,\n", "no text items .1 are skipped, the first: no text"),
        ("t.csv", b"row,item,text\nr,x,a\nr,y,b\n", "'r' twice"),
    ],
)
def test_a_damaged_table_is_named(tmp_path: Path, name: str, content: bytes, found: str):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name}.*{found}"):
        Manifest(tmp_path / name, "text").listing()


def test_files_of_a_folder_pair_by_name(tmp_path: Path):
    for name in ("b/2.wav", "b/2.txt", "a/1.WAV", "a/1.txt", "a/notes.md", "a/3.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f" {name}\n")
    (tmp_path / "a" / "3.txt").write_bytes(b"\xff\xfe")
    (tmp_path / "a" / "4.txt").write_text("\n")
    sounds = FolderOfFiles(tmp_path, "audio", group=True)
    texts = FolderOfFiles(tmp_path, "text")
    assert sounds.listing().rows.to_dict("list") == {
        "row": ["a/1.WAV", "b/2.wav"],
        "item": ["a/1", "b/2"],
        "path": ["a/1.WAV", "b/2.wav"],
        "text": ["a/1.txt", "b/2.txt"],
        "group": ["a", "b"],
    }
    assert texts.listing().rows[["item", "text"]].to_dict("list") == {
        "item": ["a/1", "b/2"],
        "text": ["a/1.txt", "b/2.txt"],
    }
    assert [(s.item, s.reason.split(" (")[0]) for s in texts.listing().skipped] == [
        ("a/3", "not readable as text"),
        ("a/4", "no text"),
    ]


def test_linked_folders_are_entered_and_loops_are_not(tmp_path: Path):
    (tmp_path / "real" / "ben").mkdir(parents=True)
    (tmp_path / "real" / "ben" / "2.txt").write_text("a cat")
    (tmp_path / "top").mkdir()
    (tmp_path / "top" / "1.txt").write_text("a dog")
    (tmp_path / "top" / "ben").symlink_to(tmp_path / "real" / "ben")
    (tmp_path / "real" / "ben" / "up").symlink_to(tmp_path / "top")
    found = FolderOfFiles(tmp_path / "top", "text").listing()
    assert found.rows["item"].tolist() == ["1", "ben/2"]


def test_hidden_files_are_left_out_with_one_line(tmp_path: Path, caplog):
    for name in (
        "1.txt",
        "._1.txt",
        "__MACOSX/1.txt",
        "__MACOSX/2.txt",
        ".ipynb_checkpoints/1-checkpoint.txt",
        "a/.hidden/3.txt",
        ".DS_Store",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("a dog")
    assert FolderOfFiles(tmp_path, "text").listing().rows["item"].tolist() == ["1"]
    [record] = caplog.records
    assert "4 hidden files or folders" in record.getMessage()
    assert "._1.txt" in record.getMessage()


def test_files_are_in_the_order_of_their_numbers(tmp_path: Path):
    for number in (10, 2, 1):
        (tmp_path / f"part{number}").mkdir()
        (tmp_path / f"part{number}" / "9.txt").write_text("a dog")
        (tmp_path / f"part{number}" / "11.txt").write_text("a cat")
    assert FolderOfFiles(tmp_path, "text").listing().rows["item"].tolist() == [
        f"part{number}/{name}" for number in (1, 2, 10) for name in (9, 11)
    ]


def test_names_pair_however_their_accents_are_written(tmp_path: Path):
    (tmp_path / unicodedata.normalize("NFD", "café.wav")).write_bytes(b"sound")
    (tmp_path / unicodedata.normalize("NFC", "café.txt")).write_text("coffee")
    items = [FolderOfFiles(tmp_path, kind).listing().rows["item"][0] for kind in ("audio", "text")]
    assert items[0] == items[1]


def test_a_name_that_is_no_text_is_skipped_and_named(tmp_path: Path):
    for name in (b"\xff.txt", b"2.txt"):
        with open(os.fsencode(tmp_path) + b"/" + name, "w") as file:
            file.write("a dog")
    found = FolderOfFiles(tmp_path, "text").listing()
    assert found.rows["item"].tolist() == ["2"]
    [skipped] = found.skipped
    assert skipped.path == "\\udcff.txt"
    assert "half a character" in skipped.reason


def test_a_mark_before_a_transcript_is_no_part_of_it(tmp_path: Path):
    (tmp_path / "1.txt").write_bytes("\ufeffa dog runs\r\n".encode())
    assert FolderOfFiles(tmp_path, "text").listing().rows["text"].tolist() == ["a dog runs"]


def test_a_folder_without_files_is_named(tmp_path: Path):
    with pytest.raises(UserError) as caught:
        FolderOfFiles(tmp_path, "image").listing()
    assert caught.value.key == str(tmp_path)


def test_the_same_table_with_other_files_is_another_source(tmp_path: Path):
    path = write(tmp_path, "csv")
    (tmp_path / "other").mkdir()
    about = Manifest(path, "audio").describe()
    assert about["root"] == str(tmp_path)
    other = str(tmp_path / "other")
    assert Manifest(path, "audio", root=other).describe() == {**about, "root": other}
    assert "root" not in Manifest(path, "text").describe()


def test_the_shuffled_order_is_of_names_and_salt_alone():
    rows = pd.DataFrame({"row": [f"r{n}" for n in range(50)], "value": range(50)})
    once = shuffled(rows, "a")
    assert once["row"].tolist() != rows["row"].tolist()
    pd.testing.assert_frame_equal(shuffled(rows.iloc[::-1], "a"), once)
    assert shuffled(rows, "b")["row"].tolist() != once["row"].tolist()
    assert sorted(once["value"]) == list(range(50))
    assert (once["row"] == "r" + once["value"].astype(str)).all()
