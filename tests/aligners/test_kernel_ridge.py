import numpy as np
import pytest
import torch
from sklearn.kernel_ridge import KernelRidge as SklearnKernelRidge

from gera_lightning.aligners.base import FitData
from gera_lightning.aligners.kernel_ridge import KernelRidge, rbf


def cloud(n, d, seed=0, dtype=torch.float64):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(
        dtype
    )


def samples(n=10, dtype=torch.float64):
    return FitData(
        cloud(n, 5, 0, dtype), cloud(n, 4, 1, dtype), cloud(3, 5, 2, dtype), cloud(3, 4, 3, dtype)
    )


def median_d2(x):
    d2 = [((x[i] - x[j]) ** 2).sum() for i in range(len(x)) for j in range(i)]
    assert len(d2) % 2 == 1  # so that there is one median only
    return float(np.median(d2))


def test_the_kernel_equals_slow_loops():
    x, y = cloud(4, 5), cloud(6, 5, 1)
    slow = [[np.exp(-((u - v) ** 2).sum() / 3.0) for v in y.numpy()] for u in x.numpy()]
    np.testing.assert_allclose(rbf(x, y, 3.0), slow, rtol=1e-10)
    torch.testing.assert_close(rbf(x, x, 1e-3).diagonal(), torch.ones(4, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "setting",
    [
        {"penalty": 1.0, "factor": 4.0},
        {"penalty": 0.01, "factor": 1.0},
        {"penalty": 0.1, "factor": 0.3},
    ],
)
def test_maps_equal_scikit_learn(setting, dtype):
    given = samples(dtype=dtype)
    [(map_a, map_b)] = KernelRidge().candidates(given, [setting])
    new_a, new_b = cloud(6, 5, 7), cloud(6, 4, 8)
    for x, y, new, mapping in (
        (given.x_a, given.x_b, new_a, map_a.maps[0]),
        (given.x_b, given.x_a, new_b, map_b.maps[1]),
    ):
        x, y = x.double().numpy(), y.double().numpy()
        gamma = 1 / (setting["factor"] * median_d2(x))
        expected = (
            SklearnKernelRidge(alpha=setting["penalty"], kernel="rbf", gamma=gamma)
            .fit(x, y)
            .predict(new.numpy())
        )
        (
            np.testing.assert_allclose(mapping(new.to(dtype)), expected, rtol=1e-7, atol=1e-8)
            if dtype == torch.float64
            else (
                np.testing.assert_allclose(mapping(new.to(dtype)), expected, rtol=1e-3, atol=1e-4)
            )
        )


def test_settings_go_from_the_strongest_penalty_and_widest_kernel():
    settings = KernelRidge(factors=(4.0, 1.0), smallest=0.01, largest=1.0).settings(6, 10)
    np.testing.assert_allclose(
        [(s["penalty"], s["factor"]) for s in settings],
        [(1, 4), (1, 1), (0.1, 4), (0.1, 1), (0.01, 4), (0.01, 1)],
    )
    assert len(KernelRidge().settings(1, 10)) == 1
