"""Neighbour graphs by FAISS, cached on disk.

Exact search in torch is the second backend, and the tests' reference.

Legend: `N` points, `K` neighbours, `D` width. Distances are squared L2 distances (`2 - 2 cos`
between unit vectors). This is the only module that imports faiss.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from filelock import FileLock
from torch import Tensor

from gera_lightning.utils.arrays import Array, Rows, as_numpy, blocks, float_rows
from gera_lightning.utils.errors import UserError, check_one_of
from gera_lightning.utils.files import atomic_write, replace_atomically
from gera_lightning.utils.version import package_version

log = logging.getLogger(__name__)
BACKENDS = ("faiss", "torch")
METRICS = ("l2", "ip")
CELLS = 2**26
"""Number of distances that exact search in torch holds at once, at most."""
SPARE_NEIGHBORS = 8
"""Neighbours that are found beyond those asked for where graphs of parts of the points will be
asked for too: they then have enough without a search, see `NeighborGraph.subset`.
"""
AUTO = "auto"
"""The index that follows from the number of points."""
EXACT_POINTS = 2**16
"""Number of points up to which `auto` searches exactly."""
LISTS_PER_ROOT = 4
"""Lists that `auto` makes of n points, as a multiple of their square root."""
POINTS_PER_LIST = 64
"""Points that lists are made of under `auto`, for each list; FAISS asks for 39."""
FIRST_PROBES, MIN_RECALL, RECALL_QUERIES = 8, 0.95, 256
"""`auto` visits so many lists, or more until it finds this share of the nearest neighbours of so
many queries.
"""
BLOCK = 2**16
"""Points that are added to an index, or searched for, at once."""
WORTH_A_GPU = 2**24
"""Number of distances from which FAISS searches on GPUs: for fewer the CPU is done in the tenth of
a second that a GPU takes to set up.
"""


@dataclass(frozen=True)
class SearchSettings:
    """How to search for neighbours.

    Attributes:
        backend: `faiss` searches on all GPUs that FAISS sees where there are many points, else on
            the CPU; `torch` searches exactly, and builds graphs on an accelerator if there is one.
            Rows that already lie on an accelerator are searched there by torch if `index` is exact.
        index: FAISS index factory string; `Flat` is exact, `IVF4096,Flat` and the like are for
            millions of points. `auto` is `Flat` up to 65,536 points, and for n points beyond that
            an inverted file of `4 sqrt(n)` lists. Distances are always those of the rows
            themselves.
        nprobe: lists of an inverted file (`IVF...`) that a search visits; more lists find more
            neighbours; None: one in 16, under `auto` as many as find 95 % of the neighbours.
        shard: several GPUs hold a share of the points each; False: a copy each.

    >>> knn_graph(torch.eye(4), k=2, how=SearchSettings("torch")).indices.shape
    torch.Size([4, 2])
    """

    backend: str = "faiss"
    index: str = "Flat"
    nprobe: int | None = None
    shard: bool = True

    def __post_init__(self) -> None:
        check_one_of("backend", self.backend, BACKENDS)

    def of_points(self, count: int) -> SearchSettings:
        """The same, with `Flat` for `auto` where that is exact for so many points."""
        exact = self.backend == "torch" or count <= EXACT_POINTS
        return replace(self, index=EXACT.index) if self.index == AUTO and exact else self

    def check(self, dim: int) -> None:
        """Refuse an index that a search of points of width `dim` would refuse later.

        Raises:
            UserError: a FAISS index factory string that FAISS does not know, or that does not fit
                the width.
        """
        if self.backend == "faiss":
            self.make_index(dim, "l2")

    def make_index(self, dim: int, metric: str, count: int = 0) -> Any:
        """An empty FAISS index for `count` points of width `dim`.

        Raises:
            UserError: as `check`.
        """
        import faiss

        # half floats: they decide what is found, and its distances are measured again
        name = f"IVF{_lists(count)},SQfp16" if self.index == AUTO else self.index
        try:
            index = faiss.index_factory(
                dim, name, faiss.METRIC_L2 if metric == "l2" else faiss.METRIC_INNER_PRODUCT
            )
        except RuntimeError as error:
            raise UserError(
                f"is no FAISS index of points of width {dim} ({_reason(error)})",
                key="graph.index",
                value=self.index,
                remedy="'Flat' is exact",
            ) from error
        inverted = faiss.try_extract_index_ivf(index)
        if inverted is not None:
            default = FIRST_PROBES if self.index == AUTO else max(1, inverted.nlist // 16)
            inverted.nprobe = min(self.nprobe or default, inverted.nlist)
        return index


EXACT = SearchSettings()


@dataclass(frozen=True)
class NeighborGraph:
    """The K nearest neighbours of each of N points, self left out.

    Attributes:
        indices: `[N, K]` int64, nearest first.
        distances2: `[N, K]` squared distances.

    >>> graph = knn_graph(torch.arange(4.0).unsqueeze(1).square(), k=1)
    >>> graph.indices.flatten().tolist(), graph.edge_scale
    ([1, 0, 1, 2], 1.0)
    >>> graph.patches(torch.tensor([3]))  # the anchor first
    tensor([[3, 2]])
    """

    indices: Tensor
    distances2: Tensor

    @classmethod
    def of_search(cls, distances2: Tensor, found: Tensor) -> NeighborGraph:
        """The graph of what `search` finds of all points among themselves, `[N, K + 1]` each.

        A point is dropped from its own list by number.
        """
        n, count = found.shape
        is_self = found == torch.arange(n, device=found.device).unsqueeze(1)
        # among many exact copies a point may be missing from its own list: then the farthest entry
        # goes instead
        is_self[~is_self.any(1), -1] = True
        return cls(found[~is_self].view(n, count - 1), distances2[~is_self].view(n, count - 1))

    def __len__(self) -> int:
        return len(self.indices)

    @cached_property
    def edge_scale(self) -> float:
        """Median squared length of the edges: the modality's global bandwidth."""
        return float(self.distances2.median()) if self.distances2.numel() else 1.0

    def patches(self, anchors: Tensor) -> Tensor:
        """Point numbers of each anchor's patch, the anchor first: `[A] -> [A, K + 1]`."""
        return torch.cat([anchors.unsqueeze(1), self.indices[anchors]], dim=1)

    def nearest(self, k: int) -> NeighborGraph:
        """The graph of fewer neighbours, or all that there are."""
        return NeighborGraph(self.indices[:, :k], self.distances2[:, :k])

    def subset(self, kept: Tensor, points: Rows, k: int) -> NeighborGraph:
        """The graph of some of the points: `knn_graph(points, k)` without searching again.

        A point whose list has fewer than k of them left is searched for.

        Args:
            kept: which points, bool `[N]`.
            points: those points `[M, D]`.
            k: neighbours; at most K, and fewer than M.

        >>> x = torch.tensor([[0.0], [1.0], [3.0], [7.0]])
        >>> kept = torch.tensor([True, False, True, True])
        >>> knn_graph(x, k=2).subset(kept, x[kept], k=1).indices.tolist()
        [[1], [0], [1]]
        """
        number = torch.cumsum(kept, 0) - 1
        found, distances2 = self.indices[kept], self.distances2[kept]
        left = kept[found]
        order = (~left).to(torch.uint8).argsort(dim=1, stable=True)[:, :k]  # nearest first
        found, distances2 = number[found.gather(1, order)], distances2.gather(1, order)
        few = (left.sum(1) < k).nonzero()[:, 0]
        if len(few):
            values, rows = search(points[few], points, k + 1)
            mine = rows == few.unsqueeze(1)
            mine[~mine.any(1), -1] = True
            found[few], distances2[few] = rows[~mine].view(-1, k), values[~mine].view(-1, k)
        return NeighborGraph(found, distances2)


