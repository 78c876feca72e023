"""Which pictures of data/pictures are one family."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest

FOLDER = Path(__file__).parents[2] / "data" / "pictures"


def loaded(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"pictures_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


families, ties = loaded("families"), loaded("ties")

# (code, name, subgroup) of emoji that are one family
TOGETHER = {
    "gender": [
        ("1f9d1-200d-2708", "pilot", "person-role"),
        ("1f468-200d-2708", "man pilot", "person-role"),
        ("1f469-200d-2708", "woman pilot", "person-role"),
    ],
    "titles": [
        ("1f385", "Santa Claus", "person-fantasy"),
        ("1f936", "Mrs. Claus", "person-fantasy"),
    ],
    "direction": [
        ("1f3c3", "person running", "person-activity"),
        ("1f3c3-200d-2640-200d-27a1", "woman running: facing right", "person-activity"),
    ],
    "view": [("1f695", "taxi", "transport-ground"), ("1f696", "oncoming taxi", "transport-ground")],
    "face": [("1f430", "rabbit face", "animal-mammal"), ("1f407", "rabbit", "animal-mammal")],
    "arrows": [
        ("2b06", "up arrow", "arrow"),
        ("27a1", "right arrow", "arrow"),
        ("21a9", "right arrow curving left", "arrow"),
    ],
    "clocks": [("1f550", "one o’clock", "time"), ("1f567", "twelve-thirty", "time")],
    "keycaps": [("23-20e3", "keycap: #", "keycap"), ("1f51f", "keycap: 10", "keycap")],
    "moons": [("1f311", "new moon", "sky-weather"), ("1f31d", "full moon face", "sky-weather")],
    "hearts": [
        ("2764", "red heart", "heart"),
        ("1f499", "blue heart", "heart"),
        ("2665", "heart suit", "game"),
    ],
    "circles": [
        ("1f534", "red circle", "geometric"),
        ("1f535", "blue circle", "geometric"),
        ("2b55", "hollow red circle", "other-symbol"),
    ],
    "books": [
        ("1f4d7", "green book", "book-paper"),
        ("1f4d8", "blue book", "book-paper"),
        ("1f4da", "books", "book-paper"),
    ],
    "hands": [
        ("1f44d", "thumbs up", "hand-fingers-closed"),
        ("1f44e", "thumbs down", "hand-fingers-closed"),
    ],
    "couples": [
        ("1f48f", "kiss", "family"),
        ("1f468-200d-1f469-200d-1f466", "family: man, woman, boy", "family"),
    ],
}

# pairs that share a word but are different things
APART = [
    (("1f570", "mantelpiece clock", "time"), ("1f550", "one o’clock", "time")),
    (("1f31e", "sun with face", "sky-weather"), ("1f31d", "full moon face", "sky-weather")),
    (("1fac0", "anatomical heart", "body-parts"), ("2764", "red heart", "heart")),
    (("1f64d", "person frowning", "person-gesture"), ("2639", "frowning face", "face-concerned")),
    (("1fad1", "bell pepper", "food-vegetable"), ("1f514", "bell", "sound")),
    (("1f60d", "smiling face with heart-eyes", "face-affection"), ("2764", "red heart", "heart")),
    (("1f42d", "mouse face", "animal-mammal"), ("1f5b1", "computer mouse", "computer")),
    (("1f468-200d-1f373", "man cook", "person-role"), ("1f373", "cooking", "food-prepared")),
]


@pytest.mark.parametrize("kind", TOGETHER)
def test_near_duplicates_are_one_family(kind):
    assert len({families.base_family(*emoji) for emoji in TOGETHER[kind]}) == 1


@pytest.mark.parametrize("pair", APART, ids=lambda pair: f"{pair[0][1]} | {pair[1][1]}")
def test_different_things_are_apart(pair):
    assert families.base_family(*pair[0]) != families.base_family(*pair[1])


def test_a_plain_thing_is_its_own_family():
    assert families.base_family("1f34c", "banana", "food-fruit") == "banana"


@pytest.mark.parametrize("name", ["man", "woman", "person"])
def test_a_name_of_nothing_but_gender_stays(name):
    assert families.stem(name) == name


def test_items_drawn_alike_join_their_families():
    joined = families.merged({"a": "x", "b": "y", "c": "z", "d": "w"}, [("a", "b"), ("c", "b")])
    assert joined == {"a": "x", "b": "x", "c": "x", "d": "w"}


def test_joining_does_not_depend_on_the_order():
    given = {"a": "x", "b": "y", "c": "z"}
    assert families.merged(given, [("b", "c"), ("a", "b")]) == families.merged(
        given, [("a", "b"), ("b", "c")]
    )


@pytest.mark.parametrize(
    ("names", "thing"),
    [
        (["folder", "folder red", "Big Blue Folders 2", "the new folder (open)"], "folder"),
        (["sailing boat", "sailing-boat_03", "Sailing boats, right side"], "sailing boat"),
        (["flag: Morocco", "morocco"], "morocco"),
        (["red", "Red"], "red"),
    ],
)
def test_versions_of_a_thing_have_one_name(names, thing):
    found = {ties.thing(name) for name in names}
    assert found <= {thing, f"{thing} open"}


def drawings(*rows: tuple[str, str, str, str]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["item", "name", "author", "folder"])


def test_the_same_name_is_tied_among_emoji_and_drawings():
    rows = drawings(
        ("emoji-1", "green apple", "", ""),
        ("clipart-1", "apples", "Ann", "fruit"),
        ("clipart-2", "apple tree", "Ben", "plants"),
    )
    assert list(ties.same_name(rows)) == [("emoji-1", "clipart-1")]


def test_a_series_is_of_one_author_and_folder():
    rows = drawings(
        ("1", "ninja tux", "Ann", "birds"),
        ("2", "baby tux", "Ann", "birds"),
        ("3", "baby chick", "Ann", "birds"),
        ("4", "pirate tux", "Ben", "birds"),
        ("5", "sad tux", "Ann", "logos"),
        ("6", "happy tux", "", ""),
        ("7", "merry tux", "", ""),
    )
    assert sorted(ties.series(rows)) == [("1", "2"), ("2", "3")]


def test_near_duplicates_are_those_of_a_plain_loop():
    draw = np.random.default_rng(0)
    x = draw.normal(size=(40, 5))
    x[20:] = x[:20] + 0.2 * draw.normal(size=(20, 5))
    items = pd.Series([f"i{n % 30}" for n in range(40)])
    expected = {
        frozenset((items[i], items[j]))
        for i in range(40)
        for j in range(i)
        if items[i] != items[j]
        and x[i] @ x[j] > ties.ALIKE * np.linalg.norm(x[i]) * np.linalg.norm(x[j])
    }
    assert expected
    for block in (7, 1024):
        assert {frozenset(pair) for pair in ties.near_duplicates(items, x, block)} == expected
