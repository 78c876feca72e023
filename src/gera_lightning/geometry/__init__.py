"""Local manifold geometry: neighbour graphs, kernels on them, and diffusion operators.

Plain torch; `neighbors` is the only module that imports FAISS.
"""

from gera_lightning.geometry.diffusion import DiffusionOperator
from gera_lightning.geometry.kernels import squared_distances
from gera_lightning.geometry.neighbors import NeighborGraph, SearchSettings, knn_graph, search
from gera_lightning.geometry.regions import regions

__all__ = [
    "DiffusionOperator",
    "NeighborGraph",
    "SearchSettings",
    "knn_graph",
    "regions",
    "search",
    "squared_distances",
]
