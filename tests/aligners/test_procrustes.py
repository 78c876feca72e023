import numpy as np
import pytest
import torch
from scipy.linalg import orthogonal_procrustes

from gera_lightning.aligners.base import FitData
from gera_lightning.aligners.procrustes import Procrustes


def cloud(n, d, seed=0, dtype=torch.float64):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(
        dtype
    )


def fit(x_a, x_b, share=1.0):
    [(map_a, map_b)] = Procrustes().candidates(
        FitData(x_a, x_b, x_a[:0], x_b[:0]), [{"share": share}]
    )
    return map_a.weight.detach(), map_b.weight.detach()


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-3), (torch.float64, 1e-8)])
def test_scores_equal_those_of_scipys_rotation(dtype, rtol):
    x_a, x_b = cloud(12, 5, dtype=dtype), cloud(12, 5, 1, dtype)
    a, b = fit(x_a, x_b)
    rotation, _ = orthogonal_procrustes(x_a.double().numpy(), x_b.double().numpy())
    np.testing.assert_allclose(a @ b.T, rotation, rtol=rtol, atol=rtol)


@pytest.mark.parametrize(("n", "d_a", "d_b"), [(12, 5, 4), (4, 7, 6), (5, 3, 9)])
@pytest.mark.parametrize("share", [1.0, 0.5])
def test_maps_are_the_leading_singular_vectors_of_the_cross_covariance(n, d_a, d_b, share):
    x_a, x_b = cloud(n, d_a), cloud(n, d_b, 1)
    a, b = fit(x_a, x_b, share)
    u, s, vh = np.linalg.svd((x_a.T @ x_b).numpy(), full_matrices=False)
    largest = min(n, d_a, d_b)
    rank = max(1, round(share * largest))
    assert a.shape == (d_a, rank)
    assert b.shape == (d_b, rank)
    np.testing.assert_allclose(a @ b.T, u[:, :rank] @ vh[:rank], atol=1e-8)
    np.testing.assert_allclose((a.T @ x_a.T @ x_b @ b).diagonal(), s[:rank], rtol=1e-8)
    for weight in (a, b):
        torch.testing.assert_close(weight.T @ weight, torch.eye(rank, dtype=torch.float64))


def test_settings_end_with_plain_procrustes():
    shares = [s["share"] for s in Procrustes().settings(4, 64)]
    np.testing.assert_allclose(shares, [1 / 8, 1 / 4, 1 / 2, 1])
    assert Procrustes().settings(1, 64) == [{"share": 1.0}]
    assert {s["share"] for s in Procrustes().settings(3, 4)} == {1.0}
