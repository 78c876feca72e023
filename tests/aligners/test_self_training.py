import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge as SklearnRidge

from gera_lightning.aligners.asif import ASIF
from gera_lightning.aligners.base import FitData
from gera_lightning.aligners.cca import CCA
from gera_lightning.aligners.kernel_ridge import KernelRidge
from gera_lightning.aligners.ridge import Ridge
from gera_lightning.aligners.self_training import SelfTraining, mutual_neighbours
from gera_lightning.models.maps import Identity, normalized
from gera_lightning.utils.instantiate import build


def cloud(n, d, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def samples(n=9, pool_a=14, pool_b=11):
    return FitData(
        *(
            normalized(x)
            for x in (cloud(n, 5), cloud(n, 4, 1), cloud(pool_a, 5, 2), cloud(pool_b, 4, 3))
        )
    )


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def slow_mutual(z_a, z_b, count, k):
    """By loops over unit rows: pairs that are each other's best by `cos - r_b(a)/2 - r_a(b)/2`."""
    cos = z_a @ z_b.T
    r_a = [np.sort(row)[::-1][:k].mean() for row in cos]
    r_b = [np.sort(col)[::-1][:k].mean() for col in cos.T]
    score = np.array(
        [[cos[i, j] - r_a[i] / 2 - r_b[j] / 2 for j in range(len(z_b))] for i in range(len(z_a))]
    )
    pairs = [
        (i, j)
        for i in range(len(z_a))
        for j in range(len(z_b))
        if score[i, j] == score[i].max() == score[:, j].max()
    ]
    return sorted(pairs, key=lambda p: -score[p])[:count]


@pytest.mark.parametrize(("count", "k"), [(3, 2), (100, 4), (100, 50)])
def test_mutual_neighbours_equal_slow_loops(count, k):
    z_a, z_b = normalized(cloud(14, 4)), normalized(cloud(11, 4, 1))
    i, j = mutual_neighbours((Identity(4), Identity(4)), z_a, z_b, count, k)
    expected = slow_mutual(z_a.numpy(), z_b.numpy(), count, k)
    assert list(zip(i.tolist(), j.tolist(), strict=True)) == expected
    assert len(expected) == min(count, len(expected)) > 1


def slow_self_training(given, penalties, ratio, weight, rounds):
    """Ridge a->b and b->a with sample weights by scikit-learn, pseudo-pairs by loops; the form's
    middle setting of five has penalty 1.
    """

    def fit(x, y, weights, penalty):
        level = (weights[:, None] * x**2).sum() / min(x.shape)
        return (
            SklearnRidge(alpha=penalty * level, fit_intercept=False, solver="cholesky")
            .fit(x, y, sample_weight=weights)
            .coef_.T
        )

    def maps(i, j, penalty):
        x_a = np.concatenate([given.x_a, given.pool_a.numpy()[i]])
        x_b = np.concatenate([given.x_b, given.pool_b.numpy()[j]])
        weights = np.array([1.0] * len(given.x_a) + [weight] * len(i))
        return fit(x_a, x_b, weights, penalty), fit(x_b, x_a, weights, penalty)

    i, j = [], []
    for _ in range(rounds):
        there, back = maps(i, j, 1.0)
        pool_a, pool_b = given.pool_a.numpy(), given.pool_b.numpy()
        z_a = np.concatenate([unit(pool_a @ there), unit(pool_a)], 1) / np.sqrt(2)
        z_b = np.concatenate([unit(pool_b), unit(pool_b @ back)], 1) / np.sqrt(2)
        pairs = slow_mutual(z_a, z_b, round(ratio * len(given.x_a)), 10)
        i, j = [p[0] for p in pairs], [p[1] for p in pairs]
    return [maps(i, j, penalty) for penalty in penalties]


@pytest.mark.parametrize(
    ("ratio", "weight", "rounds"), [(0.4, 0.3, 1), (0.6, 0.5, 3), (0.4, 1.0, 2)]
)
def test_rounds_of_weighted_pseudo_pairs_equal_a_slow_second_implementation(ratio, weight, rounds):
    given = samples()
    method = SelfTraining(Ridge(), weight=weight, rounds=rounds)
    found = method.candidates(given, [{"penalty": p, "ratio": ratio} for p in (3.0, 0.05)])
    for (map_a, map_b), (there, back) in zip(
        found, slow_self_training(given, (3.0, 0.05), ratio, weight, rounds), strict=True
    ):
        np.testing.assert_allclose(map_a.maps[0].weight.detach(), there, rtol=1e-7, atol=1e-9)
        np.testing.assert_allclose(map_b.maps[1].weight.detach(), back, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("base", [Ridge(), CCA(), KernelRidge(), ASIF()])
def test_settings_are_the_forms_own_with_every_ratio_and_without_pseudo_pairs_it_is_the_form(base):
    given = samples()
    method = SelfTraining(base, ratios=(0.0, 0.5), weight=1.0)
    settings = method.settings(8, 9)
    assert 2 <= len(settings) <= 8
    assert {s["ratio"] for s in settings} == {0.0, 0.5}
    found = list(method.candidates(given, settings))
    own = base.settings(4, 9)
    for plain, expected in zip(found[::2], base.candidates(given, own), strict=True):
        torch.testing.assert_close(plain[0](given.pool_a), expected[0](given.pool_a))
    assert any(
        a.shape != b.shape or not torch.allclose(a, b)
        for a, b in (
            (with_more[0](given.pool_a), plain[0](given.pool_a))
            for plain, with_more in zip(found[::2], found[1::2], strict=True)
        )
    )
    assert len(method.settings(1, 9)) == 1


def test_empty_pools_leave_the_pairs_alone():
    given = samples()
    empty = FitData(given.x_a, given.x_b, given.pool_a[:0], given.pool_b[:0])
    [(found, _)] = SelfTraining().candidates(empty, [{"penalty": 0.3, "ratio": 1.0}])
    [(expected, _)] = Ridge().candidates(empty, [{"penalty": 0.3}])
    assert torch.equal(found(given.x_a), expected(given.x_a))


def test_a_form_inside_is_built_from_its_part():
    made = build(
        {"class": "self_training", "base": {"class": "cca", "smallest": 1.0}}, "closed_form"
    )
    assert made.base == CCA(smallest=1.0)
