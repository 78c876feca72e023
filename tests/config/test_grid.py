"""A method's own values in its tuning: which combinations there are, what is refused, and that an
override wins over them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from gera_lightning.config import Config, combinations, config_hash, load
from gera_lightning.utils.errors import UserError

BASE: dict[str, Any] = {
    "data": {"synthetic": {"items": 100}},
    "budgets": [10],
    "methods": ["peer"],
    "tuning": {"max_trials": 4},
}
PEER: dict[str, Any] = {
    "losses": {"structure": {"class": "structure", "weight": 3}},
    "tuning": {
        "grid": {"losses.structure.weight": [10, 1], "losses.structure.temperature": [0.05, 0.2]}
    },
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
        assert list(values) == ["losses.structure.weight", "losses.structure.temperature"]
        assert chosen.losses["structure"]["weight"] == values["losses.structure.weight"]
        temperature = values["losses.structure.temperature"]
        assert chosen.losses["structure"]["temperature"] == temperature
        assert chosen.optimizer == config.optimizer
    own = {"class": "structure", "weight": 3}
    assert config.losses["structure"] == own  # the preset itself stays as it is


def test_sections_may_be_nested_or_dotted_and_without_a_grid_there_is_one_combination(peer):
    nested = peer(
        grid={
            "losses.structure.weight": [10, 1],
            "losses": {"structure": {"temperature": [0.05, 0.2]}},
        }
    )
    assert combinations(nested) == combinations(peer())
    [(values, config)] = combinations(peer(grid={}))
    assert (values, config.losses["structure"]["weight"]) == ({}, 3)


def test_the_grid_is_part_of_a_runs_identity(peer):
    hashes = {
        config_hash(peer(grid=grid))
        for grid in ({}, {"losses.structure.weight": [10, 1]}, {"losses.structure.weight": [10, 2]})
    }
    assert len(hashes) == 3


@pytest.mark.parametrize(
    ("words", "left"),
    [
        (["losses.structure.weight=5"], {"losses.structure.temperature": [0.05, 0.2]}),
        (["losses.structure.temperature=0.1"], {"losses.structure.weight": [10, 1]}),
        (["losses.structure.hops=2", "optimizer.lr=1e-2"], PEER["tuning"]["grid"]),
        (
            ["tuning.grid.losses.structure.weight=[7]"],
            {"losses.structure.weight": [7], "losses.structure.temperature": [0.05, 0.2]},
        ),
    ],
)
def test_an_override_of_a_key_takes_it_out_of_the_grid(peer, words, left):
    config = peer(words)
    assert config.tuning.grid == left
    if words == ["losses.structure.weight=5"]:
        assert {chosen.losses["structure"]["weight"] for _, chosen in combinations(config)} == {5}


def test_a_variants_change_takes_its_key_out_too(peer):
    base = {
        "variants": {"heavy": {"of": "peer", "losses.structure.weight": 50}},
        "methods": ["heavy"],
    }
    config = peer(base=base)
    assert config.tuning.grid == {"losses.structure.temperature": [0.05, 0.2]}
    assert {chosen.losses["structure"]["weight"] for _, chosen in combinations(config)} == {50}


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        (
            {"lossses.structure.weight": [1]},
            ["tuning.grid.lossses.structure.weight", "did you mean 'losses'"],
        ),
        (
            {"losses.structure.temprature": [1]},
            ["losses.structure.temprature", "did you mean 'temperature'"],
        ),
        ({"mixup.alpha": [1]}, ["tuning.grid.mixup.alpha", "has no mixup"]),
        ({"losses.geometric.weight": [1]}, ["has no losses.geometric"]),
        ({"losses.structure.class": [1]}, ["tuning.grid.losses.structure.class", "no value to"]),
        ({"losses.structur.temperature": [1]}, ["has no losses.structur"]),
        ({"trainer.max_steps": [1]}, ["tuning.grid.trainer.max_steps", "below one of"]),
        (
            {"losses.structure.weight": 3},
            ["tuning.grid.losses.structure.weight=3", "list of numbers, such as"],
        ),
        (
            {"losses.structure.weight": []},
            ["tuning.grid.losses.structure.weight=[]", "list of numbers"],
        ),
        ({"losses.structure.weight": [True]}, ["list of numbers"]),
        ({"losses.structure.weight": [-1]}, ["losses.structure.weight=-1 must be at least 0"]),
        (
            {"losses.structure.weight": [1, 2, 3], "losses.structure.temperature": [1, 2]},
            ["6 combinations", "tuning.max_trials=4", "take fewer"],
        ),
    ],
)
def test_a_mistake_names_key_value_and_remedy(peer, grid, words):
    with pytest.raises(UserError) as caught:
        peer(grid=grid)
    assert all(word in str(caught.value) for word in words), caught.value


def test_a_closed_form_takes_no_grid(peer):
    with pytest.raises(UserError, match=r"^tuning\.grid: .* reads no losses\.structure\.weight"):
        peer(closed_form="ridge")
