import numpy as np
import pytest
import torch

from gera_lightning.filters import Beside, GraphDiffusion, diffusion, fit_filters
from gera_lightning.geometry import NeighborGraph, SearchSettings, knn_graph, neighbors


def cloud(n=40, d=6, seed=0):
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(x, dim=1)


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
    operator = GraphDiffusion(factor=1.5, alpha=alpha, steps=steps)
    p = slow_graph_operator(graph, 1.5 * graph.edge_scale, alpha)
    np.testing.assert_allclose(operator.operator(graph).to_dense(), p, rtol=1e-6)
    np.testing.assert_allclose(
        operator.diffuse(x, graph),
        np.linalg.matrix_power(p, steps) @ x.numpy(),
        rtol=1e-6,
        atol=1e-9,
    )


@pytest.mark.parametrize("steps", [1, 3])
def test_out_of_sample_equals_slow_loops(steps):
    pool, new = cloud(30), cloud(5, seed=1)
    graph = knn_graph(pool, 4, how=SearchSettings("torch"))
    operator = GraphDiffusion(k=4, factor=1.5, alpha=1.0, steps=steps, strength=0.3)
    eps = 1.5 * graph.edge_scale
    source = np.linalg.matrix_power(slow_graph_operator(graph, eps, 1.0), steps - 1) @ pool.numpy()
    features = operator.fit(pool)
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


def test_strength_zero_changes_nothing():
    pool, new = cloud(30), cloud(5, seed=1)
    torch.testing.assert_close(GraphDiffusion(k=4, strength=0.0).fit(pool)(new), new)


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
    asked, honest = [], neighbors.search
    for module in (diffusion, neighbors):
        monkeypatch.setattr(module, "search", lambda *a, **k: asked.append(1) or honest(*a, **k))
    pool = torch.nn.functional.normalize(
        torch.randn(30, 4, generator=torch.Generator().manual_seed(0)), dim=1
    )
    fitted = GraphDiffusion(k=5).fit(pool)
    first = fitted(pool)
    assert len(asked) == 1
    assert torch.equal(fitted(pool), first)  # what was found is kept no longer
    assert torch.equal(fitted(pool.clone()), first)
    assert len(asked) == 3


def test_a_graph_that_is_known_gives_the_same_filter():
    pool = torch.nn.functional.normalize(torch.randn(40, 4), dim=1)
    whole, asked = knn_graph(pool, 12), []

    def known(k: int) -> NeighborGraph:
        asked.append(k)
        return whole.nearest(k)

    for form in (GraphDiffusion(k=5, steps=2), Beside(GraphDiffusion(k=5))):
        fitted, images = fit_filters([form, GraphDiffusion(k=3)], pool, known)
        alone, expected = fit_filters([form, GraphDiffusion(k=3)], pool)
        torch.testing.assert_close(images, expected)
        torch.testing.assert_close(fitted(pool[:5] + 0.1), alone(pool[:5] + 0.1))
    assert asked == [5, 5]  # the second filter's pool is another one
