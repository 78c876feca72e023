"""What the geometric loss says of known maps on the shipped stores, and what a neighbour graph and
a step of it cost.

python benchmarks/bench_geometry.py
"""

from __future__ import annotations

import time

import torch
from torch import Tensor

from gera_lightning.data.store import EmbeddingStore
from gera_lightning.geometry.diffusion import DiffusionOperator
from gera_lightning.geometry.kernels import squared_distances
from gera_lightning.geometry.neighbors import NeighborGraph, knn_graph
from gera_lightning.losses.contrastive import clip_loss
from gera_lightning.losses.geometric import geometric_loss
from gera_lightning.models.maps import ResidualMLP, normalized
from gera_lightning.models.preprocessing import Preprocessing

STORES = (
    "data/wordnet_speech/speech",
    "data/wordnet_speech/text",
    "data/pictures/image",
    "data/pictures/text",
)
ROWS, K, ANCHORS, STEPS = 3000, 16, 64, 20


def random_rows(count: int, dim: int = 256) -> Tensor:
    """Independent random unit rows."""
    return normalized(torch.randn(count, dim, generator=torch.Generator().manual_seed(0)))


def values(x: Tensor, graph: NeighborGraph) -> None:
    """The loss of maps whose answer is known."""
    patches = graph.patches(torch.arange(512))
    weight = torch.randn(x.shape[1], 64, generator=torch.Generator().manual_seed(1))
    maps = {
        "identity": x,
        "random 64-d projection": normalized(x @ weight),
        "random points": random_rows(len(x)),
        "collapsed": torch.ones_like(x),
    }
    for loops in (True, False):
        operator = calibrated(x[patches], graph, loops)
        scale = graph.edge_scale
        losses = {
            name: float(geometric_loss(x[patches], z[patches], operator, scale=scale).mean())
            for name, z in maps.items()
        }
        print(
            f"  {'with' if loops else 'without'} self-affinity, factor {operator.factor:.3f}: "
            + "  ".join(f"{name} {loss:.3f}" for name, loss in losses.items())
        )


def calibrated(x_AMD: Tensor, graph: NeighborGraph, self_loops: bool = False) -> DiffusionOperator:
    """The operator with its bandwidth's factor chosen on frozen patches."""
    operator = DiffusionOperator(self_loops=self_loops)
    return operator.calibrated(squared_distances(x_AMD), scale=graph.edge_scale)


def cost(x: Tensor, graph: NeighborGraph) -> None:
    """Time of a step of one modality, 256 pairs, with and without the loss on 64 anchors."""
    head = ResidualMLP(x.shape[1], 256)
    operator = calibrated(x[graph.patches(torch.arange(512))], graph)
    pairs, targets, positives = x[:256], random_rows(256), torch.eye(256, dtype=torch.bool)
    members, inverse = torch.unique(graph.patches(torch.arange(ANCHORS)), return_inverse=True)
    for geometric in (False, True):
        started = time.perf_counter()
        for _ in range(STEPS):
            z = normalized(head(torch.cat([pairs, x[members]]) if geometric else pairs))
            total = clip_loss(z[:256] @ targets.T / 0.07, positives)
            if geometric:
                x_AMD, z_AMD = x[members][inverse], z[256:][inverse]
                loss = geometric_loss(x_AMD, z_AMD, operator, scale=graph.edge_scale)
                total = total + loss.mean()
            total.backward()
        print(
            f"  a step {'with' if geometric else 'without'} it:"
            f" {(time.perf_counter() - started) / STEPS * 1e3:.1f} ms"
        )


def main() -> None:
    """Every store."""
    for path in STORES:
        store = EmbeddingStore(path)
        raw = torch.from_numpy(store.read(slice(0, ROWS)))
        x = Preprocessing.fit(raw)(raw)
        started = time.perf_counter()
        graph = knn_graph(x, K)
        print(
            f"{path}: {len(x):,} rows, width {x.shape[1]}, graph of {K} neighbours in"
            f" {time.perf_counter() - started:.2f} s"
        )
        values(x, graph)
        cost(x, graph)


if __name__ == "__main__":
    main()
