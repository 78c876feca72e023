import multiprocessing
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.torch
import torch

from gera_lightning.evaluation import neighborhoods
from gera_lightning.geometry import neighbors
from gera_lightning.utils.errors import UserError


def cloud(n=60, d=8, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def slow_knn(x, k):
    d2 = ((x[:, None] - x[None]) ** 2).sum(-1)
    np.fill_diagonal(d2, np.inf)
    index = d2.argsort(1)[:, :k]
    return index, np.take_along_axis(d2, index, 1)


@pytest.mark.parametrize("backend", neighbors.BACKENDS)
def test_graph_equals_a_slow_search(backend):
    x = cloud()
    index, d2 = slow_knn(x.numpy(), 5)
    graph = neighbors.knn_graph(x, 5, how=neighbors.SearchSettings(backend))
    np.testing.assert_array_equal(graph.indices, index)
    np.testing.assert_allclose(graph.distances2, d2, rtol=1e-4)
    assert graph.edge_scale == pytest.approx(float(np.median(d2)), rel=0.05)


@pytest.mark.parametrize("backend", neighbors.BACKENDS)
def test_duplicates_keep_each_other_and_drop_themselves(backend):
    x = cloud(12)
    x[6:] = x[:6]
    graph = neighbors.knn_graph(x, 1, how=neighbors.SearchSettings(backend))
    assert graph.indices.ravel().tolist() == [*range(6, 12), *range(6)]


@pytest.mark.parametrize("backend", neighbors.BACKENDS)
def test_all_identical_points_never_list_themselves(backend):
    graph = neighbors.knn_graph(torch.ones(20, 4), 5, how=neighbors.SearchSettings(backend))
    assert graph.indices.shape == (20, 5)
    assert not (graph.indices == torch.arange(20).unsqueeze(1)).any()
    assert (graph.distances2 == 0).all()


@pytest.mark.parametrize("k", [5, 6, 100])
def test_k_of_all_points_or_more_takes_every_other(k):
    graph = neighbors.knn_graph(cloud(6), k)
    assert graph.indices.shape == (6, 5)
    assert all(sorted([i, *row]) == list(range(6)) for i, row in enumerate(graph.indices.tolist()))


def test_patches_begin_with_the_anchor():
    graph = neighbors.knn_graph(cloud(), 4)
    patches = graph.patches(torch.tensor([7, 3]))
    assert patches[:, 0].tolist() == [7, 3]
    assert patches[0, 1:].tolist() == graph.indices[7].tolist()


@pytest.mark.parametrize(("n", "k", "key"), [(1, 3, "points"), (5, 0, "k")])
def test_impossible_graphs_are_refused(n, k, key):
    with pytest.raises(UserError) as error:
        neighbors.knn_graph(cloud(n), k)
    assert error.value.key == key


def test_numpy_points_make_the_graph_of_the_same_tensor():
    x = cloud()
    found = neighbors.knn_graph(x.double().numpy(), 5)
    expected = neighbors.knn_graph(x, 5)
    assert torch.equal(found.indices, expected.indices)
    assert torch.equal(found.distances2, expected.distances2)


def test_search_cuts_k_and_answers_nothing_for_nothing():
    d2, index = neighbors.search(cloud(3), cloud(2), 10)
    assert index.shape == (3, 2)
    assert d2.shape == (3, 2)
    assert neighbors.search(cloud(0), cloud(4), 2)[1].shape == (0, 2)


def test_an_inexact_index_finds_most_neighbours():
    x = cloud(2000)
    exact = neighbors.knn_graph(x, 5)
    found = {
        (index, nprobe): neighborhoods.overlap(
            neighbors.knn_graph(
                x, 5, how=neighbors.SearchSettings(index=index, nprobe=nprobe)
            ).indices,
            exact.indices,
        )
        for index, nprobe in (
            ("HNSW32", None),
            ("IVF64,Flat", None),
            ("IVF64,Flat", 1),
            ("IVF64,Flat", 64),
            ("PCA2,IVF16,Flat", 1000),
        )
    }
    assert found["HNSW32", None] > 0.9
    assert found["IVF64,Flat", 64] == 1  # all lists
    assert found["IVF64,Flat", 1] + 0.1 < found["IVF64,Flat", None]  # one in 16: four lists
    assert found["IVF64,Flat", None] > 0.7


AUTO = neighbors.SearchSettings(index="auto")


def test_auto_is_exact_for_few_points_and_shares_the_cache_of_flat(tmp_path):
    x = cloud(200)
    for how in (neighbors.EXACT, AUTO):
        graph = neighbors.cached_knn_graph(x, 5, key={}, cache_dir=tmp_path, how=how)
        assert torch.equal(graph.indices, neighbors.knn_graph(x, 5).indices)
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("first", [8, 1])
def test_auto_finds_most_neighbours_of_many_points(monkeypatch, caplog, first):
    monkeypatch.setattr(neighbors, "EXACT_POINTS", 1000)
    monkeypatch.setattr(neighbors, "FIRST_PROBES", first)
    x = torch.nn.functional.normalize(cloud(3000, 12), dim=1)
    x[:200] = x[0]  # copies, and lists of nothing else
    exact, graph = neighbors.knn_graph(x, 5), neighbors.knn_graph(x, 5, how=AUTO)
    near = exact.distances2[:, -1:] + 1e-5
    assert (graph.distances2 <= near).float().mean() > 0.93  # 95 % of a sample of points
    d2 = (x[graph.indices] - x.unsqueeze(1)).square().sum(2)
    torch.testing.assert_close(graph.distances2, d2)  # exact, though it searches half floats
    again = neighbors.knn_graph(x, 5, how=AUTO)
    assert torch.equal(again.indices, graph.indices)
    [message] = {record.getMessage() for record in caplog.records}
    assert message.startswith("3,000 points: ")
    assert "of 219 lists" in message


@pytest.mark.parametrize(
    ("index", "dim", "fits"),
    [
        ("PQ16", 32, True),
        ("IVF16,PQ16", 8, False),
        ("OPQ16,IVF16,PQ16", 64, True),
        ("Falt", 8, False),
    ],
)
def test_an_index_must_be_known_and_fit_the_width(index, dim, fits):
    settings = neighbors.SearchSettings(index=index)
    if fits:
        settings.check(dim)
    else:
        with pytest.raises(UserError) as error:
            settings.check(dim)
        assert (error.value.key, error.value.value) == ("graph.index", index)
    neighbors.SearchSettings("torch", index=index).check(dim)  # which has no index


@pytest.mark.parametrize(
    ("index", "points", "problem"),
    [
        ("IVF64,Flat", cloud(40, 4), "cannot be made of 40 points"),
        (
            "IVF2,Flat",
            torch.cat([cloud(50, 4) + 100, cloud(3, 4, 1) - 100]),
            "found fewer than 11 neighbours",
        ),
    ],
)
def test_an_index_that_does_not_fit_the_points_is_named(index, points, problem):
    with pytest.raises(UserError, match=problem) as error:
        neighbors.knn_graph(points, 10, how=neighbors.SearchSettings(index=index))
    assert (error.value.key, error.value.value) == ("graph.index", index)
    assert "'Flat'" in error.value.remedy


@pytest.mark.parametrize("index", ["PCA4,Flat", "OPQ4_8,PQ4x4", "PQ4x4", "LSH", "SQ8", "HNSW8"])
def test_distances_are_those_of_the_rows_whatever_the_index_compresses(index):
    x = torch.nn.functional.normalize(torch.randn(400, 8, generator=torch.manual_seed(0)), dim=1)
    graph = neighbors.knn_graph(x, 5, how=neighbors.SearchSettings(index=index))
    exact = torch.cdist(x, x).square().gather(1, graph.indices)
    torch.testing.assert_close(graph.distances2, exact, atol=1e-5, rtol=1e-4)
    assert (graph.distances2.diff(dim=1) >= 0).all()
    if index == "LSH":  # FAISS has it for distances alone
        return
    products, found = neighbors.search(
        x[:9], x, 5, metric="ip", how=neighbors.SearchSettings(index=index)
    )
    torch.testing.assert_close(products, (x[:9] @ x.T).gather(1, found))


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """Builds or reads the graph of a cloud; the list of graphs that were built; the file."""
    built, original = [], neighbors.knn_graph
    monkeypatch.setattr(
        neighbors, "knn_graph", lambda *a, **k: built.append(1) or original(*a, **k)
    )

    def graph(k: int = 3, data: str = "1") -> neighbors.NeighborGraph:
        return neighbors.cached_knn_graph(cloud(), k, key={"data": data}, cache_dir=tmp_path)

    graph()
    [path] = tmp_path.glob("knn-*.safetensors")
    return graph, built, path


def test_cache_is_read_again_for_the_same_points_and_settings(cached):
    graph, built, _ = cached
    fresh = neighbors.knn_graph(cloud(), 3)
    built.clear()
    assert torch.equal(graph().indices, fresh.indices)
    assert torch.equal(graph().distances2, fresh.distances2)
    assert not built
    graph(data="2")
    graph(k=4)
    assert len(built) == 2


def _saved(indices: torch.Tensor, distances2: torch.Tensor) -> bytes:
    tensors = {"indices": indices, "distances2": distances2}
    return safetensors.torch.save(tensors, {"sha256": neighbors._checksum(tensors)})


DAMAGE = {
    "cut": lambda file, _: file[:50],
    "empty": lambda *_: b"",
    "one bit of a distance": lambda file, _: file[:-1] + bytes([file[-1] ^ 1]),
    "one bit of an index": lambda file, _: file[:-900] + bytes([file[-900] ^ 1]) + file[-899:],
    "zeros": lambda file, _: file[:-800] + bytes(800),
    "too few rows": lambda _, g: _saved(g.indices[:-1].int(), g.distances2[:-1]),
    "an index out of range": lambda _, g: _saved(
        torch.full_like(g.indices, len(g)).int(), g.distances2
    ),
    "no checksum": lambda _, g: safetensors.torch.save(
        {"indices": g.indices.int(), "distances2": g.distances2}
    ),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_cache_is_built_again_with_one_line(cached, caplog, how):
    graph, built, path = cached
    whole, fresh = path.read_bytes(), graph()
    path.write_bytes(DAMAGE[how](whole, fresh))
    built.clear()
    assert torch.equal(graph().indices, fresh.indices)
    assert len(built) == 1
    assert len([record for record in caplog.records if str(path) in record.getMessage()]) == 1
    assert path.read_bytes() == whole
    graph()
    assert len(built) == 1


def _build(folder: str) -> int:
    return int(
        neighbors.cached_knn_graph(
            cloud(400), 5, key={"data": "x"}, cache_dir=Path(folder)
        ).indices.sum()
    )


def test_two_processes_may_build_one_graph_at_once(tmp_path):
    with multiprocessing.get_context("spawn").Pool(2) as workers:
        sums = workers.map(_build, [str(tmp_path)] * 4)
    assert len(set(sums)) == 1
    assert [p.suffix for p in tmp_path.iterdir()] == [".safetensors"]


class Full:
    """An index on a GPU whose memory ends."""

    is_trained = True

    def add(self, points):
        raise RuntimeError("Error in void* ...\nCUDA memory allocation error")


@pytest.mark.parametrize(
    ("index", "late"), [("HNSW16", False), ("Flat", True), ("IVF2,Flat", True)]
)
def test_what_gpus_do_not_take_is_searched_on_the_cpu(monkeypatch, caplog, index, late):
    def refuse(*_, **__):
        if late:
            return Full()
        raise RuntimeError("This index type is not implemented on GPU.")

    monkeypatch.setattr(neighbors, "WORTH_A_GPU", 40 * 40)
    monkeypatch.setattr("faiss.get_num_gpus", lambda: 2, raising=False)
    monkeypatch.setattr("faiss.GpuMultipleClonerOptions", SimpleNamespace, raising=False)
    monkeypatch.setattr("faiss.index_cpu_to_all_gpus", refuse, raising=False)
    found = neighbors.knn_graph(cloud(40), 3, how=neighbors.SearchSettings(index=index, nprobe=2))
    assert torch.equal(
        found.indices,
        neighbors.knn_graph(cloud(40), 3, how=neighbors.SearchSettings("torch")).indices,
    )
    reason = "CUDA memory allocation error" if late else "not implemented on GPU."
    assert f"graph.index={index!r}: FAISS finds no use for the GPUs" in caplog.text
    assert reason in caplog.text
    caplog.clear()
    neighbors.knn_graph(cloud(39), 3)  # too small to ask a GPU
    assert not caplog.text


def test_exact_search_in_torch_holds_few_distances_at_once(monkeypatch):
    x, whole = (
        cloud(50),
        neighbors.search(cloud(50), cloud(50), 4, how=neighbors.SearchSettings("torch")),
    )
    for cells in (1, 120):  # one query at a time, two
        monkeypatch.setattr(neighbors, "CELLS", cells)
        for found, expected in zip(
            neighbors.search(x, x, 4, how=neighbors.SearchSettings("torch")), whole, strict=True
        ):
            torch.testing.assert_close(found, expected)


# ---- graphs of parts of the points ----


@pytest.mark.parametrize("left_out", [1, 12, 40])
def test_the_graph_of_a_part_is_that_of_a_search_among_it(left_out):
    x = cloud(80)
    x[20:30] = x[:10]  # copies keep each other
    kept = torch.ones(80, dtype=torch.bool)
    kept[np.random.default_rng(0).permutation(80)[:left_out]] = False
    found = neighbors.knn_graph(x, 13).subset(kept, x[kept], 5)
    expected = neighbors.knn_graph(x[kept], 5)
    torch.testing.assert_close(found.distances2, expected.distances2, atol=1e-5, rtol=1e-5)
    same = found.indices == expected.indices
    assert (same | (found.distances2 < 1e-5)).all()  # copies are in any order


def test_a_point_that_loses_its_neighbours_is_searched_for(monkeypatch):
    x = torch.arange(20.0).unsqueeze(1).square()
    graph, asked = neighbors.knn_graph(x, 2), []
    search = neighbors.search
    monkeypatch.setattr(
        neighbors, "search", lambda q, *a, **k: asked.append(len(q)) or search(q, *a, **k)
    )
    kept = torch.arange(20) % 4 != 1
    found = graph.subset(kept, x[kept], 2)
    assert sum(asked) == int((kept[graph.indices[kept]].sum(1) < 2).sum()) > 0
    expected = neighbors.knn_graph(x[kept], 2)
    assert torch.equal(found.indices, expected.indices)
