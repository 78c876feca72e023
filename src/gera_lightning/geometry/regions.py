"""Regions of a neighbour graph: points whose neighbourhoods overlap.

Legend: `N` points, `K` neighbours.
"""

from __future__ import annotations

import numpy as np

from gera_lightning.geometry.neighbors import NeighborGraph

FIRST_ROUND = 8
"""Points that a region grows by at first; later by as many as it has."""


def regions(graph: NeighborGraph, size: int, seed: int = 0) -> list[np.ndarray]:
    """Part a graph into regions whose points' patches (a point and its neighbours) share points.

    A region starts at a random free point. Then those free points join it whose patches hold the
    most points of the patches in it. The last regions are made of what was left over, and overlap
    less. At K = 16, on the shipped stores, the patches of a region of 32 points hold 120 to 200
    distinct points, those of 32 random ones 490 (`python benchmarks/bench_geometry.py`).

    Args:
        graph: neighbours of N points.
        size: points of a region; fewer where no free point's patch overlaps.
        seed: fixes where regions start.

    Returns:
        Point numbers of each region; every point is in one of them.

    >>> from gera_lightning.geometry import knn_graph
    >>> import torch
    >>> graph = knn_graph(torch.tensor([[0.0], [1.0], [10.0], [11.0]]), k=1)
    >>> sorted(sorted(region.tolist()) for region in regions(graph, 2))
    [[0, 1], [2, 3]]
    """
    neighbors = graph.indices.cpu().numpy()
    count, k = neighbors.shape
    by_neighbor = np.argsort(neighbors.ravel(), kind="stable")
    ends = np.searchsorted(neighbors.ravel()[by_neighbor], np.arange(count + 1))
    neighbor_of = np.split(by_neighbor // max(k, 1), ends[1:-1])  # the points of whose patches
    free, found = np.ones(count, dtype=bool), []
    for start in np.random.default_rng([seed, size]).permutation(count):
        if not free[start]:
            continue
        free[start], region = False, np.array([start])
        while len(region) < size:
            points = np.unique(np.concatenate([region, neighbors[region].ravel()]))
            overlapping = np.concatenate([points, *(neighbor_of[point] for point in points)])
            near, shared = np.unique(overlapping[free[overlapping]], return_counts=True)
            more = min(size - len(region), max(FIRST_ROUND, len(region)))
            joining = near[np.argsort(-shared, kind="stable")[:more]]
            if not len(joining):
                break
            free[joining], region = False, np.concatenate([region, joining])
        found.append(region)
    return found
