"""What drawings of data/pictures are called, and how they become pictures."""

from __future__ import annotations

import io
import stat
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest
from PIL import Image

from gera_lightning.data.splits import unit_hash
from gera_lightning.utils.errors import UserError

FOLDER = Path(__file__).parents[2] / "data" / "pictures"
WORDS = "apple baby bird cat disk floppy mail penguin red stop find horse"
ENGLISH = frozenset(WORDS.split())


@pytest.fixture
def clipart(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module, where WordNet has few words; what it imports is forgotten afterwards."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(FOLDER)
    import clipart

    monkeypatch.setattr(clipart, "english", lambda: ENGLISH)
    yield clipart
    for name in set(sys.modules) - before:
        if str(FOLDER) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.mark.parametrize(
    ("path", "title", "author", "times", "name"),
    [
        ("birds/baby_tux_01", "Baby Penguin", "Ann Bee", 1, "baby penguin"),
        ("birds/penguin_ann_be_01", "", "Ann Bee", 1, "penguin"),
        ("icons/mail_find", "Lemon SVG theme", "Cid", 400, "mail find"),
        ("fruit/apple_red", "Clipart by Cid - pear", "Cid", 10, "apple red"),
        ("fruit/apple_red", "Apples", "Cid", 10, "apples"),
        ("hardware/floppydisk", "", "Cid", 1, "floppy disk"),
    ],
)
def test_a_drawing_is_called_by_its_title_or_its_file(clipart, path, title, author, times, name):
    entry = clipart.Metadata(path, title, author, (), "PublicDomain")
    assert " ".join(clipart.name_of(entry, times)) == name


@pytest.mark.parametrize(
    ("name", "keywords", "usable"),
    [
        ("baby penguin", (), True),
        ("cats", (), True),
        ("gatto nero", (), False),
        ("cavallo", ("horse", "mammal"), True),
        ("", ("horse", "mammal"), False),
    ],
)
def test_words_are_usable_if_english_readers_can_tell_what_is_drawn(
    clipart, name, keywords, usable
):
    assert clipart.is_usable(name.split(), keywords) == usable


def test_keywords_leave_out_folders_and_the_author(clipart):
    given = ("HASH(0x85cd6ec)", "theme", "Ann Bee", "cat", "Red Bird", "cat", "gatto")
    entry = clipart.Metadata("x", "Cat", "Ann Bee", given, "PublicDomain")
    assert clipart.keywords_of(entry) == ("cat", "red bird")


def test_metadata_are_those_of_the_file(clipart, monkeypatch, tmp_path):
    monkeypatch.setattr(clipart, "ROOT", tmp_path)
    (tmp_path / "cat.svg").write_text(
        """<svg xmlns="http://www.w3.org/2000/svg" xmlns:cc="http://web.resource.org/cc/"
        xmlns:dc="http://purl.org/dc/elements/1.1/"
        xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><metadata><rdf:RDF><cc:Work>
        <dc:title>A  cat</dc:title>
        <dc:subject><rdf:Bag><rdf:li>cat</rdf:li><rdf:li>mammal</rdf:li></rdf:Bag></dc:subject>
        <dc:creator><cc:Agent><dc:title>Ann</dc:title></cc:Agent></dc:creator>
        <cc:license rdf:resource="http://web.resource.org/cc/PublicDomain"/>
        </cc:Work></rdf:RDF></metadata></svg>"""
    )
    (tmp_path / "broken.svg").write_text("<svg>")
    entry = clipart.read_metadata(tmp_path / "cat.svg")
    licence = "http://web.resource.org/cc/PublicDomain"
    assert entry == clipart.Metadata("cat", "A cat", "Ann", ("cat", "mammal"), licence)
    assert clipart.read_metadata(tmp_path / "broken.svg") is None


def page(*box: int, colour: str = "black") -> bytes:
    """A transparent page with a filled box, as PNG."""
    image = Image.new("RGBA", (100, 100), (0, 0, 0, 0))
    image.paste(colour, box)
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def renderer(clipart, monkeypatch, tmp_path):
    """Stands for rsvg-convert: a shell script."""
    script = tmp_path / "rsvg"
    monkeypatch.setattr(clipart, "RENDERER", str(script))

    def does(body: str) -> None:
        script.write_text(f"#!/bin/sh\n{body}\n")
        script.chmod(script.stat().st_mode | stat.S_IEXEC)

    return does


def test_a_drawing_is_cut_from_its_page_and_squared_on_white(clipart, renderer, tmp_path):
    (tmp_path / "page.png").write_bytes(page(0, 0, 40, 20))
    renderer(f"cat {tmp_path}/page.png")
    picture = Image.open(io.BytesIO(clipart.render("x")))
    assert picture.mode == "RGB"
    assert picture.size == (clipart.KEPT, clipart.KEPT)
    dark = picture.convert("L").point(lambda value: 255 * (value < 128))
    left, top, right, bottom = dark.getbbox()
    assert (right - left) / (bottom - top) == pytest.approx(2, abs=0.05)
    assert left + right == pytest.approx(clipart.KEPT, abs=8)
    assert top + bottom == pytest.approx(clipart.KEPT, abs=8)


def test_what_cannot_be_drawn_is_none(clipart, renderer, monkeypatch, tmp_path):
    monkeypatch.setattr(clipart, "SECONDS", 0.2)
    (tmp_path / "white.png").write_bytes(page(0, 0, 40, 20, colour="white"))
    (tmp_path / "empty.png").write_bytes(page(0, 0, 0, 0))
    for body in (
        "exit 1",
        "echo no picture",
        "exec sleep 10",
        f"cat {tmp_path}/white.png",
        f"cat {tmp_path}/empty.png",
    ):
        renderer(body)
        assert clipart.render("x") is None, body


def test_drawings_are_drawn_once(clipart, renderer, tmp_path):
    (tmp_path / "page.png").write_bytes(page(0, 0, 40, 20))
    renderer(f"case $6 in *bad*) exit 1;; esac; cat {tmp_path}/page.png")
    drawings = [clipart.Drawing(path, "name", (), "") for path in ("a/good", "a/bad")]
    first = clipart.pictures(drawings, tmp_path / "kept")
    assert list(first) == ["a/good"]
    renderer("exit 1")
    assert clipart.pictures(drawings, tmp_path / "kept") == first


def test_missing_packages_are_named_in_one_line(clipart, monkeypatch, tmp_path):
    monkeypatch.setattr(clipart, "RENDERER", "no-such-program")
    monkeypatch.setattr(clipart, "ROOT", tmp_path / "none")
    monkeypatch.setattr(clipart, "WORDNET", tmp_path / "none")
    wanted = "apt-get install librsvg2-bin openclipart-svg wordnet-base"
    with pytest.raises(UserError, match=wanted):
        clipart.check_packages()


def test_same_words_are_one_item_and_equal_pixels_one_row(clipart, monkeypatch, tmp_path, capsys):
    import corpus

    def table(*rows: tuple[str, str, str, str]) -> pd.DataFrame:
        made = pd.DataFrame(rows, columns=["row", "item", "group", "sentence"])
        return made.assign(name=made["sentence"], label=made["group"])

    emoji = table(("e-g", "e", "google", "cat"), ("e-t", "e", "twitter", "cat"))
    drawn = table(
        ("c1", "c", "openclipart", "cat"),
        ("d1", "d", "openclipart", "dog"),
        ("d2", "d", "openclipart", "dog"),
        ("f1", "f", "openclipart", "fox"),
        *((f"b{n}", "b", "openclipart", "bird") for n in range(6)),
    )
    colours = {row: (n, 0, 0) for n, row in enumerate([*emoji["row"], *drawn["row"]])}
    colours |= {"d2": colours["d1"], "f1": colours["e-g"]}
    pictures = {row: square(colour) for row, colour in colours.items()}
    monkeypatch.setattr(corpus, "emoji_rows", lambda work: (emoji, pictures))
    monkeypatch.setattr(corpus, "clipart_rows", lambda work: (drawn, pictures, Counter()))
    rows, _ = corpus.read(tmp_path)
    kept = rows[rows["kept"]]
    assert kept["row"].tolist() == ["e-g", "e-t", "c1", "d1", "b0", "b1", "b2", "b3"]
    assert kept["item"].tolist() == ["e", "e", "e", "d", "b", "b", "b", "b"]
    assert "2 equal to the pixel to another; 2 beyond 4 drawings" in capsys.readouterr().out
    assert sorted(corpus.text_rows(rows)["text"]) == ["bird", "cat", "dog"]
    labels = corpus.image_rows(rows).set_index("row")["label"]
    assert labels["c1"] == "google"  # an item has one label


def square(colour: tuple[int, int, int]) -> bytes:
    """A picture of one colour, as PNG."""
    file = io.BytesIO()
    Image.new("RGB", (4, 4), colour).save(file, "PNG")
    return file.getvalue()


def test_small_families_of_a_low_hash_are_test(clipart):
    import corpus

    names = [f"family {n}" for n in range(200)]
    family = {f"{name} {n}": name for name in names for n in range(3)}
    [large, *_] = [name for name in names if unit_hash(f"pictures:{name}") < corpus.TEST_SHARE]
    family |= {f"{large} {n}": large for n in range(corpus.LARGE + 1)}
    rows = corpus.with_split(
        pd.DataFrame({"item": [item for item in family for _ in range(2)]}), family
    )
    assert (rows.groupby("family")["split"].nunique() == 1).all()
    side = rows.groupby("family")["split"].first()
    assert side[large] == "train"
    expected = {name for name in names if unit_hash(f"pictures:{name}") < corpus.TEST_SHARE}
    assert set(side.index[side == "test"]) == expected - {large}
