import pytest
import torch

from gera_lightning.aligners.alternatives import Alternatives
from gera_lightning.aligners.base import FitData
from gera_lightning.aligners.cca import CCA
from gera_lightning.aligners.coupled_ridge import CoupledRidge
from gera_lightning.aligners.ridge import Ridge
from gera_lightning.models.maps import normalized
from gera_lightning.utils.instantiate import build

FORM, OTHERS = CoupledRidge(), (Ridge(), CCA("gaussian"))


def rows(n, d, seed):
    return normalized(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize(
    ("count", "own", "others"), [(1, 1, 0), (2, 1, 1), (3, 1, 2), (4, 2, 2), (7, 5, 2), (50, 7, 2)]
)
def test_alternatives_take_one_setting_each_and_the_form_the_rest(count, own, others):
    first = [
        {"alternative": float(n), **method.settings(1, 20)[0]} for n, method in enumerate(OTHERS, 1)
    ]
    assert Alternatives(FORM, OTHERS).settings(count, 20) == [
        *FORM.settings(own, 20),
        *first[:others],
    ]


def test_every_setting_is_fitted_by_the_method_that_it_is_of():
    samples = FitData(rows(20, 6, 0), rows(20, 5, 1), rows(9, 6, 2), rows(9, 5, 3))
    method = Alternatives(FORM, OTHERS)
    settings = method.settings(6, 20)
    settings = [settings[n] for n in (5, 0, 4, 1, 2, 3)]  # in any order
    alone = [
        next((Ridge(), CCA("gaussian"))[n].candidates(samples, m.settings(1, 20)))
        for n, m in enumerate(OTHERS)
    ]
    expected = [
        alone[1],
        *FORM.candidates(samples, settings[1:2]),
        alone[0],
        *FORM.candidates(samples, settings[3:]),
    ]
    found = list(method.candidates(samples, settings))
    assert len(found) == len(expected) == 6
    x_a, x_b = rows(7, 6, 4), rows(8, 5, 5)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine[0](x_a) @ mine[1](x_b).T, theirs[0](x_a) @ theirs[1](x_b).T)


def test_a_config_names_them():
    others = [{"class": "cca", "similarity": "gaussian"}]
    made = build(
        {"class": "alternatives", "form": {"class": "ridge"}, "others": others}, "closed_form"
    )
    assert made == Alternatives(Ridge(), [CCA("gaussian")])
