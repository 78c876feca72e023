from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from gera_lightning.embedding.corpus import FolderOfFiles, Manifest, TableCorpus, shuffled
from gera_lightning.utils.errors import UserError

RECORDS = [
    {
        "item": "x",
        "path": "x.wav",
        "text": "one, with a comma",
        "split": "train",
        "speaker": "s1",
        "n": "7",
    },
    {
        "item": "y",
        "path": "sub/y.wav",
        "text": "NA",
        "split": "validation",
        "speaker": "s2",
        "n": "8",
    },
    {
        "item": "x",
        "path": "x.wav",
        "text": "another caption",
        "split": "train",
        "speaker": "s1",
        "n": "9",
    },
    {"item": "z", "path": "z.wav", "text": "  ", "split": "test", "speaker": "s2", "n": "10"},
]


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
    assert corpus.raw(found.rows.iloc[1]) == "NA"


def test_a_sound_with_two_captions_is_one_row(tmp_path: Path):
    corpus = Manifest(write(tmp_path, "csv"), "audio", splits={"validation": "train"})
    rows = corpus.listing().rows
    assert rows["item"].tolist() == ["x", "y", "z"]
    assert [corpus.raw(row) for row in rows.to_dict("records")] == [
        tmp_path / "x.wav",
        tmp_path / "sub" / "y.wav",
        tmp_path / "z.wav",
    ]


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
    with pytest.raises(UserError, match=r"path.test='nowhere.csv'"):
        Manifest({"train": tmp_path / "train.csv", "test": "nowhere.csv"}, "text")


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
    ("options", "message"),
    [
        (
            {"columns": {"texts": "n"}},
            "columns.texts is not a column of a store; did you mean 'text'",
        ),
        ({"columns": {"item": "itme"}}, "columns.item='itme'.*did you mean 'item'"),
        ({"columns": {"item": "{itme}"}}, "'itme' is no column"),
        ({}, "split 'validation' is not one of"),
        ({"modality": "sound"}, "modality='sound' is not one of text, audio, image"),
        ({"root": "nowhere"}, "root='nowhere': there is no such folder"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, options: dict, message: str):
    with pytest.raises(UserError, match=message):
        Manifest(write(tmp_path, "csv"), **{"modality": "text", **options}).listing()


def test_a_table_without_items_says_how_to_name_them(tmp_path: Path):
    path = write(tmp_path, "csv", [{"id": "1", "text": "one"}])
    with pytest.raises(
        UserError, match=r"no column 'item' \(has id, text\): name it, columns.item=THEIRS"
    ):
        Manifest(path, "text").listing()
    assert Manifest(path, "text", columns={"item": "id"}).listing().rows["item"].tolist() == ["1"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.xlsx", b"", "ends in .csv, .tsv, .jsonl or .parquet"),
        ("t.jsonl", b'{"item": "x", "te', "not readable as a table"),
        ("t.parquet", b"PAR1 cut", "not readable as a table"),
        ("t.csv", b"item,text\n\xff\xfe,\n", "not readable as a table"),
        ("t.csv", b"item,text\n", "no column"),
        (
            "t.csv",
            b'item,text\nx,"one, two"\ny,a cat, asleep\n',
            "line 3 has more fields than the header: quote texts with commas",
        ),
        (
            "t.tsv",
            b"item\ttext\nx\tone\ttwo\n",
            "line 2 has more fields than the header: quote texts with tabs",
        ),
        ("t.csv", b"item,text\nx,\n", "no text items .1 are left out, the first: no text"),
    ],
)
def test_a_damaged_table_is_named(tmp_path: Path, name: str, content: bytes, message: str):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        Manifest(tmp_path / name, "text").listing()


def test_a_repeated_row_is_refused(tmp_path: Path):
    path = write(
        tmp_path,
        "csv",
        [{"row": "r", "item": "x", "text": "a"}, {"row": "r", "item": "y", "text": "b"}],
    )
    with pytest.raises(UserError, match="row 'r' stands there twice"):
        Manifest(path, "text").listing()


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
    assert sounds.raw(sounds.listing().rows.iloc[0]) == tmp_path / "a" / "1.WAV"
    assert texts.listing().rows[["item", "text"]].to_dict("list") == {
        "item": ["a/1", "b/2"],
        "text": ["a/1.txt", "b/2.txt"],
    }
    assert [(s.item, s.reason.split(" (")[0]) for s in texts.listing().skipped] == [
        ("a/3", "not readable as text"),
        ("a/4", "no text"),
    ]


def test_a_folder_without_files_is_named(tmp_path: Path):
    with pytest.raises(UserError, match="no image items"):
        FolderOfFiles(tmp_path, "image").listing()


def test_a_corpus_says_what_it_is(tmp_path: Path):
    where = {"where": str(tmp_path), "root": str(tmp_path)}
    assert FolderOfFiles(tmp_path, "image").describe() == {
        "corpus": "FolderOfFiles",
        "modality": "image",
        **where,
    }
    path = write(tmp_path, "csv")
    (tmp_path / "other").mkdir()
    here, there = (
        Manifest(path, "audio").describe(),
        Manifest(path, "audio", root=tmp_path / "other").describe(),
    )
    assert (here["root"], there["root"]) == (str(tmp_path), str(tmp_path / "other"))
    assert Manifest(path, "text").describe() == {
        "corpus": "Manifest",
        "modality": "text",
        "where": str(path),
    }


def test_a_table_that_is_made_already_is_listed_as_it_is():
    rows = pd.DataFrame(
        {"row": ["r1", "r2"], "item": ["x", "y"], "text": ["one", "two"]}, index=[4, 2]
    )
    corpus = TableCorpus(rows, "text", {"name": "made", "licence": "free"})
    listed = corpus.listing()
    pd.testing.assert_frame_equal(listed.rows, rows.reset_index(drop=True))
    assert [corpus.raw(row) for row in listed.rows.to_dict("records")] == ["one", "two"]  # type: ignore[arg-type]
    assert corpus.describe() == {"name": "made", "licence": "free"}
    assert (
        TableCorpus(rows, "audio", {}, lambda row: row["row"].encode()).raw({"row": "r1"}) == b"r1"
    )
    with pytest.raises(UserError, match="'r1' stands there twice"):
        TableCorpus(rows.assign(row="r1"), "text", {})


def test_the_shuffled_order_is_of_names_and_salt_alone():
    rows = pd.DataFrame({"row": [f"r{n}" for n in range(50)], "value": range(50)})
    once = shuffled(rows, "a")
    assert once["row"].tolist() != rows["row"].tolist()
    pd.testing.assert_frame_equal(shuffled(rows.iloc[::-1], "a"), once)
    assert shuffled(rows, "b")["row"].tolist() != once["row"].tolist()
    assert sorted(once["value"]) == list(range(50))
    assert (once["row"] == "r" + once["value"].astype(str)).all()
