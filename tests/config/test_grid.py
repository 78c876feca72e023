"""A method's own values in its tuning: which combinations there are, what is refused, and that an
override wins over them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from gera_lightning.config import Config, combinations, config_hash, identity, load
from gera_lightning.utils.errors import UserError

STRUCTURE = "gera_lightning.losses.structure.StructureLoss"
BASE: dict[str, Any] = {
    "data": {"synthetic": {"items": 100}},
    "budgets": [10],
    "methods": ["peer"],
    "tuning": {"max_trials": 4},
}
PEER: dict[str, Any] = {
    "closed_form": None,
    "geometric_loss": None,
    "unpaired_loss": {"class": STRUCTURE},
    "unpaired_weight": 3,
    "tuning": {"grid": {"unpaired_weight": [10, 1], "unpaired_loss.temperature": [0.05, 0.2]}},
}


@pytest.fixture
def peer(tmp_path: Path):
    """The settings of a preset, with changes to it and overrides."""

    def make(
        words: Any = (), grid: Any = None, base: dict[str, Any] | None = None, **changes: Any
    ) -> Config:
        preset = {**PEER, **changes}
        if grid is not None:
            preset["tuning"] = {"grid": grid}
        (tmp_path / "methods").mkdir(exist_ok=True)
        (tmp_path / "methods" / "peer.yaml").write_text(yaml.safe_dump(preset, sort_keys=False))
        (tmp_path / "small.yaml").write_text(yaml.safe_dump({**BASE, **(base or {})}))
        return next(iter(load("small", words, folder=tmp_path).methods.values()))

    return make


def test_combinations_are_the_product_the_first_key_slowest(peer):
    config = peer()
    found = combinations(config)
    assert [tuple(values.values()) for values, _ in found] == [
        (10, 0.05),
        (10, 0.2),
        (1, 0.05),
        (1, 0.2),
    ]
    for values, chosen in found:
        assert list(values) == ["unpaired_weight", "unpaired_loss.temperature"]
        assert chosen.unpaired_weight == values["unpaired_weight"]
        assert chosen.unpaired_loss == {
            "class": STRUCTURE,
            "temperature": values["unpaired_loss.temperature"],
        }
        assert chosen.optimizer == config.optimizer
    assert config.unpaired_weight == 3  # the preset itself stays as it is
    assert config.unpaired_loss == {"class": STRUCTURE}


def test_sections_may_be_nested_or_dotted_and_without_a_grid_there_is_one_combination(peer):
    nested = peer(grid={"unpaired_weight": [10, 1], "unpaired_loss": {"temperature": [0.05, 0.2]}})
    assert combinations(nested) == combinations(peer())
    [(values, config)] = combinations(peer(grid={}))
    assert (values, config.unpaired_weight) == ({}, 3)


def test_the_grid_is_part_of_a_runs_identity_only_where_there_is_one(peer):
    assert "grid" not in identity(peer(grid={}))["tuning"]
    hashes = {
        config_hash(peer(grid=grid))
        for grid in ({}, {"unpaired_weight": [10, 1]}, {"unpaired_weight": [10, 2]})
    }
    assert len(hashes) == 3


@pytest.mark.parametrize(
    ("words", "left"),
    [
        (["unpaired_weight=5"], {"unpaired_loss.temperature": [0.05, 0.2]}),
        (["unpaired_loss.temperature=0.1"], {"unpaired_weight": [10, 1]}),
        (["unpaired_loss.hops=2", "optimizer.lr=1e-2"], PEER["tuning"]["grid"]),
        (
            ["tuning.grid.unpaired_weight=[7]"],
            {"unpaired_weight": [7], "unpaired_loss.temperature": [0.05, 0.2]},
        ),
    ],
)
def test_an_override_of_a_key_takes_it_out_of_the_grid(peer, words, left):
    config = peer(words)
    assert config.tuning.grid == left
    if words == ["unpaired_weight=5"]:
        assert {chosen.unpaired_weight for _, chosen in combinations(config)} == {5}


def test_a_variants_change_takes_its_key_out_too(peer):
    base = {"variants": {"heavy": {"of": "peer", "unpaired_weight": 50}}, "methods": ["heavy"]}
    config = peer(base=base)
    assert config.tuning.grid == {"unpaired_loss.temperature": [0.05, 0.2]}
    assert {chosen.unpaired_weight for _, chosen in combinations(config)} == {50}


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        (
            {"unpaired_wieght": [1]},
            ["tuning.grid.unpaired_wieght", "did you mean 'unpaired_weight'"],
        ),
        (
            {"unpaired_loss.temprature": [1]},
            ["unpaired_loss.temprature", "did you mean 'temperature'"],
        ),
        (
            {"unpaired_los.temperature": [1]},
            ["tuning.grid.unpaired_los.temperature", "did you mean 'unpaired_loss'"],
        ),
        ({"mixup.alpha": [1]}, ["tuning.grid.mixup.alpha", "has no mixup"]),
        ({"geometric_weight": [1]}, ["tuning.grid.geometric_weight", "has no geometric_loss"]),
        ({"unpaired_loss.class": [1]}, ["tuning.grid.unpaired_loss.class", "no value to choose"]),
        ({"trainer.max_steps": [1]}, ["tuning.grid.trainer.max_steps", "take one of"]),
        ({"unpaired_weight": 3}, ["tuning.grid.unpaired_weight=3", "list of numbers, such as"]),
        ({"unpaired_weight": []}, ["tuning.grid.unpaired_weight=[]", "list of numbers"]),
        ({"unpaired_weight": [True]}, ["list of numbers"]),
        ({"unpaired_weight": [-1]}, ["unpaired_weight=-1.0 must be at least 0"]),
        (
            {"unpaired_weight": [1, 2, 3], "unpaired_loss.temperature": [1, 2]},
            ["6 combinations", "tuning.max_trials=4", "take fewer"],
        ),
    ],
)
def test_a_mistake_names_key_value_and_remedy(peer, grid, words):
    with pytest.raises(UserError) as caught:
        peer(grid=grid)
    assert all(word in str(caught.value) for word in words), caught.value


def test_a_closed_form_takes_no_grid(peer):
    with pytest.raises(
        UserError,
        match=(
            r"tuning\.grid: a closed form brings its own settings and reads no unpaired_weight:"
            r" remove it"
        ),
    ):
        peer(closed_form={"class": "gera_lightning.aligners.ridge.Ridge"})
