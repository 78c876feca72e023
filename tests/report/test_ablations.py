from __future__ import annotations

import pytest

from gera_lightning.report.ablations import _in_words, ablations

GEOMETRIC = {"class": "geometric", "kernel": "heat", "weight": 1.0}


def losses(**changes):
    """The pair loss, and the geometric loss with changes."""
    return {"pair": {"class": "clip"}, "geometric": {**GEOMETRIC, **changes}}


def trained(**changes):
    """A run's settings as its config.yaml has them, `a__b` for `a.b`."""
    out = {
        "experiment": "e",
        "method": "m",
        "budget": 10,
        "seed": 0,
        "data": {"pool_size": None, "shared_pools": False, "reserved_pairs": 100},
        "graph": {"k": 16},
        "losses": {"pair": {"class": "clip"}, "geometric": GEOMETRIC},
        "optimizer": {"class": "torch.optim.AdamW", "lr": 1e-4},
        "tuning": {"max_trials": 8},
    }
    for key, value in changes.items():
        section, _, name = key.partition("__")
        if name:
            out[section] = {**out[section], name: value}
        else:
            out[section] = value
    return out


def test_methods_that_differ_in_a_few_settings_are_found_with_what_differs():
    settings = {
        "plain": trained(),
        "k": trained(graph__k=64, method="k", budget=20, seed=3, data__reserved_pairs=50),
        "kernel_and_pool": trained(losses=losses(kernel="laplacian"), data__pool_size=64),
        "four": trained(graph__k=4, data__pool_size=64, data__shared_pools=True, optimizer__lr=1.0),
        "peer": trained(losses={**losses(), "structure": {"class": "structure"}}),
        "siglip": trained(losses={**losses(), "pair": {"class": "siglip"}}),
        "same": trained(),
    }
    assert ablations(settings, "plain") == {
        "k": {"graph.k": 64},
        "kernel_and_pool": {"losses.geometric.kernel": "laplacian", "data.pool_size": 64},
    }
    assert ablations(settings, "nobody") == {}


def test_a_section_that_one_lacks_is_one_change_with_its_weight():
    settings = {"plain": trained(), "twin": trained(losses={"pair": {"class": "clip"}})}
    assert ablations(settings, "plain") == {"twin": {"losses.geometric.class": None}}
    assert ablations(settings, "twin") == {"plain": {"losses.geometric.class": "geometric"}}


def test_what_is_tuned_is_no_fixed_value():
    grid = {"grid": {"losses.geometric.weight": [1, 10]}, "max_trials": 8}
    settings = {
        "plain": trained(tuning=grid),
        "also": trained(tuning=grid, losses=losses(weight=5.0)),
        "fixed": trained(losses=losses(weight=10.0)),
    }
    assert ablations(settings, "plain") == {"fixed": {"losses.geometric.weight": 10.0}}
    assert ablations(settings, "fixed") == {
        "plain": {"losses.geometric.weight": "tuned: 1, 10"},
        "also": {"losses.geometric.weight": "tuned: 1, 10"},
    }


def test_another_closed_form_is_another_method():
    base = {
        "closed_form": {"class": "x.Ridge", "strength": 1},
        "correction": {"class": "x.CSLS", "weight": 0.5},
    }
    settings = {
        "coupled_ridge": base,
        "stronger": {**base, "closed_form": {"class": "x.Ridge", "strength": 2}},
        "off": {**base, "correction": None},
        "cca": {**base, "closed_form": {"class": "x.CCA", "strength": 1}},
    }
    assert set(ablations(settings, "coupled_ridge")) == {"stronger", "off"}
    assert ablations(settings, "coupled_ridge")["off"] == {"correction": None}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "none"),
        ([], "none"),
        (True, "true"),
        (0.5, "0.5"),
        ("laplacian", "laplacian"),
        ({"class": "a.b.CSLS", "weight": 0.5}, "CSLS weight 0.5"),
        (
            [[], [{"class": "x.Beside", "filter": {"class": "x.Diffusion", "k": 4}}]],
            "none | Beside filter Diffusion k 4",
        ),
    ],
)
def test_a_setting_in_words(value, words):
    assert _in_words(value) == words
