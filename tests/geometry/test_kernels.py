import math

import numpy as np
import pytest
import torch

from gera_lightning.geometry import kernels
from gera_lightning.utils.errors import UserError

DTYPES = [torch.float32, torch.float64]


def points(dtype=torch.float64, a=3, m=6, d=5, seed=0):
    return torch.randn(
        a, m, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_squared_distances_equal_a_slow_loop(dtype):
    x = points(dtype)
    slow = np.zeros((3, 6, 6))
    for i in range(3):
        for j in range(6):
            for k in range(6):
                slow[i, j, k] = (
                    (x[i, j].numpy().astype(np.float64) - x[i, k].numpy().astype(np.float64)) ** 2
                ).sum()
    d2 = kernels.squared_distances(x)
    np.testing.assert_allclose(
        d2,
        slow,
        rtol=1e-4 if dtype == torch.float32 else 1e-10,
        atol=1e-5 if dtype == torch.float32 else 1e-12,
    )
    assert (d2.diagonal(dim1=-2, dim2=-1) == 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", list(kernels.KERNELS))
def test_kernels_equal_slow_formulas(name, dtype):
    formulas = {
        "heat": lambda d2, eps: math.exp(-d2 / eps),
        "student": lambda d2, eps: 1 / (1 + d2 / eps),
        "laplacian": lambda d2, eps: math.exp(-math.sqrt(d2) / math.sqrt(eps)),
    }
    d2 = kernels.squared_distances(points(dtype))
    w = kernels.KERNELS[name](d2, torch.tensor(3.0, dtype=dtype))
    slow = np.vectorize(lambda v: formulas[name](v, 3.0))(d2.numpy().astype(np.float64))
    np.testing.assert_allclose(w, slow, rtol=1e-5)
    assert w.dtype == dtype
    assert (w.diagonal(dim1=-2, dim2=-1) == 1).all()


@pytest.mark.parametrize("name", list(kernels.KERNELS))
@pytest.mark.parametrize("case", ["duplicates", "identical"])
def test_values_and_gradients_are_finite_on_coinciding_points(name, case):
    x = points(torch.float32)
    x[:, 1] = x[:, 0]
    if case == "identical":
        x[:] = x[:1, :1]
    x.requires_grad_()
    d2 = kernels.squared_distances(x)
    eps = kernels.bandwidth(d2, "patch", 0.5, 1.0, 3, kernels.bandwidth_floor(1.0))
    w = kernels.KERNELS[name](d2, eps)
    w.square().sum().backward()
    assert w.isfinite().all()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_bandwidth_rules_equal_slow_formulas():
    d2 = kernels.squared_distances(points())
    floor = kernels.bandwidth_floor(1.0)
    patch = kernels.bandwidth(d2, "patch", 0.5, 1.0, 3, floor)
    tuned = kernels.bandwidth(d2, "self_tuning", 2.0, 1.0, 3, floor)
    for i in range(3):
        off = [float(d2[i, j, k]) for j in range(6) for k in range(6) if j != k]
        assert float(patch[i]) == pytest.approx(0.5 * np.mean(off))
        s = [
            math.sqrt(sorted(float(v) for v in d2[i, j])[3]) for j in range(6)
        ]  # entry 0 is the point itself
        np.testing.assert_allclose(tuned[i], 2 * np.outer(s, s))
    assert float(kernels.bandwidth(d2, "global", 0.5, 3.0, 3, floor)) == pytest.approx(1.5)
    assert float(kernels.bandwidth(d2, "fixed", 0.7, 3.0, 3, floor)) == pytest.approx(0.7)


def test_bandwidth_has_a_floor_and_no_gradient():
    x = points().requires_grad_()
    d2 = kernels.squared_distances(x)
    assert not kernels.bandwidth(d2, "patch", 1.0, 1.0, 3, 1e-6).requires_grad
    torch.testing.assert_close(
        kernels.bandwidth(torch.zeros(2, 4, 4), "patch", 1.0, 0.5, 3, kernels.bandwidth_floor(0.5)),
        torch.full((2, 1, 1), 5e-7),
    )


def test_an_unknown_rule_names_the_nearest():
    with pytest.raises(UserError, match="self_tuning"):
        kernels.bandwidth(torch.zeros(1, 3, 3), "selftuning", 1.0, 1.0, 3, 1e-6)


def test_distances_of_near_neighbours_survive_autocast():
    x = torch.nn.functional.normalize(
        torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0)) * 0.01 + torch.ones(8),
        dim=2,
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = kernels.squared_distances(x)
        lower = kernels.squared_distances(x.bfloat16())
    assert torch.equal(found, kernels.squared_distances(x))
    assert found.dtype == lower.dtype == torch.float32
