from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest

from gera_lightning.embedding.layouts import CocoCaptions, FlickrCaptions, LibriSpeech, WebDataset
from gera_lightning.utils.errors import UserError


@pytest.fixture
def librispeech(tmp_path: Path) -> Path:
    for folder, lines in {
        "train-clean-100/19/198": ["19-198-0000 NORTHANGER ABBEY", "19-198-0001 THIS LITTLE WORK"],
        "train-clean-100/26/495": ["26-495-0000 THE FIRST"],
        "test-clean/61/70968": ["61-70968-0000 HE BEGAN", "61-70968-0001"],
        "dev-clean/84/121123": ["84-121123-0000 GO DO YOU HEAR"],
    }.items():
        path = tmp_path / folder
        path.mkdir(parents=True)
        name = "-".join(folder.split("/")[1:])
        (path / f"{name}.trans.txt").write_text("\n".join(lines) + "\n")
        for line in lines:
            (path / f"{line.split()[0]}.flac").touch()
    (tmp_path / "train-clean-100/26/495/26-495-0001.flac").touch()
    (tmp_path / "SPEAKERS.TXT").touch()
    return tmp_path


def test_librispeech_utterances(librispeech: Path):
    corpus = LibriSpeech(librispeech, "audio", sets=["train-clean-100", "test-clean"])
    found = corpus.listing()
    assert found.rows.to_dict("list") == {
        "row": ["19-198-0000", "19-198-0001", "26-495-0000", "61-70968-0000"],
        "item": ["19-198-0000", "19-198-0001", "26-495-0000", "61-70968-0000"],
        "path": [
            "train-clean-100/19/198/19-198-0000.flac",
            "train-clean-100/19/198/19-198-0001.flac",
            "train-clean-100/26/495/26-495-0000.flac",
            "test-clean/61/70968/61-70968-0000.flac",
        ],
        "text": ["NORTHANGER ABBEY", "THIS LITTLE WORK", "THE FIRST", "HE BEGAN"],
        "group": ["19", "19", "26", "61"],
        "family": ["19-198", "19-198", "26-495", "61-70968"],
        "split": ["train", "train", "train", "test"],
    }
    assert [(s.item, s.reason) for s in found.skipped] == [
        ("26-495-0001", "no transcript"),
        ("61-70968-0001", "no transcript"),
    ]


def test_librispeech_sets_of_one_side_give_no_split(librispeech: Path):
    corpus = LibriSpeech(librispeech, "text", sets=["train-clean-100", "dev-clean"])
    assert "split" not in corpus.listing().rows
    assert LibriSpeech(librispeech, "text").sets == ["dev-clean", "test-clean", "train-clean-100"]


def test_an_unknown_set_is_named(librispeech: Path):
    with pytest.raises(UserError, match="did you mean 'train-clean-100'") as caught:
        LibriSpeech(librispeech, "text", sets=["train-clean-10"])
    assert (caught.value.key, caught.value.value) == ("sets", "train-clean-10")


def coco(path: Path, numbers: list[int]) -> Path:
    images = [{"id": n, "file_name": f"{n:012d}.jpg"} for n in numbers]
    notes = [
        {"id": 10 * n + c, "image_id": n, "caption": f" picture {n}, caption {c}.\n"}
        for n in numbers
        for c in (1, 2)
    ]
    path.write_text(json.dumps({"info": {}, "images": images, "annotations": notes}))
    return path


def test_coco_images_and_captions(tmp_path: Path):
    (tmp_path / "train2017").mkdir()
    (tmp_path / "val2017").mkdir()
    captions = {
        "train": coco(tmp_path / "t.json", [9, 25]),
        "test": coco(tmp_path / "v.json", [139]),
    }
    folders = {"train": tmp_path / "train2017", "test": tmp_path / "val2017"}
    images, texts = (
        CocoCaptions(captions, folders, "image"),
        CocoCaptions(captions, folders, "text").listing().rows,
    )
    rows = images.listing().rows
    assert rows[["row", "item", "split"]].to_numpy().tolist() == [
        ["9", "9", "train"],
        ["25", "25", "train"],
        ["139", "139", "test"],
    ]
    assert images.raw(rows.iloc[2]) == tmp_path / "val2017" / "000000000139.jpg"
    assert texts["row"].tolist() == ["91", "92", "251", "252", "1391", "1392"]
    assert texts["item"].tolist() == ["9", "9", "25", "25", "139", "139"]
    assert texts["text"].iloc[1] == "picture 9, caption 2."
    assert texts["split"].tolist() == ["train"] * 4 + ["test"] * 2