def search(
    queries: Rows, points: Rows, k: int, *, metric: str = "l2", how: SearchSettings = EXACT
) -> tuple[Tensor, Tensor]:
    """The k nearest points of each query.

    Args:
        queries: `[n, D]`.
        points: `[N, D]`; k is cut to N.
        k: neighbours per query.
        metric: `l2`: squared distance, least first; `ip`: inner product, largest first.
        how: backend and index.

    Returns:
        squared distances `[n, k]` ascending (or inner products descending), and point numbers `[n,
        k]` int64, on the queries' device.

    Raises:
        UserError: an unknown metric, or an index that finds too few neighbours.

    >>> d2, rows = search(torch.tensor([[0.9]]), torch.tensor([[0.0], [1.0]]), k=1)
    >>> rows.tolist()
    [[1]]
    """
    check_one_of("metric", metric, METRICS)
    k = min(k, len(points))
    if k == 0 or len(queries) == 0:
        nothing = torch.zeros(len(queries), k, device=queries.device)
        return nothing, nothing.long()
    how = how.of_points(len(points))
    # rows on an accelerator stay there
    if how.backend == "torch" or (how == EXACT and queries.device.type != "cpu"):
        return _torch_search(queries[:], points[:], k, metric)
    values, found = _faiss_search(queries, points, k, metric, how)
    numbers = torch.from_numpy(found).to(queries.device)
    if how.index == EXACT.index:
        return torch.from_numpy(values).to(queries[:0]), numbers
    return _ranked(queries, points, numbers, metric)


