"""The shipped classes: whole, as their build says, and fit for few-shot classification."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from gera_lightning.data.splits import count_pairs, split_items
from gera_lightning.data.store import EmbeddingStore

FOLDER = Path(__file__).parents[2] / "data" / "spoken_words"


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """What the build defines; the modules that it shares with another are forgotten again."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield runpy.run_path(str(FOLDER / "build.py"), run_name="build")
    for name in set(sys.modules) - before:
        if str(FOLDER.parent) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.fixture(scope="module")
def stores() -> list[EmbeddingStore]:
    return [EmbeddingStore(FOLDER / name) for name in ("speech", "text")]


def test_the_stores_are_whole_and_small(stores):
    for store in stores:
        store.verify()
        x = store.read()
        assert np.isfinite(x).all()
        assert len(np.unique(x, axis=0)) == len(x)
    size = sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file())
    assert size < 4e6


def test_their_rows_are_those_of_the_build(stores, build):
    speech, text = stores
    for store, rows in ((speech, build["speech_rows"]()), (text, build["text_rows"]())):
        for column in store.rows:
            assert store.rows[column].fillna("").tolist() == rows[column].fillna("").tolist()


def test_voices_of_the_test_are_heard_in_no_training_row(stores):
    speech, text = stores
    split = split_items(speech.rows, text.rows)
    train, test = (speech.rows.iloc[side] for side in (split.train_a, split.test_a))
    assert not set(train["group"]) & set(test["group"])
    for rows in (train, test[test["condition"].isna()], test[test["condition"] == "robot"]):
        assert rows["item"].value_counts().nunique() == 1
        assert set(rows["item"]) == set(text.rows["item"])
    assert len(split.train_b) == len(split.test_b) == 35


def test_every_budget_of_the_experiment_is_as_many_rows_of_each_word(stores, repository):
    words = yaml.safe_load((repository / "experiments" / "spoken_words.yaml").read_text())
    tables = [store.rows for store in stores]
    pairs = count_pairs(*tables, split_items(*tables))
    assert all(budget % 35 == 0 for budget in words["budgets"])
    assert max(words["budgets"]) <= pairs / 2  # the rest is unlabelled
