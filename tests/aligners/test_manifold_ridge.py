import numpy as np
import pytest
import torch

from gera_lightning.aligners.base import FitData
from gera_lightning.aligners.kernel_ridge import KernelRidge, rbf
from gera_lightning.aligners.manifold_ridge import (
    ManifoldRidge,
    graph_laplacian,
    manifold_kernel_path,
    manifold_ridge_path,
)
from gera_lightning.aligners.ridge import Ridge
from gera_lightning.geometry.neighbors import SearchSettings, knn_graph


def cloud(n, d, seed=0, dtype=torch.float64):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(
        dtype
    )


def samples(n=9, pool=12, dtype=torch.float64):
    return FitData(
        cloud(n, 5, 0, dtype),
        cloud(n, 4, 1, dtype),
        cloud(pool, 5, 2, dtype),
        cloud(pool, 4, 3, dtype),
    )


def slow_laplacian(x, k):
    """From all distances: joined where either is among the other's k nearest, heat weights over the
    median of the directed edges.
    """
    x, n = np.asarray(x), len(x)
    d2 = np.array([[((u - v) ** 2).sum() for v in x] for u in x])
    near = [
        sorted((j for j in range(n) if j != i), key=lambda j, i=i: d2[i, j])[:k] for i in range(n)
    ]
    lengths = sorted(d2[i, j] for i in range(n) for j in near[i])
    median = lengths[(len(lengths) - 1) // 2]  # torch takes the lower of two
    out = np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            if i != j and (j in near[i] or i in near[j]):
                out[i, j] = -np.exp(-d2[i, j] / median)
    return out - np.diag(out.sum(1))


def test_the_laplacian_equals_slow_loops_and_sums_squares_over_edges():
    x, f = cloud(9, 4), cloud(9, 3, 5)
    found = graph_laplacian(knn_graph(x, 3, how=SearchSettings("torch"))).to_dense()
    np.testing.assert_allclose(found, slow_laplacian(x, 3), atol=1e-8)
    edges = sum(
        -float(found[i, j]) * float((f[i] - f[j]).square().sum())
        for i in range(9)
        for j in range(i)
    )
    assert float((f.T @ found @ f).trace()) == pytest.approx(edges)
    torch.testing.assert_close(found.sum(1), torch.zeros(9, dtype=torch.float64))


@pytest.mark.parametrize(("n", "d"), [(12, 5), (5, 12)])
@pytest.mark.parametrize("smoothness", [0.0, 0.3, 5.0])
def test_linear_maps_solve_the_normal_equations(n, d, smoothness):
    x, y, rows = cloud(n, d), cloud(n, 3, 1), torch.cat([cloud(n, d), cloud(9, d, 2)])
    lap = slow_laplacian(rows, 3)
    penalties = [10.0, 0.1]
    found = list(
        manifold_ridge_path(x, y, rows, torch.from_numpy(lap).to_sparse(), smoothness, penalties)
    )
    x, y, rows = x.numpy(), y.numpy(), rows.numpy()
    rough = rows.T @ lap @ rows
    metric = np.eye(d) + smoothness * d / np.trace(rough) * rough
    level = np.trace(x @ np.linalg.inv(metric) @ x.T) / min(n, d)
    for penalty, weight in zip(penalties, found, strict=True):
        np.testing.assert_allclose(
            weight,
            np.linalg.solve(x.T @ x + penalty * level * metric, x.T @ y),
            rtol=1e-8,
            atol=1e-10,
        )


@pytest.mark.parametrize("smoothness", [0.0, 0.3, 5.0])
def test_kernel_coefficients_solve_the_normal_equations_of_the_representer_theorem(smoothness):
    """`(J K + lam (I + M K)) A = [Y; 0]`, J keeping the pairs: the form of Belkin et al., without
    the deformed kernel.
    """
    x, y, more = cloud(7, 5), cloud(7, 3, 1), cloud(9, 5, 2)
    rows = torch.cat([x, more])
    kernel, lap = rbf(rows, rows, 9.0), slow_laplacian(rows, 3)
    penalties = [1.0, 0.05]
    found = list(
        manifold_kernel_path(y, kernel, torch.from_numpy(lap).to_sparse(), smoothness, penalties)
    )
    k = kernel.numpy()
    m = smoothness * len(k) / np.trace(k @ lap @ k) * lap
    keep = np.diag([1.0] * 7 + [0.0] * 9)
    target = np.concatenate([y.numpy(), np.zeros((9, 3))])
    level = np.trace((k - k @ np.linalg.inv(np.eye(16) + m @ k) @ m @ k)[:7, :7]) / 7
    for penalty, weight in zip(penalties, found, strict=True):
        expected = np.linalg.solve(keep @ k + penalty * level * (np.eye(16) + m @ k), target)
        np.testing.assert_allclose(k @ weight.numpy(), k @ expected, rtol=1e-7, atol=1e-9)


def test_without_smoothness_it_is_ridge_and_kernel_ridge():
    given = samples()
    for method, plain, setting in (
        (ManifoldRidge(), Ridge(), {"penalty": 0.3}),
        (ManifoldRidge(kernel=True, factor=2.0), KernelRidge(), {"penalty": 0.3, "factor": 2.0}),
    ):
        [found] = method.candidates(given, [{"penalty": 0.3, "smoothness": 0.0}])
        [expected] = plain.candidates(given, [setting])
        for side, x in (("a", given.pool_a), ("b", given.pool_b)):
            number = "ab".index(side)
            torch.testing.assert_close(found[number](x), expected[number](x))


@pytest.mark.parametrize("kernel", [False, True])
def test_rows_beyond_the_cap_are_not_read(kernel):
    given, method = samples(), ManifoldRidge(kernel=kernel, unpaired=6)
    cut = FitData(given.x_a, given.x_b, given.pool_a[:6], given.pool_b[:6])
    whole, part = (next(iter(method.candidates(s, method.settings(1, 9)))) for s in (given, cut))
    torch.testing.assert_close(whole[0](given.pool_a), part[0](given.pool_a), rtol=0, atol=0)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_graph_of_copies_alone_adds_nothing_to_ridge(seed):
    """Such as the names of classes, each as often as it has labelled rows: what their edges add is
    rounding.
    """
    names = torch.nn.functional.normalize(cloud(35, 384, seed, torch.float32), dim=1)
    x, y = names.repeat(20, 1), cloud(700, 3, 9, torch.float32)
    laplacian = graph_laplacian(knn_graph(x, 10))
    plain, smooth = (
        next(manifold_ridge_path(x, y, x, laplacian, weight, [0.1])) for weight in (0.0, 5.0)
    )
    torch.testing.assert_close(smooth, plain)