def _ranked(queries: Rows, points: Rows, found: Tensor, metric: str) -> tuple[Tensor, Tensor]:
    """The found points of each query with their distances, nearest first.

    An index that compresses (`PQ`, `PCA`, `LSH`, ...) measures compressed rows.
    """
    values = torch.empty(found.shape, dtype=queries[:0].dtype, device=queries.device)
    at_once = max(1, CELLS // found.shape[1] // queries.shape[1])
    for rows in torch.arange(len(queries)).split(at_once):
        near, of = points[found[rows]], queries[rows].unsqueeze(1)
        values[rows] = (near - of).square().sum(2) if metric == "l2" else (near * of).sum(2)
    order = values.argsort(dim=1, descending=metric == "ip", stable=True)
    return values.gather(1, order), found.gather(1, order)


class GrowingIndex:
    """A FAISS index that rows are added to part by part; `faiss.read_index` reads what it writes.

    Args:
        dim: width of the rows.
        index: FAISS index factory string.
        metric: `ip` or `l2`.

    Raises:
        UserError: a string that FAISS does not know, or that does not fit the width.
    """

    def __init__(self, dim: int, index: str = "Flat", *, metric: str = "ip") -> None:
        self._index = SearchSettings(index=index).make_index(dim, metric)

    @property
    def is_trained(self) -> bool:
        """Whether rows can be added; `IVF...` must `train` its lists first."""
        return bool(self._index.is_trained)

    def train(self, rows: Tensor) -> None:
        """Train it on rows `[n, D]`, which are not added; too few are FAISS's RuntimeError."""
        self._index.train(as_numpy(rows))

    def add(self, rows: Tensor) -> None:
        """Add rows `[n, D]`."""
        self._index.add(as_numpy(rows))

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        import faiss

        with atomic_write(path) as scratch:
            faiss.write_index(self._index, str(scratch))


def _faiss_search(
    queries: Rows, points: Rows, k: int, metric: str, how: SearchSettings
) -> tuple[np.ndarray, np.ndarray]:
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    index, answer = how.make_index(points.shape[1], metric, len(points)), None
    auto, inverted = how.index == AUTO, faiss.try_extract_index_ivf(index)
    lists = 0 if inverted is None else inverted.nlist
    # of more than 256 points a list FAISS takes a part itself
    train_on = max(BLOCK, lists * (POINTS_PER_LIST if auto else 256))
    tuned_for = metric if auto and how.nprobe is None else None
    ask = partial(
        _answer, queries=queries, points=points, k=k, train_on=train_on, tuned_for=tuned_for
    )
    large = len(queries) * len(points) >= WORTH_A_GPU
    if large and hasattr(faiss, "get_num_gpus") and faiss.get_num_gpus() > 0:
        options = faiss.GpuMultipleClonerOptions()
        options.shard = how.shard and faiss.get_num_gpus() > 1
        try:
            answer = ask(faiss.index_cpu_to_all_gpus(index, co=options))
        except RuntimeError as error:
            # an index without a GPU form such as HNSW, too little memory, a driver too old
            log.warning(
                "graph.index=%r: FAISS finds no use for the GPUs (%s): searching on the CPU",
                how.index,
                _reason(error),
            )
    try:
        values, found = answer or ask(index)
    except RuntimeError as error:
        raise UserError(
            f"cannot be made of {len(points)} points ({_reason(error)})",
            key="graph.index",
            value=how.index,
            remedy="take fewer lists, or 'Flat'",
        ) from error
    if (found < 0).any():
        raise UserError(
            f"found fewer than {k} neighbours of some points",
            key="graph.index",
            value=how.index,
            remedy="raise graph.nprobe, or take 'Flat'",
        )
    return (np.maximum(values, 0) if metric == "l2" else values), found.astype(np.int64)


def _reason(error: RuntimeError) -> str:
    """The last line of FAISS's message: before it stands where in its source the error arose."""
    return str(error).splitlines()[-1] if str(error) else "unknown"


def _answer(
    index: Any, *, queries: Rows, points: Rows, k: int, train_on: int, tuned_for: str | None
) -> tuple[np.ndarray, np.ndarray]:
    """What an empty index finds once it holds the points.

    Where it is tuned for a metric (`_tune_probes`), a query that finds fewer than k points visits
    all lists.
    """
    if not index.is_trained:
        index.train(as_numpy(points[_spaced(len(points), train_on)]))
    for block in blocks(points, BLOCK):
        index.add(as_numpy(block))
    if tuned_for:
        _tune_probes(index, queries, points, k, tuned_for)
    found = [index.search(as_numpy(block), k) for block in blocks(queries, BLOCK)]
    values, numbers = (np.concatenate(parts) for parts in zip(*found, strict=True))
    few = np.flatnonzero((numbers < 0).any(1))
    if tuned_for and len(few):
        _set_probes(index, _lists(len(points)))
        values[few], numbers[few] = index.search(as_numpy(queries[torch.from_numpy(few)]), k)
    return values, numbers


def _spaced(count: int, most: int) -> Tensor:
    """Numbers of at most `most` of `count` rows, evenly spaced."""
    return torch.linspace(0, count - 1, min(most, count), dtype=torch.float64).round().long()


def _tune_probes(index: Any, queries: Rows, points: Rows, k: int, metric: str) -> None:
    """Let an inverted file visit more lists until it finds `MIN_RECALL` of the neighbours.

    That is measured on `RECALL_QUERIES` queries, against exact search: the share of what is found
    that is as near as the k-th neighbour. Where the points are searched for among themselves, each
    finds itself, which does not count.
    """
    some, lists = queries[_spaced(len(queries), RECALL_QUERIES)], _lists(len(points))
    sign, own = (1 if metric == "l2" else -1), int(queries is points)
    # as far as the k-th neighbour, and what rounding may make of it
    far = sign * _kth_value(some, points, k, metric) + 1e-5 * some.square().sum(1, keepdim=True)
    probes = FIRST_PROBES
    while True:
        _set_probes(index, probes)
        numbers = torch.from_numpy(index.search(as_numpy(some), k)[1]).to(some.device)
        values = sign * _ranked(some, points, numbers.clamp(min=0), metric)[0]
        hits = ((values <= far) & (numbers >= 0)).sum(1).double().mean()
        recall = (float(hits) - own) / max(1, k - own)
        if recall >= MIN_RECALL or probes == lists:
            break
        probes = min(lists, probes + (probes + 1) // 2)
    log.warning(
        "%s points: %d of %d lists are searched (graph.index=auto), which finds %.1f %% of the"
        " %d nearest neighbours of %d of them",
        f"{len(points):,}",
        probes,
        lists,
        100 * recall,
        k - own,
        len(some),
    )


def _set_probes(index: Any, probes: int) -> None:
    import faiss

    space = getattr(faiss, "GpuParameterSpace", faiss.ParameterSpace)
    space().set_index_parameter(index, "nprobe", probes)


def _kth_value(queries: Tensor, points: Rows, k: int, metric: str) -> Tensor:
    """Exact distance or product of each query and its k-th neighbour, `[n, 1]`."""
    best = queries[:, :0]
    for block in blocks(points, BLOCK):
        more = _torch_search(queries, block, min(k, len(block)), metric)[0]
        best = torch.cat([best, more], dim=1)
        best = best.topk(min(k, best.shape[1]), dim=1, largest=metric == "ip").values
    return best[:, -1:]


def _lists(count: int) -> int:
    """Lists that `auto` makes of so many points."""
    return max(1, round(LISTS_PER_ROOT * count**0.5))


def _torch_search(queries: Tensor, points: Tensor, k: int, metric: str) -> tuple[Tensor, Tensor]:
    norm2 = points.square().sum(1)
    parts = []
    for rows in queries.split(max(1, CELLS // len(points))):
        values = rows @ points.T
        if metric == "l2":
            values = (rows.square().sum(1, keepdim=True) + norm2 - 2 * values).clamp(min=0)
        parts.append(values.topk(k, dim=1, largest=metric == "ip", sorted=True))
    return torch.cat([p.values for p in parts]), torch.cat([p.indices for p in parts])


def knn_graph(x: Array | Rows, k: int, *, how: SearchSettings = EXACT) -> NeighborGraph:
    """Neighbour graph of points `[N, D]`.

    A point is dropped from its own neighbours **by number**, so duplicates keep each other.

    Args:
        x: points: a tensor, a NumPy array, or rows that stay on disk, of which blocks are read.
        k: neighbours per point; with `k >= N` every other point is one (`K = N - 1`).
        how: backend and index.

    Raises:
        UserError: fewer than two points, or `k < 1`.

    >>> graph = knn_graph(np.array([[0.0], [1.0], [3.0]]), k=1)
    >>> graph.indices.tolist(), graph.distances2.tolist()
    ([[1], [0], [1]], [[1.0], [1.0], [4.0]])
    """
    if isinstance(x, np.ndarray):
        x = float_rows(x, "x")
    n = len(x)
    if n < 2:
        raise UserError(
            "are too few for a neighbour graph: it needs at least 2",
            key="points",
            value=n,
            remedy="enlarge the pool, or switch the geometric loss off",
        )
    if k < 1:
        raise UserError("must be at least 1", key="k", value=k)
    if k >= n:
        log.warning("k=%d neighbours of %d points: using all %d others", k, n, n - 1)
        k = n - 1
    return NeighborGraph.of_search(*search(x, x, k + 1, how=how))


def cached_knn_graph(
    x: Rows, k: int, *, key: Mapping[str, Any], cache_dir: str | Path, how: SearchSettings = EXACT
) -> NeighborGraph:
    """`knn_graph`, kept in `cache_dir` under the hash of `key` and the search settings.

    Of several processes at once one builds it.

    Args:
        key: what identifies `x`: shard checksums, the hash of the rows indexed, preprocessing with
            its mean's hash.
        cache_dir: folder of cached graphs; a damaged file is rebuilt.
    """
    how = how.of_points(len(x))
    identity = {
        **key,
        "k": k,
        "metric": "l2",
        "backend": how.backend,
        "index": how.index,
        "nprobe": how.nprobe,
        "version": package_version(),
    }
    digest = hashlib.sha256(
        repr(sorted((name, str(value)) for name, value in identity.items())).encode()
    ).hexdigest()[:24]
    path = Path(cache_dir) / f"knn-{digest}.safetensors"
    shape = len(x), min(k, len(x) - 1)
    kept = _kept_graph(path, shape, tell=False)
    if kept is not None:
        return kept
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_suffix(".lock")
    with FileLock(lock):
        graph = _kept_graph(path, shape)  # another process may have built it meanwhile
        if graph is None:
            if how.backend == "torch" and torch.accelerator.is_available():
                x = x[:].to(torch.accelerator.current_accelerator())
            graph = knn_graph(x, k, how=how)
            tensors = {
                "indices": graph.indices.int().cpu().contiguous(),
                "distances2": graph.distances2.cpu().contiguous(),
            }
            about = {"sha256": _checksum(tensors)}
            replace_atomically(path, safetensors.torch.save(tensors, about))
        lock.unlink(missing_ok=True)  # whoever still waits on it finds the graph
    return NeighborGraph(graph.indices.cpu(), graph.distances2.cpu())


def _kept_graph(path: Path, shape: tuple[int, int], *, tell: bool = True) -> NeighborGraph | None:
    """A cached graph of this shape `[N, K]`; None where there is none that is whole.

    `tell` warns of a damaged one.
    """
    try:
        with safetensors.safe_open(path, "pt") as file:
            written = file.metadata() or {}
            kept = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        graph = NeighborGraph(kept["indices"].long(), kept["distances2"])
        in_range = ((graph.indices >= 0) & (graph.indices < shape[0])).all()
        if written.get("sha256") != _checksum(kept) or graph.indices.shape != shape or not in_range:
            raise ValueError("it does not hold what was written")
        return graph
    except FileNotFoundError:
        return None
    except (safetensors.SafetensorError, ValueError, KeyError, OSError) as error:
        if tell:
            log.warning("%s is damaged (%s): building the graph again", path, error)
        return None


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    """Of the names, shapes, number formats and values of tensors."""
    found = hashlib.sha256()
    for name, values in sorted(tensors.items()):
        found.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
        found.update(values.contiguous().numpy().data)
    return found.hexdigest()
