"""The stores in data/: whole, true to the contract, and without a leak across their split."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterator
from functools import cache
from itertools import product
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest

from gera_lightning.commands.search import matching
from gera_lightning.data.splits import item_families, split_items
from gera_lightning.data.store import EmbeddingStore

DATA = Path(__file__).parents[2] / "data"
SETS = {"wordnet_speech": ("speech", "text"), "pictures": ("image", "text")}
STORES = [f"{name}/{side}" for name, both in SETS.items() for side in both]
READMES = [name for name in SETS if (DATA / name / "README.md").exists()]


@cache
def opened(name: str) -> EmbeddingStore:
    return EmbeddingStore(DATA / name)


def tables(name: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    a, b = SETS[name]
    return opened(f"{name}/{a}").rows, opened(f"{name}/{b}").rows


def test_data_is_at_most_80_megabytes():
    """Of what is shipped: people embed their own beside it."""
    size = sum(
        path.stat().st_size for name in SETS for path in (DATA / name).rglob("*") if path.is_file()
    )
    assert size <= 80e6


def test_every_store_is_known_here():
    assert {
        p.parent.relative_to(DATA).as_posix()
        for name in SETS
        for p in (DATA / name).glob("*/manifest.json")
    } == set(STORES)


@pytest.mark.parametrize("name", STORES)
def test_every_byte_is_the_manifests(name):
    opened(name).verify()


@pytest.mark.parametrize("name", STORES)
def test_vectors_are_finite_and_alive(name):
    store = opened(name)
    x = store.read()
    assert x.shape == (len(store.rows), store.dim)
    assert np.isfinite(x).all()
    assert np.linalg.norm(x, axis=1).min() > 1e-3
    assert (
        x.std(axis=0) < 1e-6
    ).mean() <= 0.01  # all-MiniLM-L6-v2 itself has a few dead dimensions
    assert len(np.unique(x, axis=0)) == len(x)
    for key in ("name", "dim"):
        assert store.encoder[key]
    for key in ("name", "licence"):
        assert store.manifest["source"][key]


@pytest.mark.parametrize("name", STORES)
def test_columns_are_those_of_the_contract(name):
    rows = opened(name).rows
    wanted = ["row", "item", "text", "family", "label", "split"] + (
        [] if name.endswith("/text") else ["group"]
    )
    more = {"wordnet_speech/speech": ["condition", "seconds"], "wordnet_speech/text": ["condition"]}
    assert sorted(rows.columns) == sorted(wanted + more.get(name, []))
    for column in wanted:
        assert (
            rows[column]
            .map(lambda value: isinstance(value, str) and value.strip() == value != "")
            .all()
        ), column
    assert rows["row"].is_unique
    assert set(rows["split"]) == {"train", "test"}


@pytest.mark.parametrize("name", SETS)
def test_both_stores_say_the_same_of_their_items(name):
    a, b = tables(name)
    assert b["item"].is_unique  # one text an item
    assert set(a["item"]) <= set(b["item"])
    text = b.set_index("item")
    for column in ("family", "label", "split"):
        assert (text[column].loc[a["item"]].to_numpy() == a[column].to_numpy()).all(), column


# ---- the split ----


@pytest.mark.parametrize("name", SETS)
def test_no_family_is_cut(name):
    a, b = tables(name)
    rows = pd.concat([a, b])
    assert (rows.groupby("family")["split"].nunique() == 1).all()
    assert (rows.groupby("item")["split"].nunique() == 1).all()
    side = rows.drop_duplicates("item").set_index("item")["split"]
    families = item_families(a, b)  # joined over both stores
    assert (side.groupby(families).nunique() == 1).all()


@pytest.mark.parametrize("name", SETS)
def test_the_package_splits_as_the_stores_say(name):
    a, b = tables(name)
    split = split_items(a, b)
    for rows, train, test in ((a, split.train_a, split.test_a), (b, split.train_b, split.test_b)):
        assert train.tolist() == np.flatnonzero(rows["split"] == "train").tolist()
        assert test.tolist() == np.flatnonzero(rows["split"] == "test").tolist()


@pytest.mark.parametrize("name", SETS)
def test_no_test_text_is_a_train_text(name):
    _, text = tables(name)
    words = text["text"].str.lower().str.replace(r"\W+", " ", regex=True).str.strip()
    assert not set(words[text["split"] == "test"]) & set(words[text["split"] == "train"])


@pytest.mark.parametrize("store", ["image", "text"])
def test_no_test_picture_is_nearly_a_train_picture(store):
    """As data/pictures/README.md says: no cosine above 0.95."""
    x, rows = opened(f"pictures/{store}").read(), opened(f"pictures/{store}").rows
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    assert (x[rows["split"] == "test"] @ x[rows["split"] == "train"].T).max() <= 0.95


@pytest.mark.parametrize("name", STORES)
def test_the_order_of_rows_tells_nothing(name):
    """Position against side, names, family and vectors: each within four standard deviations of
    chance.
    """
    rows = opened(name).rows
    n = len(rows)
    place = np.arange(n)
    for known in (
        rows["split"] == "test",
        rows["item"].rank(),
        rows["text"].rank(),
        rows["label"].rank(),
    ):
        assert abs(np.corrcoef(place, known)[0, 1]) < 4 / np.sqrt(n)
    for column in ("split", "family", "label", *(["group"] if "group" in rows else [])):
        values = rows[column].to_numpy()
        alike = (values[1:] == values[:-1]).mean()
        share = rows[column].value_counts().to_numpy()
        expected = (share * (share - 1)).sum() / (n * (n - 1))
        assert abs(alike - expected) < 4 * np.sqrt(max(expected, 1 / n) / n), column


@pytest.mark.parametrize("name", SETS)
def test_the_order_of_one_store_does_not_give_its_partners(name):
    a, b = tables(name)
    first = a.drop_duplicates("item")
    partner = pd.Series(range(len(b)), index=b["item"]).loc[first["item"]]
    assert abs(np.corrcoef(first.index, partner)[0, 1]) < 4 / np.sqrt(len(b))


# ---- groups ----


@pytest.fixture(scope="module")
def voices() -> Iterator[ModuleType]:
    """The module that chooses the voices of wordnet_speech."""
    path = DATA / "wordnet_speech" / "voices.py"
    spec = importlib.util.spec_from_file_location("wordnet_speech_voices", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def spoken_items(text: pd.DataFrame, split: str, voices: ModuleType) -> set[str]:
    items = text["item"][(text["split"] == split) & text["condition"].isna()]
    return set(items[items.map(voices.turn) < voices.SPOKEN_SHARE[split]])


def test_train_items_are_spoken_once_by_a_seen_voice(voices):
    rows, text = tables("wordnet_speech")
    train = rows[rows["split"] == "train"]
    assert set(train["group"]) == set(voices.SEEN)
    assert train["item"].is_unique
    assert train["condition"].isna().all()
    assert set(train["item"]) == spoken_items(text, "train", voices)


def test_test_items_are_spoken_by_a_seen_an_unseen_voice_and_a_robot(voices):
    rows, text = tables("wordnet_speech")
    test = rows[(rows["split"] == "test") & (rows["group"] != "human")]
    kinds = dict.fromkeys(voices.SEEN, "seen") | dict.fromkeys(voices.UNSEEN, "unseen")
    kinds |= {voice.name: "robot" for voice in voices.ROBOTS}
    spoken = test.assign(kind=test["group"].map(kinds)).groupby("item")["kind"].agg(sorted)
    assert set(spoken.map(tuple)) == {("robot", "seen", "unseen")}
    assert set(spoken.index) == spoken_items(text, "test", voices)
    assert set(test["group"]) == set(kinds)


def test_a_persons_prompts_are_items_of_their_own(voices):
    rows, text = tables("wordnet_speech")
    human = rows["condition"] == "human"
    assert set(rows["group"][human]) == {"human"}
    assert set(rows["split"][human]) == {"test"}
    assert set(rows["item"][human]) == set(text["item"][text["condition"] == "human"])
    assert not set(rows["item"][human]) & set(rows["item"][~human])
    assert set(rows["condition"].dropna()) == {"robot", "human"}


def test_every_emoji_has_one_row_a_renderer():
    rows, _ = tables("pictures")
    assert set(rows["group"]) == {"google", "twitter", "openclipart"}
    emoji = rows[rows["group"] != "openclipart"]
    assert not emoji.duplicated(["item", "group"]).any()
    assert (emoji["row"] == emoji["item"] + "-" + emoji["group"]).all()


def test_few_drawings_have_the_same_words():
    rows, _ = tables("pictures")
    drawn = rows[rows["group"] == "openclipart"]
    assert drawn["row"].str.startswith("clipart-").all()
    assert rows["item"].value_counts().max() <= 4


def test_there_are_pictures_enough():
    """For budgets up to 3,000 with pools beside them, and for a test of a narrow interval."""
    _, text = tables("pictures")
    assert len(text) >= 5000
    assert (text["split"] == "test").sum() >= 800


def test_data_pictures_is_at_most_25_megabytes():
    files = [path for path in (DATA / "pictures").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files if path.suffix != ".pyc") <= 25e6


# ---- what the READMEs say ----


def shown(number: int) -> str:
    return rf"(?<![\d,.]){number:,}(?!\d|[,.]\d)"


def test_the_readme_of_pictures_is_checked():
    assert "pictures" in READMES


@pytest.mark.parametrize(("name", "column"), list(product(READMES, ("rows", "train", "test"))))
def test_row_counts_are_those_of_the_readme(name, column):
    readme = (DATA / name / "README.md").read_text()
    for side, rows in zip(SETS[name], tables(name), strict=True):
        number = len(rows) if column == "rows" else int((rows["split"] == column).sum())
        assert re.search(shown(number), readme), f"{side}: {number:,} {column} rows"


def test_the_tables_of_the_readme_of_pictures():
    readme = (DATA / "pictures" / "README.md").read_text()
    image, text = tables("pictures")
    stores = {
        side: int(number.replace(",", ""))
        for side, number in re.findall(r"\| `(\w+)/` \| ([\d,]+)", readme)
    }
    assert stores == {"image": len(image), "text": len(text)}
    splits = {
        split: tuple(int(n.replace(",", "")) for n in numbers)
        for split, *numbers in re.findall(
            r"\| (train|test) \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \|", readme
        )
    }
    for split in ("train", "test"):
        here, there = image[image["split"] == split], text[text["split"] == split]
        assert splits[split] == (
            there["item"].nunique(),
            len(there),
            len(here),
            there["family"].nunique(),
        )
    assert f"{text['family'].nunique():,} families" in readme
    for group, count in image["group"].value_counts().items():
        assert f"`{group}` {count:,}" in readme
    assert f"({text['label'].nunique()} of them)" in readme


def test_the_readmes_queries_name_rows_of_the_shipped_stores():
    asked = re.findall(
        r'make search EXP=speech_text Q="([^"]+)"', (DATA.parent / "README.md").read_text()
    )
    assert asked
    assert all(
        len(matching(opened("wordnet_speech/text").rows, query, whole=True)) for query in asked
    )
