import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge as SklearnRidge

from gera_lightning.aligners.base import FitData, grid, log_spaced
from gera_lightning.aligners.ridge import Ridge, ridge_path
from gera_lightning.models.maps import Concat, Identity, Linear


def cloud(n, d, seed=0, dtype=torch.float64):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(
        dtype
    )


def samples(n=9, d_a=5, d_b=4, dtype=torch.float64):
    return FitData(
        cloud(n, d_a, 0, dtype),
        cloud(n, d_b, 1, dtype),
        cloud(20, d_a, 2, dtype),
        cloud(20, d_b, 3, dtype),
    )


PENALTIES = [100.0, 1.0, 1e-3]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("n", "d"), [(12, 5), (5, 12), (7, 7)])
def test_ridge_path_equals_scikit_learn(n, d, dtype):
    x, y = cloud(n, d, dtype=dtype), cloud(n, 3, 1, dtype)
    for penalty, weight in zip(PENALTIES, ridge_path(x, y, PENALTIES), strict=True):
        lam = penalty * float(x.square().sum()) / min(n, d)
        expected = (
            SklearnRidge(alpha=lam, fit_intercept=False, solver="cholesky")
            .fit(x.double().numpy(), y.double().numpy())
            .coef_.T
        )
        np.testing.assert_allclose(
            weight,
            expected,
            rtol=1e-3 if dtype == torch.float32 else 1e-8,
            atol=1e-4 if dtype == torch.float32 else 1e-10,
        )


def test_a_penalty_means_the_same_at_twice_the_pairs_and_any_scale():
    x, y = cloud(12, 5), cloud(12, 3, 1)
    [once] = ridge_path(x, y, [0.3])
    [twice] = ridge_path(torch.cat([x, x]), torch.cat([y, y]), [0.3])
    [scaled] = ridge_path(10 * x, y, [0.3])
    torch.testing.assert_close(twice, once)
    torch.testing.assert_close(10 * scaled, once)


@pytest.mark.parametrize("direction", ["both", "a_to_b", "b_to_a"])
def test_candidates_are_the_ridge_maps_of_their_direction(direction):
    given = samples(dtype=torch.float32)
    settings = Ridge(direction).settings(3, 9)
    forward = list(ridge_path(given.x_a, given.x_b, [s["penalty"] for s in settings]))
    backward = list(ridge_path(given.x_b, given.x_a, [s["penalty"] for s in settings]))
    for number, (map_a, map_b) in enumerate(Ridge(direction).candidates(given, settings)):
        if direction == "both":
            assert isinstance(map_a, Concat)
            assert isinstance(map_b, Concat)
            assert torch.equal(map_a.maps[0].weight, forward[number])
            assert torch.equal(map_b.maps[1].weight, backward[number])
        else:
            linear, identity, weight = (
                (map_a, map_b, forward) if direction == "a_to_b" else (map_b, map_a, backward)
            )
            assert isinstance(linear, Linear)
            assert isinstance(identity, Identity)
            assert torch.equal(linear.weight, weight[number])
        assert map_a(given.x_a).shape[1] == map_b(given.x_b).shape[1]


def test_settings_go_from_the_strongest_penalty_to_the_weakest():
    settings = Ridge(smallest=1e-2, largest=1e2).settings(5, 9)
    np.testing.assert_allclose([s["penalty"] for s in settings], [100, 10, 1, 0.1, 0.01])
    assert Ridge(largest=1e2).settings(1, 9) == [{"penalty": 100.0}]


def test_grids_vary_the_last_axis_fastest_and_are_cut():
    assert grid(3, p=[1, 2], q=[5.0, 6.0]) == [
        {"p": 1.0, "q": 5.0},
        {"p": 1.0, "q": 6.0},
        {"p": 2.0, "q": 5.0},
    ]
    np.testing.assert_allclose(log_spaced(8, 1, 4), [8, 4, 2, 1])
    assert log_spaced(8, 1, 1) == [8]
