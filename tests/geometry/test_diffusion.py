import dataclasses
import itertools

import numpy as np
import pytest
import torch

from gera_lightning.filters.diffusion import GraphDiffusion
from gera_lightning.geometry import diffusion
from gera_lightning.geometry.diffusion import DiffusionOperator, effective_neighbors, patch_operator
from gera_lightning.geometry.kernels import BANDWIDTHS, KERNELS, squared_distances
from gera_lightning.geometry.neighbors import NeighborGraph, SearchSettings, knn_graph
from gera_lightning.utils.errors import UserError


def cloud(n=40, d=6, seed=0, dtype=torch.float64):
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(x, dim=1).to(dtype)


def slow_operator(x, kernel, factor, alpha, power):
    """One patch in plain loops, patch bandwidth."""
    m = len(x)
    d2 = np.array([[((x[j] - x[k]) ** 2).sum() for k in range(m)] for j in range(m)])
    eps = factor * d2.sum() / (m * (m - 1))
    forms = {
        "heat": lambda v: np.exp(-v / eps),
        "student": lambda v: 1 / (1 + v / eps),
        "laplacian": lambda v: np.exp(-np.sqrt(v / eps)),
    }
    w = forms[kernel](d2)
    q = w.sum(1)
    w = w / np.outer(q, q) ** alpha
    p = w / w.sum(1, keepdims=True)
    out = np.eye(m)
    for _ in range(power):
        out = out @ p
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("kernel", "alpha", "power"), list(itertools.product(KERNELS, (0.0, 0.5, 1.0), (1, 3)))
)
def test_operator_equals_slow_loops(kernel, alpha, power, dtype):
    x = cloud(10, dtype=dtype).view(2, 5, 6)
    p = patch_operator(x, DiffusionOperator(kernel, factor=0.7, alpha=alpha, power=power))
    for i in range(2):
        np.testing.assert_allclose(
            p[i],
            slow_operator(x[i].double().numpy(), kernel, 0.7, alpha, power),
            rtol=1e-4,
            atol=1e-6,
        )


@pytest.mark.parametrize(("kernel", "rule"), list(itertools.product(KERNELS, BANDWIDTHS)))
def test_rows_sum_to_one_and_points_can_be_renumbered(kernel, rule):
    x = cloud(12).view(2, 6, 6)
    operator = DiffusionOperator(kernel, rule, factor=0.5, neighbor=3)
    p = patch_operator(x, operator, scale=0.8)
    torch.testing.assert_close(p.sum(-1), torch.ones(2, 6, dtype=p.dtype))
    assert (p >= 0).all()
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    torch.testing.assert_close(
        patch_operator(x[:, order], operator, scale=0.8), p[:, order][:, :, order]
    )


@pytest.mark.parametrize(("kernel", "rule"), list(itertools.product(KERNELS, BANDWIDTHS)))
def test_calibration_leaves_half_the_patch_in_sight(kernel, rule):
    d2 = squared_distances(cloud(51).view(3, 17, 6))
    operator = DiffusionOperator(kernel, rule).calibrated(d2, scale=0.9)
    seen = float(effective_neighbors(operator(d2, scale=0.9)).mean())
    wider = dataclasses.replace(operator, factor=operator.factor * 1.05)
    assert seen <= 17 / 2
    assert float(effective_neighbors(wider(d2, scale=0.9)).mean()) > 17 / 2 - 0.2


def test_effective_neighbors_of_known_rows():
    p = torch.tensor(
        [[0.25, 0.25, 0.25, 0.25], [1.0, 0, 0, 0], [0.5, 0.5, 0, 0], [0.25] * 4]
    ).unsqueeze(0)
    torch.testing.assert_close(effective_neighbors(p)[0], torch.tensor([4.0, 1.0, 2.0, 4.0]))


def test_alpha_one_forgets_the_sampling_density():
    """On a circle sampled unevenly, with a fixed bandwidth and M = N, P f - f at alpha = 1 follows
    the circle's Laplacian whatever the density; at alpha = 0 it is pulled towards the dense side
    (Coifman & Lafon 2006).
    """
    u = (torch.arange(1500, dtype=torch.float64) + 0.5) / 1500
    angle = 2 * torch.pi * u + 0.5 * torch.sin(2 * torch.pi * u)
    x = torch.stack([angle.cos(), angle.sin()], 1)
    d2 = squared_distances(x.unsqueeze(0))
    error = {}
    for alpha in (0.0, 1.0):
        p = DiffusionOperator("heat", "fixed", factor=0.01, alpha=alpha)(d2)[0]
        # heat exp(-d2/eps): P ~ 1 + eps/4 Laplacian, and the circle's Laplacian of sin is -sin
        drift = (p @ angle.sin() - angle.sin()) / (0.01 / 4)
        error[alpha] = float((drift + angle.sin()).abs().mean())
    assert error[1.0] < 0.1
    assert error[0.0] > 3 * error[1.0]


def test_operator_settings_are_checked():
    for settings in (
        {"kernel": "gauss"},
        {"bandwidth": "patches"},
        {"alpha": 2.0},
        {"power": 0},
        {"factor": -1.0},
    ):
        with pytest.raises(UserError):
            DiffusionOperator(**settings)
    with pytest.raises(UserError, match="factor is not set"):
        DiffusionOperator()(torch.zeros(1, 3, 3))


