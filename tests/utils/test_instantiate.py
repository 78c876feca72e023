from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from gera_lightning.models.maps import Linear, ResidualMLP
from gera_lightning.utils.errors import UserError, did_you_mean
from gera_lightning.utils.instantiate import build, check_part, resolve

SCALE = "users_own_parts.Scale"


@pytest.fixture(autouse=True)
def _users_own_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Classes that nothing registers, in a file of the user's."""
    (tmp_path / "users_own_parts.py").write_text(
        "from gera_lightning.utils.errors import UserError\n"
        "class Scale:\n"
        "    def __init__(self, factor, offset=1.5):\n"
        "        if factor < 0:\n"
        "            raise UserError(f'factor={factor} must be at least 0')\n"
        "        if factor > 100:\n"
        "            raise ValueError('too large')\n"
        "        self.values = factor, offset\n"
        "class Anything:\n"
        "    def __init__(self, **settings):\n"
        "        self.settings = settings\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "users_own_parts", raising=False)


def test_a_users_own_class_is_built_with_its_arguments():
    assert build({"class": SCALE, "factor": 2.0}, "part").values == (2.0, 1.5)
    assert build({"class": SCALE, "factor": 2.0, "offset": 0.0}, "part").values == (2.0, 0.0)


def test_null_removes_an_argument():
    assert build({"class": SCALE, "factor": 2.0, "offset": None}, "part").values == (2.0, 1.5)


def test_run_time_objects_join_the_settings():
    start = torch.eye(3, 2)
    head = build({"class": "gera_lightning.models.maps.Linear"}, "head", 3, 2, weight=start)
    assert isinstance(head, Linear)
    assert torch.equal(head.weight, start)
    wide = build(
        {"class": "gera_lightning.models.maps.ResidualMLP", "hidden": 7}, "head", 3, 2, weight=start
    )
    assert isinstance(wide, ResidualMLP)
    assert 7 in {size for weight in wide.parameters() for size in weight.shape}


def test_an_optimizer_takes_its_parameters_by_position():
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = build({"class": "torch.optim.SGD", "lr": 0.5}, "optimizer", [weight])
    weight.grad = torch.ones(2)
    optimizer.step()
    assert weight.tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    ("path", "words"),
    [
        (
            "gera_lightning.models.maps.Liner",
            [
                "head.class='gera_lightning.models.maps.Liner'",
                "has no 'Liner'",
                "did you mean 'Linear'",
            ],
        ),
        (
            "gera_lightning.head.Linear",
            [
                "head.class='gera_lightning.head.Linear'",
                "cannot be imported",
                "package.module.Class",
            ],
        ),
        ("Linear", ["head.class='Linear'", "did you mean 'linear'"]),
        ("", ["head.class=''", "no known name"]),
        (".heads.Linear", ["head.class='.heads.Linear'", "cannot be imported"]),
        ("gera_lightning.models.maps.normalized", ["has no 'normalized'"]),  # a function
    ],
)
def test_a_path_that_names_no_class_is_refused(path, words):
    with pytest.raises(UserError) as caught:
        resolve(path, "head")
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ({"factor": 1}, ["part.class is missing"]),
        ({"class": SCALE, "factr": 1}, ["part.factr", SCALE, "did you mean 'factor'"]),
        (
            {"class": SCALE, "factor": 1, "offset": 2},
            ["part.offset is set by the program", "remove"],
        ),
        ({"class": "torch.optim.SGD", "params": []}, ["part.params", "torch.optim.SGD"]),
    ],
)
def test_a_part_is_checked_before_anything_is_built(part, words):
    with pytest.raises(UserError) as caught:
        check_part(part, "part", ("offset",))
    assert all(word in str(caught.value) for word in words), caught.value


def test_a_class_that_takes_any_keyword_takes_any_key():
    assert build({"class": "users_own_parts.Anything", "any": 1, "thing": 2}, "part").settings == {
        "any": 1,
        "thing": 2,
    }


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ({"class": SCALE, "factor": -1.0}, ["part: ", "factor=-1.0 must be at least 0"]),
        ({"class": SCALE, "factor": 101.0}, ["part: ", SCALE, "'factor': 101.0", "too large"]),
        ({"class": SCALE}, ["part: ", SCALE, "factor"]),  # a required argument is missing
    ],
)
def test_a_value_that_the_class_refuses_is_named(part, words):
    with pytest.raises(UserError) as caught:
        build(part, "part")
    assert all(word in str(caught.value) for word in words), caught.value


def test_did_you_mean_names_the_nearest_or_all():
    assert did_you_mean("budget", ["budgets", "seeds"]) == "; did you mean 'budgets'?"
    assert did_you_mean("zzz", ["seeds", "budgets"]) == "; known: budgets, seeds"
    assert did_you_mean("zzz", []) == ""