def test_coco_without_splits_and_with_a_stray_caption(tmp_path: Path):
    path = coco(tmp_path / "c.json", [1, 2])
    content = json.loads(path.read_text())
    content["images"].pop()
    content["annotations"][0]["caption"] = ""
    path.write_text(json.dumps(content))
    found = CocoCaptions(path, tmp_path, "text").listing()
    assert "split" not in found.rows
    assert found.rows["row"].tolist() == ["12"]
    assert [(s.row, s.reason) for s in found.skipped] == [
        ("21", "its image is not listed in c.json"),
        ("22", "its image is not listed in c.json"),
        ("11", "no text"),
    ]


@pytest.mark.parametrize("content", ["{", "[]", '{"images": [{"id": 1}], "annotations": []}'])
def test_another_json_is_named(tmp_path: Path, content: str):
    (tmp_path / "c.json").write_text(content)
    with pytest.raises(UserError) as caught:
        CocoCaptions(tmp_path / "c.json", tmp_path, "image").listing()
    assert caught.value.key == str(tmp_path / "c.json")


def test_coco_splits_must_agree(tmp_path: Path):
    path = coco(tmp_path / "c.json", [1])
    for captions, modality, key in (
        ({"train": path}, "image", "images"),
        ({"test": "nowhere.json"}, "text", "captions.test"),
    ):
        with pytest.raises(UserError) as caught:
            CocoCaptions(captions, tmp_path, modality)
        assert caught.value.key == key


FLICKR = {
    "token": [
        "100.jpg#0\tA child in a dress .",
        "100.jpg#1\tA girl , smiling .",
        "7_x.jpg#0\tA dog .",
    ],
    "captions.txt": [
        "image,caption",
        "100.jpg,A child in a dress .",
        '100.jpg,"A girl , smiling ."',
        "7_x.jpg,A dog .",
    ],
    "results.csv": [
        "image_name| comment_number| comment",
        "100.jpg| 0| A child in a dress .",
        "100.jpg| 1| A girl , smiling .",
        "7_x.jpg| 0| A dog .",
    ],
}


@pytest.mark.parametrize("name", FLICKR)
def test_flickr_captions_in_each_of_their_formats(tmp_path: Path, name: str):
    (tmp_path / name).write_text("\n".join(FLICKR[name]) + "\n")
    texts = FlickrCaptions(tmp_path / name, tmp_path, "text").listing().rows
    images = FlickrCaptions(tmp_path / name, tmp_path, "image")
    assert texts[["row", "item", "text"]].to_numpy().tolist() == [
        ["100-0", "100", "A child in a dress ."],
        ["100-1", "100", "A girl , smiling ."],
        ["7_x-0", "7_x", "A dog ."],
    ]
    rows = images.listing().rows
    assert rows["path"].tolist() == ["100.jpg", "7_x.jpg"]
    assert images.raw(rows.iloc[0]) == tmp_path / "100.jpg"


def test_quotes_and_line_breaks_of_flickr_captions(tmp_path: Path):
    (tmp_path / "captions.txt").write_text(
        '\ufeffimage,caption\n1.jpg,a dog\u2028on a hill\n2.jpg,"A sign says ""STOP"" here"\n'
        '3.jpg,"one, two"\n',
        encoding="utf-8",
    )
    (tmp_path / "tokens.txt").write_text('1.jpg#0\t"Stop" is written\n2.jpg#0\tHe says "hi"\n')
    for name, texts in (
        ("captions.txt", ["a dog\u2028on a hill", 'A sign says "STOP" here', "one, two"]),
        ("tokens.txt", ['"Stop" is written', 'He says "hi"']),
    ):
        found = FlickrCaptions(tmp_path / name, tmp_path, "text").listing()
        assert found.rows["text"].tolist() == texts
        assert not found.skipped


def test_marks_before_json_and_transcripts(tmp_path: Path):
    content = {
        "images": [{"id": 9, "file_name": "9.jpg"}],
        "annotations": [{"id": 1, "image_id": 9, "caption": "a cat"}],
    }
    (tmp_path / "c.json").write_text(json.dumps(content), encoding="utf-8-sig")
    assert len(CocoCaptions(tmp_path / "c.json", tmp_path, "text").listing().rows) == 1
    chapter = tmp_path / "speech" / "test-clean" / "61" / "70968"
    chapter.mkdir(parents=True)
    (chapter / "61-70968.trans.txt").write_text("61-70968-0000 HE BEGAN\n", encoding="utf-8-sig")
    rows = LibriSpeech(tmp_path / "speech", "text").listing().rows
    assert rows["item"].tolist() == ["61-70968-0000"]


