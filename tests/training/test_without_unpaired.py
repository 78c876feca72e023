"""`data.pool_size=0`: a method leaves out what reads unpaired rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gera_lightning import cli
from gera_lightning.config import load
from gera_lightning.training.method import Method


def method(name: str, pool_size: int | None) -> Method:
    config = load({}, {"methods": [name], "data.pool_size": pool_size}).methods[name]
    return Method.from_config(config)


@pytest.mark.parametrize(
    ("name", "reader", "left"),
    [
        ("coupled_ridge", "filters", []),
        ("gera", "losses.geometric", ["pair"]),
        ("sotalign", "losses.transport", ["pair"]),
        ("ridge_csls", "correction", []),
        ("ridge", None, []),
    ],
)
def test_what_reads_unpaired_rows_is_left_out(name: str, reader: str | None, left: list[str]):
    assert method(name, None).requires_unpaired == reader
    without = method(name, 0)
    assert without.requires_unpaired is None
    assert list(without.losses) == left
    assert without.correction is None
    assert dict(without.filters) == {"a": [[]], "b": [[]]}


def test_a_closed_form_that_is_made_of_unpaired_rows_cannot_do_without():
    config = load({}, {"methods": ["ridge"], "data.pool_size": 0}).methods["ridge"]
    config.closed_form = {"class": "self_training"}
    assert Method.from_config(config).requires_unpaired == "closed_form"


def test_runs_without_unpaired_rows_have_none(tmp_path: Path):
    words = ["train", "synthetic", f"runs_dir={tmp_path}", "data.synthetic.items=400"]
    words += ["data.reserved_pairs=30", "budgets=[30]"]
    trained = ["methods=[coupled_ridge,gera]", "trainer.max_steps=2", "data.pool_size=0"]
    assert cli.main([*words, *trained]) == 0
    assert cli.main([*words, "methods=[coupled_ridge]", "data.pool_size=50"]) == 0
    lines = (tmp_path / "synthetic" / "results.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    found = sorted((row["method"], row["pool_a"], row["pool_b"]) for row in rows)
    assert found == [("coupled_ridge", 0, 0), ("coupled_ridge", 50, 50), ("gera", 0, 0)]
