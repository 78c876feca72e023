import numpy as np
import pytest
import torch
from scipy.linalg import eigh
from scipy.stats import multivariate_normal

from gera_lightning.aligners import cca
from gera_lightning.aligners.base import FitData
from gera_lightning.aligners.cca import CCA, SIMILARITIES, CanonicalFits
from gera_lightning.models.maps import normalized


def views(n=60, d_a=5, d_b=4, noise=1.0, dtype=torch.float64):
    rng = np.random.default_rng(0)
    latent = rng.normal(size=(n, 3))
    x = [latent @ rng.normal(size=(3, d)) + noise * rng.normal(size=(n, d)) for d in (d_a, d_b)]
    return [torch.from_numpy(v - v.mean(0)).to(dtype) for v in x]


def whitened(x, penalty):
    """`(C + lam)^-1/2` of a view, in the dense way."""
    c = (x.T @ x).numpy()
    lam = penalty * np.trace(c) / min(x.shape)
    values, vectors = np.linalg.eigh(c + lam * np.eye(len(c)))
    return vectors / np.sqrt(values) @ vectors.T


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-4), (torch.float64, 1e-9)])
@pytest.mark.parametrize("penalty", [0.1, 10.0])
@pytest.mark.parametrize("n", [60, 4])  # fewer pairs than dimensions too
def test_directions_and_correlations_equal_the_dense_formula(n, penalty, dtype, atol):
    x_a, x_b = views(n)
    a, b, rho = CanonicalFits(x_a.to(dtype), x_b.to(dtype))(penalty)
    root_a, root_b = whitened(x_a, penalty), whitened(x_b, penalty)
    u, s, vh = np.linalg.svd(root_a @ (x_a.T @ x_b).numpy() @ root_b, full_matrices=False)
    kept = int((s > 1e-6).sum())
    np.testing.assert_allclose(rho[:kept], s[:kept], atol=atol)
    np.testing.assert_allclose(rho[kept:], 0, atol=max(atol, 1e-6))
    # pairs of directions are fixed up to a common sign: compare what they score with
    for j in range(kept):
        expected = np.outer(root_a @ u[:, j], root_b @ vh[j])
        np.testing.assert_allclose(np.outer(a[:, j], b[:, j]), expected, atol=atol * 10)


def test_correlations_solve_the_generalised_eigenproblem():
    x_a, x_b = (x.numpy() for x in views())
    zero_a, zero_b = np.zeros((5, 5)), np.zeros((4, 4))
    left = np.block([[zero_a, x_a.T @ x_b], [x_b.T @ x_a, zero_b]])
    right = np.block([[x_a.T @ x_a, np.zeros((5, 4))], [np.zeros((4, 5)), x_b.T @ x_b]])
    expected = eigh(left, right, eigvals_only=True)[::-1][:4]
    np.testing.assert_allclose(CanonicalFits(*views())(0.0)[2], expected, atol=1e-9)


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_the_score_of_csa_equals_slow_loops(share):
    x_a, x_b = views(dtype=torch.float32)
    [(map_a, map_b)] = CCA("csa").candidates(
        FitData(x_a, x_b, x_a, x_b), [{"penalty": 0.5, "share": share}]
    )
    a, b, rho = CanonicalFits(x_a, x_b)(0.5)
    kept = max(1, round(share * len(rho)))
    z_a, z_b = map_a(x_a[:5]), map_b(x_b[:7])
    for i in range(5):
        for j in range(7):
            u, v = (x_a[i] @ a[:, :kept]).numpy(), (x_b[j] @ b[:, :kept]).numpy()
            expected = (
                sum(r * s * t for r, s, t in zip(rho.numpy(), u, v, strict=False))
                / np.linalg.norm(u)
                / np.linalg.norm(v)
            )
            assert float(z_a[i] @ z_b[j]) == pytest.approx(expected, abs=1e-5)
    for z in (z_a, z_b):  # so that the shared space's normalisation changes nothing
        torch.testing.assert_close(normalized(z), z, atol=1e-6, rtol=0)


def test_the_gaussian_score_weighs_products_as_the_models_likelihood_ratio_does(monkeypatch):
    """`log p(u, v) / p(u) p(v)`, of which terms of one view alone fall out of its second
    difference.
    """
    monkeypatch.setattr(cca, "UNSHARED", 0.0)
    x_a, x_b = views()
    [(map_a, map_b)] = CCA("gaussian").candidates(
        FitData(x_a, x_b, x_a, x_b), [{"penalty": 0.0, "share": 1.0}]
    )
    a, b, rho = CanonicalFits(x_a, x_b)(0.0)
    root = len(x_a) ** 0.5  # variates of unit variance

    def ratio(i, j):
        pairs = zip(
            (x_a[i] @ a * root).tolist(), (x_b[j] @ b * root).tolist(), rho.tolist(), strict=True
        )
        return sum(
            multivariate_normal([0, 0], [[1, r], [r, 1]]).logpdf([u, v]) for u, v, r in pairs
        )

    z_a, z_b = (map_a(x_a) * root).detach(), (map_b(x_b) * root).detach()
    for i, j, k, m in ((0, 1, 2, 3), (4, 5, 6, 7), (8, 8, 9, 9)):
        expected = ratio(i, j) - ratio(i, m) - ratio(k, j) + ratio(k, m)
        assert float((z_a[i] - z_a[k]) @ (z_b[j] - z_b[m])) == pytest.approx(expected)


def test_the_gaussian_score_finds_what_is_weak_in_one_view_and_strong_in_the_other():
    """Where the cosine of the variates drowns in the noise of directions that are not shared."""
    rng = np.random.default_rng(0)
    shared, own, noise = (rng.normal(size=(2, 400, d)) for d in (12, 20, 12))
    strength = 0.8 ** np.arange(12)
    x_a, x_b = (
        torch.from_numpy(np.concatenate([shared[0] * weight + 0.03 * noise[n], own[n]], 1)).float()
        for n, weight in enumerate((strength, strength[::-1]))
    )
    found = {}
    for score in SIMILARITIES:
        [(map_a, map_b)] = CCA(score).candidates(
            FitData(x_a[:200], x_b[:200], x_a[:0], x_b[:0]), [{"penalty": 1e-3, "share": 1.0}]
        )
        z_a, z_b = normalized(map_a(x_a[200:])), normalized(map_b(x_b[200:]))
        found[score] = float(((z_a @ z_b.T).argmax(1) == torch.arange(200)).float().mean())
    assert found["gaussian"] > 0.9 > 0.7 > found["csa"] > found["cosine"]


def test_settings_go_from_the_strongest_penalty_and_fewest_dimensions():
    found = [
        (s["penalty"], s["share"])
        for s in CCA(dims=(0.5, 1.0), smallest=0.1, largest=10.0).settings(4, 60)
    ]
    np.testing.assert_allclose(found, [(10, 0.5), (10, 1), (0.1, 0.5), (0.1, 1)])


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_a_view_of_zeros_has_no_directions(similarity):
    x_a, x_b = views(dtype=torch.float32)
    zeros = torch.zeros_like(x_a)
    [(map_a, map_b)] = CCA(similarity).candidates(
        FitData(zeros, x_b, zeros, x_b), [{"penalty": 0.5, "share": 1.0}]
    )
    assert not map_a(x_a)[:, :4].any()
    assert torch.isfinite(map_b(x_b)).all()


def test_one_penalty_is_one_setting():
    assert CCA(dims=(1.0,), smallest=0.3, largest=0.3).settings(8, 60) == [
        {"penalty": 0.3, "share": 1.0}
    ]
