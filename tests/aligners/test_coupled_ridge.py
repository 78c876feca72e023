import numpy as np
import pytest
import torch
from sklearn.kernel_ridge import KernelRidge as SklearnKernelRidge

from gera_lightning.aligners.base import FitData
from gera_lightning.aligners.coupled_ridge import CoupledMap, CoupledRidge, mean_kernel
from gera_lightning.models.maps import normalized

EPS, PENALTY = 1.3, 0.4
SETTING = {"eps": EPS, "penalty": PENALTY}


def rows(n, d, seed):
    return normalized(
        torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    )


@pytest.fixture
def samples():
    return FitData(rows(12, 7, 0), rows(12, 5, 1), rows(30, 7, 2), rows(25, 5, 3))


NEW_A, NEW_B = rows(4, 7, 4), rows(6, 5, 5)


def slow(x, pool, new, targets):
    """scikit-learn's kernel ridge onto `targets`, less its mean over the pool, as unit rows."""
    model = SklearnKernelRidge(alpha=PENALTY, kernel="rbf", gamma=1 / EPS)
    model.fit(x.numpy(), targets)
    z = model.predict(new.numpy()) - (model.predict(pool.numpy()).mean(0) if len(pool) else 0)
    return z / np.linalg.norm(z, axis=1, keepdims=True)


@pytest.mark.parametrize("centered", [True, False])
def test_the_coupled_cosine_is_that_of_two_regressions_onto_one_hot_pairs(samples, centered):
    [(map_a, map_b)] = CoupledRidge(predict=False, centered=centered).candidates(samples, [SETTING])
    pool_a, pool_b = (pool if centered else pool[:0] for pool in (samples.pool_a, samples.pool_b))
    z_a = slow(samples.x_a, pool_a, NEW_A, np.eye(12))
    z_b = slow(samples.x_b, pool_b, NEW_B, np.eye(12))
    np.testing.assert_allclose(
        normalized(map_a(NEW_A)) @ normalized(map_b(NEW_B)).T, z_a @ z_b.T, atol=1e-8
    )


@pytest.mark.parametrize("pools", [True, False])
def test_the_score_is_the_mean_of_the_coupled_cosine_and_of_both_regressions(samples, pools):
    if not pools:
        empty = (samples.pool_a[:0], samples.pool_b[:0])
        samples = FitData(samples.x_a, samples.x_b, *empty)
    [(map_a, map_b)] = CoupledRidge().candidates(samples, [SETTING])
    coupled = (
        slow(samples.x_a, samples.pool_a, NEW_A, np.eye(12))
        @ slow(samples.x_b, samples.pool_b, NEW_B, np.eye(12)).T
    )
    forward = slow(samples.x_a, samples.pool_a, NEW_A, samples.x_b.numpy()) @ NEW_B.numpy().T
    backward = NEW_A.numpy() @ slow(samples.x_b, samples.pool_b, NEW_B, samples.x_a.numpy()).T
    z_a, z_b = map_a(NEW_A), map_b(NEW_B)
    np.testing.assert_allclose(z_a @ z_b.T, coupled / 2 + (forward + backward) / 4, atol=1e-8)
    torch.testing.assert_close(z_a.norm(dim=1), torch.ones(4, dtype=z_a.dtype))


def slow_coupled(x, anchors, solve, mean, targets, eps):
    """The formula of `CoupledMap`, one row after the other."""

    def unit(v):
        return v / np.linalg.norm(v)

    out = []
    for row in x:
        kernel = np.array([np.exp(-((row - anchor) ** 2).sum() / eps) for anchor in anchors])
        r = kernel @ solve - mean
        f = r @ targets
        out.append([unit(f) * 0.25**0.5, unit(r) * 0.5**0.5, unit(row) * 0.25**0.5])
    return out


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_the_map_equals_its_formula_in_loops(dtype, atol):
    anchors, solve, mean, targets = (
        rows(12, 7, 0),
        rows(12, 12, 6),
        rows(1, 12, 7)[0],
        rows(12, 5, 1),
    )
    parts = anchors, solve, mean, targets
    blocks = slow_coupled(NEW_A.numpy(), *(part.numpy() for part in parts), EPS)
    given = [part.to(dtype) for part in parts]
    for reverse in (False, True):
        expected = [np.concatenate(row[::-1] if reverse else row) for row in blocks]
        found = CoupledMap(*given, eps=EPS, reverse=reverse)(NEW_A.to(dtype))
        np.testing.assert_allclose(found, expected, atol=atol)


def test_the_mean_kernel_is_taken_in_parts():
    pool, x = rows(30, 7, 2), rows(12, 7, 0)
    whole = mean_kernel(pool, x, EPS)
    torch.testing.assert_close(mean_kernel(pool, x, EPS, chunk=7), whole)
    slow_mean = [
        np.mean([np.exp(-((u - v) ** 2).sum() / EPS) for u in pool.numpy()]) for v in x.numpy()
    ]
    np.testing.assert_allclose(whole, slow_mean)


def test_settings_begin_with_the_one_to_prefer():
    assert CoupledRidge().settings(1, 100) == [{"eps": 0.67, "penalty": 0.3}]
    assert len(CoupledRidge().settings(99, 100)) == len(CoupledRidge().settings_tried) == 7


def test_a_wide_kernel_is_nearly_linear(samples):
    """`exp(-d2 / eps) ~ 1 - 2 / eps + 2 x'y / eps`: of centred rows the fit is ridge regression
    with `lam eps / 2`.
    """
    x = [r - r.mean(0) for r in (samples.x_a, samples.x_b)]
    centred = FitData(*x, samples.pool_a[:0], samples.pool_b[:0])
    eps, lam = 1e5, 2 * 3 / 1e5
    [(f, _)] = CoupledRidge(predict=False).candidates(centred, [{"eps": eps, "penalty": lam}])
    identity = torch.eye(12, dtype=x[0].dtype)
    found = f(NEW_A)
    expected = NEW_A @ x[0].T @ torch.linalg.solve(x[0] @ x[0].T + 3 * identity, identity)
    assert float(expected.abs().max()) > 0.02
    torch.testing.assert_close(
        found - found.mean(1, keepdim=True),
        expected - expected.mean(1, keepdim=True),
        rtol=0.01,
        atol=0.001,
    )
