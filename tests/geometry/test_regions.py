import numpy as np
import pytest
import torch

from gera_lightning.geometry import NeighborGraph, knn_graph, regions


def cloud(n: int, d: int = 6) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("n", "size"), [(300, 32), (300, 1), (40, 64), (3, 2)])
def test_every_point_is_in_one_region(n, size):
    found = regions(knn_graph(cloud(n), 5), size)
    assert sorted(np.concatenate(found)) == list(range(n))
    assert max(map(len, found)) <= size


def test_patches_of_a_region_share_points():
    graph = knn_graph(cloud(2000), 8)

    def distinct(anchors: np.ndarray) -> int:
        return len(graph.patches(torch.from_numpy(anchors)).unique())

    grown = [region for region in regions(graph, 32) if len(region) == 32]
    drawn = np.random.default_rng(0).permutation(2000)[: 32 * len(grown)].reshape(-1, 32)
    assert len(grown) > 40
    assert np.mean([distinct(a) for a in grown]) < 0.6 * np.mean([distinct(a) for a in drawn])


def test_parts_of_a_graph_that_do_not_touch_stay_apart():
    x = torch.cat([cloud(20), cloud(20) + 1000])
    for region in regions(knn_graph(x, 3), 30):
        assert len({point // 20 for point in region.tolist()}) == 1


def test_regions_depend_on_the_seed_alone():
    graph = knn_graph(cloud(200), 5)
    same, other = regions(graph, 16, seed=1), regions(graph, 16, seed=2)
    assert all(np.array_equal(a, b) for a, b in zip(same, regions(graph, 16, seed=1), strict=True))
    assert [a.tolist() for a in same] != [b.tolist() for b in other]


def test_a_graph_without_neighbours_has_regions_of_one():
    graph = NeighborGraph(torch.empty(3, 0, dtype=torch.long), torch.empty(3, 0))
    assert [len(region) for region in regions(graph, 2)] == [1, 1, 1]
