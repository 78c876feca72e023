"""What the geometric loss says of known maps on the shipped stores, and what a neighbour graph and
a step of it cost.

python benchmarks/bench_geometry.py
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from gera_lightning.data.store import EmbeddingStore
from gera_lightning.geometry.diffusion import DiffusionOperator
from gera_lightning.geometry.kernels import squared_distances
from gera_lightning.geometry.neighbors import NeighborGraph, knn_graph
from gera_lightning.geometry.regions import regions
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
ROWS, K, STEPS = 3000, 16, 20


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
    """Time of a step of one modality on one thread: 256 pairs alone, and with the loss on 32 or 256
    anchors, drawn one by one or as regions of the graph.
    """
    head = ResidualMLP(x.shape[1], 256)
    operator = calibrated(x[graph.patches(torch.arange(512))], graph)
    drawn = np.random.default_rng(0).permutation(len(x))
    alone = seconds(x, graph, head, operator, [])
    print(f"  a step without it: {alone * 1e3:.1f} ms")
    for count, size in ((32, 1), (32, 32), (256, 1), (256, 256)):
        grown = [region for region in regions(graph, size) if len(region) == size]
        anchors = (
            grown[:STEPS]
            if size > 1
            else np.split(drawn[: len(x) // count * count], len(x) // count)
        )
        taken = seconds(x, graph, head, operator, anchors)
        points = np.mean([len(graph.patches(torch.from_numpy(a)).unique()) for a in anchors])
        print(
            f"  with {count} anchors {'of a region' if size > 1 else 'drawn alone'}: {points:.0f}"
            f" points, {taken * 1e3:.1f} ms, {taken / alone:.1f} times"
        )


def seconds(
    x: Tensor,
    graph: NeighborGraph,
    head: ResidualMLP,
    operator: DiffusionOperator,
    anchors: Sequence[np.ndarray],
) -> float:
    """CPU seconds of a step, the mean over `STEPS`; without anchors, of the pairs alone."""
    pairs, targets, positives = x[:256], random_rows(256), torch.eye(256, dtype=torch.bool)
    patches = [graph.patches(torch.from_numpy(a)).unique(return_inverse=True) for a in anchors]
    started = time.process_time()
    for step in range(STEPS):
        members, inverse = patches[step % len(patches)] if patches else (torch.arange(0), None)
        z = normalized(head(torch.cat([pairs, x[members]])))
        total = clip_loss(z[:256] @ targets.T / 0.07, positives)
        if inverse is not None:
            x_AMD, z_AMD = x[members][inverse], z[256:][inverse]
            total = total + geometric_loss(x_AMD, z_AMD, operator, scale=graph.edge_scale).mean()
        total.backward()
    return (time.process_time() - started) / STEPS


def main() -> None:
    """Every store."""
    torch.set_num_threads(1)
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