def test_flickr_splits_and_broken_lines(tmp_path: Path):
    (tmp_path / "token").write_text("\n".join([*FLICKR["token"], "nonsense", "8.jpg#0\t"]) + "\n")
    (tmp_path / "train.txt").write_text("100.jpg\n")
    found = FlickrCaptions(
        tmp_path / "token", tmp_path, "text", splits={"train": tmp_path / "train.txt"}
    ).listing()
    assert found.rows["split"].tolist() == ["train", "train", "unused"]
    assert [s.reason for s in found.skipped] == ["line 4 of token names no image", "no text"]


def tar_of(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


MEMBERS = {
    "000000003.jpg": b"the first picture",
    "000000003.json": b'{"url": "nowhere"}',
    "000000003.txt": "caf\u00e9 in the rain\n".encode(),
    "000000007.json": b"{}",
    "000000007.PNG": b"the second picture",
    "sub/000000009.txt": b"a text without a picture",
}


def test_webdataset_tars(tmp_path: Path):
    tar_of(tmp_path / "00000.tar", MEMBERS)
    tar_of(tmp_path / "more" / "00001.tar", {"000000003.jpg": b"another", "000000003.txt": b""})
    corpus = WebDataset(tmp_path, "image")
    rows = corpus.listing().rows
    assert rows["item"].tolist() == ["00000/000000003", "00000/000000007", "more/00001/000000003"]
    assert rows["text"].fillna("").tolist() == ["caf\u00e9 in the rain", "", ""]
    assert [corpus.raw(row) for row in rows.to_dict("records")] == [
        b"the first picture",
        b"the second picture",
        b"another",
    ]


def test_webdataset_items_of_one_name_in_two_folders_are_two(tmp_path: Path):
    members = {
        f"{start}{name}.{end}": f"{name} {end}".encode()
        for start, name in (("", "cat/1"), ("./", "dog/1"))
        for end in ("jpg", "txt")
    }
    tar_of(tmp_path / "0.tar", members)
    pictures, texts = WebDataset(tmp_path, "image"), WebDataset(tmp_path, "text")
    rows = pictures.listing().rows.to_dict("records")
    assert [(row["item"], row["text"], pictures.raw(row)) for row in rows] == [
        ("0/cat/1", "cat/1 txt", b"cat/1 jpg"),
        ("0/dog/1", "dog/1 txt", b"dog/1 jpg"),
    ]
    assert texts.listing().rows["item"].tolist() == ["0/cat/1", "0/dog/1"]


def test_links_in_a_tar_are_skipped_and_named(tmp_path: Path):
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        whole = tarfile.TarInfo("1.txt")
        whole.size = 5
        tar.addfile(whole, io.BytesIO(b"a cat"))
        for name, kind, target in (
            ("2.txt", tarfile.SYMTYPE, "/etc/passwd"),
            ("3.txt", tarfile.LNKTYPE, "1.txt"),
            ("4", tarfile.DIRTYPE, ""),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            tar.addfile(member)
    found = WebDataset(tmp_path, "text").listing()
    assert found.rows["text"].tolist() == ["a cat"]
    assert [entry.item for entry in found.skipped] == ["0/2", "0/3"]


def test_a_tar_that_was_cut_off_gives_what_it_holds_and_is_named(tmp_path: Path):
    path = tar_of(tmp_path / "00000.tar", {f"{n}.jpg": bytes(3000) for n in range(4)})
    path.write_bytes(path.read_bytes()[:9000])
    (tmp_path / "00001.tar").write_bytes(b"no tar at all" * 100)
    corpus = WebDataset(tmp_path, "image")
    found = corpus.listing()
    whole = [row for row in found.rows.to_dict("records") if len(corpus.raw(row)) == 3000]
    assert [row["item"] for row in whole] == ["00000/0", "00000/1"]
    assert [entry.row for entry in found.skipped] == ["00000.tar", "00001.tar"]
    assert all("not readable to its end as a tar file" in entry.reason for entry in found.skipped)
