import numpy as np
import pytest
import torch
from sklearn.kernel_ridge import KernelRidge as SklearnKernelRidge

from gera_lightning.aligners.base import FitData
from gera_lightning.aligners.coupled_ridge import CoupledRidge, anchor_regression
from gera_lightning.aligners.kernel_ridge import KernelRidge, rbf
from gera_lightning.models.maps import normalized
from gera_lightning.utils.errors import UserError


def rows(n, d, seed):
    return normalized(
        torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    )


@pytest.fixture
def samples():
    return FitData(rows(12, 7, 0), rows(12, 5, 1), rows(30, 7, 2), rows(25, 5, 3))


SETTING = {"eps": 1.3, "penalty": 0.4}


def slow(x, pool, new, targets):
    """scikit-learn's kernel ridge onto `targets`, less its mean over the pool, as unit rows."""
    model = SklearnKernelRidge(alpha=0.4, kernel="rbf", gamma=1 / 1.3).fit(x.numpy(), targets)
    z = model.predict(new.numpy()) - (
        model.predict(pool.numpy()).mean(0) if pool is not None else 0
    )
    return z / np.linalg.norm(z, axis=1, keepdims=True)


@pytest.mark.parametrize("centered", [True, False])
def test_the_coupled_cosine_is_that_of_two_regressions_onto_one_hot_pairs(samples, centered):
    [(map_a, map_b)] = CoupledRidge(predict=False, centered=centered).candidates(samples, [SETTING])
    new_a, new_b = rows(4, 7, 4), rows(6, 5, 5)
    z_a = slow(samples.x_a, samples.pool_a if centered else None, new_a, np.eye(12))
    z_b = slow(samples.x_b, samples.pool_b if centered else None, new_b, np.eye(12))
    np.testing.assert_allclose(
        normalized(map_a(new_a)) @ normalized(map_b(new_b)).T, z_a @ z_b.T, atol=1e-8
    )


def test_prediction_averages_with_kernel_ridge_both_ways(samples):
    [(map_a, map_b)] = CoupledRidge().candidates(samples, [SETTING])
    new_a, new_b = rows(4, 7, 4), rows(6, 5, 5)
    coupled = (
        slow(samples.x_a, samples.pool_a, new_a, np.eye(12))
        @ slow(samples.x_b, samples.pool_b, new_b, np.eye(12)).T
    )
    forward = slow(samples.x_a, samples.pool_a, new_a, samples.x_b.numpy()) @ new_b.numpy().T
    backward = new_a.numpy() @ slow(samples.x_b, samples.pool_b, new_b, samples.x_a.numpy()).T
    np.testing.assert_allclose(
        normalized(map_a(new_a)) @ normalized(map_b(new_b)).T,
        coupled / 2 + (forward + backward) / 4,
        atol=1e-8,
    )


def test_its_predictions_are_those_of_kernel_ridge(samples):
    """Uncentred and with one bandwidth, the regression half is the peer's own map."""
    scale = float(torch.pdist(samples.x_a).square().median())
    [(f, _)] = KernelRidge(direction="a_to_b", factors=(1.0,)).candidates(
        samples, [{"factor": 1.0, "penalty": 0.4}]
    )
    mine = (
        rbf(rows(4, 7, 4), samples.x_a, scale)
        @ anchor_regression(samples.x_a, scale, 0.4)
        @ samples.x_b
    )
    torch.testing.assert_close(f(rows(4, 7, 4)), mine)


def test_the_order_of_the_pairs_does_not_matter(samples):
    order = torch.randperm(12, generator=torch.Generator().manual_seed(7))
    turned = FitData(samples.x_a[order], samples.x_b[order], samples.pool_a, samples.pool_b)
    scores = []
    for each in (samples, turned):
        [(map_a, map_b)] = CoupledRidge().candidates(each, [SETTING])
        scores.append(normalized(map_a(rows(4, 7, 4))) @ normalized(map_b(rows(6, 5, 5))).T)
    torch.testing.assert_close(scores[0], scores[1])


def test_without_pools_nothing_is_subtracted(samples):
    alone = FitData(samples.x_a, samples.x_b, samples.pool_a[:0], samples.pool_b[:0])
    [with_empty], [uncentered] = (
        CoupledRidge(centered=c).candidates(alone, [SETTING]) for c in (True, False)
    )
    torch.testing.assert_close(with_empty[0](rows(4, 7, 4)), uncentered[0](rows(4, 7, 4)))


def test_settings_are_cut_and_checked():
    assert CoupledRidge().settings(1, 100) == [{"eps": 0.67, "penalty": 0.3}]
    assert len(CoupledRidge().settings(99, 100)) == len(CoupledRidge().settings_tried) == 7
    for tried in ((), ((1.0,),), ((1.0, 0.0),)):
        with pytest.raises(UserError, match="settings_tried"):
            CoupledRidge(settings_tried=tried)


def test_a_wide_kernel_is_nearly_linear(samples):
    """`exp(-d2 / eps) ~ 1 - 2 / eps + 2 x'y / eps`: of centred rows the fit is ridge regression
    with `lam eps / 2`.
    """
    x = [r - r.mean(0) for r in (samples.x_a, samples.x_b)]
    centred = FitData(*x, samples.pool_a[:0], samples.pool_b[:0])
    eps, lam = 1e5, 2 * 3 / 1e5
    [(f, _)] = CoupledRidge(predict=False).candidates(centred, [{"eps": eps, "penalty": lam}])
    weights = torch.linalg.solve(
        x[0] @ x[0].T + 3 * torch.eye(12, dtype=x[0].dtype), torch.eye(12, dtype=x[0].dtype)
    )
    queries = rows(4, 7, 4)
    found, expected = f(queries), queries @ x[0].T @ weights
    assert float(expected.abs().max()) > 0.02
    torch.testing.assert_close(
        found - found.mean(1, keepdim=True),
        expected - expected.mean(1, keepdim=True),
        rtol=0.01,
        atol=0.001,
    )
