from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from gera_lightning import cli
from gera_lightning.data.inspection import (
    inspect_store,
    largest_difference,
    nearest,
    row_words,
    scan,
)
from gera_lightning.utils.errors import UserError


@pytest.fixture
def store(make_store):
    """30 rows: one is not finite, one is zero, two are copies of row 4."""
    x = np.random.default_rng(0).normal(size=(30, 5)).astype(np.float32)
    x[7], x[9, 2] = 0, np.nan
    x[11] = x[12] = x[4]
    split = ["test"] * 10 + ["train"] * 20
    return make_store(
        "s",
        x,
        split=split,
        text=[f"text number {n}" for n in range(30)],
        label=["x", "y"] * 15,
        group=["v"] * 30,
    )


def test_a_scan_finds_norms_damage_and_copies(store):
    found = scan(store)
    x = np.concatenate([np.load(store.path / shard.vectors) for shard in store.shards])
    np.testing.assert_allclose(found.norms, np.linalg.norm(x, axis=1), rtol=1e-6)
    assert found.damaged.tolist() == [9]
    assert found.copies == 2


def test_nearest_equals_a_loop(store):
    x = np.concatenate([np.load(store.path / shard.vectors) for shard in store.shards]).astype(
        np.float64
    )
    for row, near in zip((0, 15), nearest(store, [0, 15], 4), strict=True):
        cosine = {
            j: x[row] @ x[j] / np.linalg.norm(x[row]) / max(np.linalg.norm(x[j]), 1e-12)
            for j in range(30)
            if j not in (row, 9)
        }
        expected = sorted(cosine, key=lambda j: -cosine[j])[:4]
        assert [j for j, _ in near] == expected
        np.testing.assert_allclose(
            [score for _, score in near], [cosine[j] for j in expected], atol=1e-6
        )


def test_a_page_says_what_is_there(store):
    page = inspect_store(store.path, examples=2, neighbors=3)
    for words in (
        "30 rows of width 5, float32, 5 shards",
        "name enc-s",
        "agree with the manifest",
        "items        30, 1 to 1 rows each",
        "splits       train 20, test 10",
        "label        2 different",
        "not finite   1 rows, the first is 'i0009-s-9'",
        "zero         1 rows, the first is 'i0007-s-7'",
        "copies       2 rows",
    ):
        assert words in page, words
    assert page.count("nearest to   text number") == 2
    assert (
        sum(line.startswith("   0.") or line.startswith("  -0.") for line in page.splitlines()) == 6
    )
    bars = [line for line in page.splitlines() if " to " in line and "#" in line]
    assert sum(int(line.split()[-1]) for line in bars) == 29, "every finite row is in one bar"


def test_copies_are_each_others_nearest(store):
    [near] = nearest(store, [11], 2)
    assert sorted(row for row, _ in near) == [4, 12]
    assert [score for _, score in near] == pytest.approx([1, 1])


def test_equal_norms_are_no_histogram(make_store):
    x = np.random.default_rng(0).normal(size=(8, 5))
    unit = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float16)
    assert "norms        all 1" in inspect_store(make_store("u", unit).path)


def test_damage_is_told_not_raised(store):
    rows = store.path / store.shards[0].rows
    rows.rename(rows.with_suffix(".away"))
    raw = rows.with_suffix(".away").read_bytes()
    rows.write_bytes(raw)
    vectors = store.path / store.shards[1].vectors
    content = bytearray(vectors.read_bytes())
    content[-1] ^= 1
    vectors.write_bytes(content)
    page = inspect_store(store.path)
    assert "DIFFER" in page
    assert store.shards[1].vectors in page


def test_the_command(store, capsys):
    assert cli.main(["inspect", str(store.path), "examples=1"]) == 0
    assert capsys.readouterr().out.count("nearest to") == 1
    for words, named in (
        (["inspect"], "gera inspect"),
        (["inspect", str(store.path / "nothing")], "nothing"),
        (["inspect", str(store.path), "exmaples=1"], "'examples'"),
        (["inspect", str(store.path), "neighbors=none"], "neighbors='none'"),
        (["inspect", str(store.path), "examples=-1"], "examples=-1"),
    ):
        assert cli.main(words) == 2
        assert named in capsys.readouterr().err


def test_the_largest_difference_is_relative_and_by_name(make_store):
    x = np.random.default_rng(0).normal(size=(20, 5)).astype(np.float32)
    names = [f"r{n}" for n in range(20)]
    kept = make_store("kept", x, row=names)
    moved = x[[7, 3, 11]]
    moved[1] *= 1.25
    fresh = make_store("fresh", moved, row=["r7", "r3", "r11"])
    assert largest_difference(fresh, kept) == pytest.approx(0.25, rel=1e-6)
    narrow = make_store("narrow", x[:, :4], row=names)
    for store, reference in ((kept, fresh), (narrow, kept)):  # an unknown row, another width
        with pytest.raises(UserError) as caught:
            largest_difference(store, reference)
        assert caught.value.key == str(store.path)


def test_a_text_cannot_steer_the_terminal():
    rows = pd.DataFrame({"row": ["r\x1b]0;x\x07"], "item": ["i"], "text": ["a\x1b[2J dog\u202e\n"]})
    words = row_words(rows, 0)
    assert words.isprintable()
    assert words.startswith("a\ufffd[2J dog\ufffd")