def slow_graph_operator(graph: NeighborGraph, eps, alpha):
    n = len(graph)
    w = np.zeros((n, n))
    for i in range(n):
        for j, d2 in zip(graph.indices[i].tolist(), graph.distances2[i].tolist(), strict=True):
            w[i, j] = np.exp(-d2 / eps)
    w = np.maximum(w, w.T)
    np.fill_diagonal(w, 1)
    q = w.sum(1)
    w = w / np.outer(q, q) ** alpha
    return w / w.sum(1, keepdims=True)


@pytest.mark.parametrize("alpha", [0.0, 1.0])
@pytest.mark.parametrize("steps", [1, 3])
def test_graph_diffusion_equals_slow_loops(alpha, steps):
    x = cloud(30)
    graph = knn_graph(x, 4, how=SearchSettings("torch"))
    diffusion = GraphDiffusion(factor=1.5, alpha=alpha, steps=steps)
    p = slow_graph_operator(graph, 1.5 * graph.edge_scale, alpha)
    np.testing.assert_allclose(diffusion.operator(graph).to_dense(), p, rtol=1e-6)
    np.testing.assert_allclose(
        diffusion.diffuse(x, graph),
        np.linalg.matrix_power(p, steps) @ x.numpy(),
        rtol=1e-6,
        atol=1e-9,
    )


@pytest.mark.parametrize("steps", [1, 3])
def test_out_of_sample_equals_slow_loops(steps):
    pool, new = cloud(30), cloud(5, seed=1)
    graph = knn_graph(pool, 4, how=SearchSettings("torch"))
    diffusion = GraphDiffusion(k=4, factor=1.5, alpha=1.0, steps=steps, strength=0.3)
    eps = 1.5 * graph.edge_scale
    source = np.linalg.matrix_power(slow_graph_operator(graph, eps, 1.0), steps - 1) @ pool.numpy()
    features = diffusion.fit(pool)
    for i, row in enumerate(new.numpy()):
        d2 = ((pool.numpy() - row) ** 2).sum(1)
        near = d2.argsort()[:4]
        p = np.exp(-d2[near] / eps)
        expected = 0.7 * row + 0.3 * (p / p.sum()) @ source[near]
        np.testing.assert_allclose(features(new)[i], expected, rtol=1e-4)


def test_a_pool_row_is_not_its_own_neighbour():
    pool = cloud(30)
    graph = knn_graph(pool, 4, how=SearchSettings("torch"))
    features = GraphDiffusion(k=4, strength=1.0).fit(pool)
    for i in range(30):
        w = torch.exp(-graph.distances2[i] / graph.edge_scale)
        torch.testing.assert_close(
            features(pool)[i], (w / w.sum()) @ pool[graph.indices[i]], rtol=1e-4, atol=1e-6
        )
    order = torch.randperm(30, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(
        features(pool[order]), features(pool)[order]
    )  # by distance, not by position


def test_neighbours_are_cut_to_the_pool():
    pool = cloud(3)
    features = GraphDiffusion(k=16, strength=1.0).fit(pool)
    assert features.k == 2
    assert features(cloud(5, seed=1)).isfinite().all()


def test_strength_zero_changes_nothing():
    pool, new = cloud(30), cloud(5, seed=1)
    torch.testing.assert_close(GraphDiffusion(k=4, strength=0.0).fit(pool)(new), new)


@pytest.mark.parametrize("rows", [0, 1])
def test_a_pool_without_neighbours_leaves_rows_as_they_are(rows):
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(GraphDiffusion(k=3).fit(x[:rows])(x), x)


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_a_row_far_from_a_tight_pool_takes_its_nearest_neighbours_all_the_same(strength):
    """All heat weights underflow there; they are those of the distances less the least, or the row
    would be lost.
    """
    pool = torch.nn.functional.normalize(
        torch.tensor([1.0, 0, 0])
        + 1e-3 * torch.randn(20, 3, generator=torch.Generator().manual_seed(0)),
        dim=1,
    )
    fitted = GraphDiffusion(k=4, factor=1e-2, strength=strength).fit(pool)
    x = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, -1.0]])
    d2 = ((x.unsqueeze(1) - pool).double() ** 2).sum(2)
    near = d2.topk(4, dim=1, largest=False)
    weights = torch.softmax(-near.values / fitted.eps, dim=1)
    mean = (weights.unsqueeze(2) * pool.double()[near.indices]).sum(1)
    torch.testing.assert_close(
        fitted(x).double(), (1 - strength) * x.double() + strength * mean, atol=1e-3, rtol=1e-3
    )


def test_a_pool_is_searched_once_to_fit_and_to_map_it(monkeypatch):
    asked, honest = [], diffusion.search
    monkeypatch.setattr(diffusion, "search", lambda *a, **k: asked.append(1) or honest(*a, **k))
    pool = torch.nn.functional.normalize(
        torch.randn(30, 4, generator=torch.Generator().manual_seed(0)), dim=1
    )
    fitted = GraphDiffusion(k=5).fit(pool)
    first = fitted(pool)
    assert len(asked) == 1
    assert torch.equal(fitted(pool), first)  # what was found is kept no longer
    assert torch.equal(fitted(pool.clone()), first)
    assert len(asked) == 3
