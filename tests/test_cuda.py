"""What only a CUDA device can show; skipped where there is none."""

from __future__ import annotations

import faiss
import pytest
import torch

from gera_lightning.commands.export import export
from gera_lightning.commands.search import search
from gera_lightning.config import load
from gera_lightning.data.store import EmbeddingStore
from gera_lightning.experiment.run import execute
from gera_lightning.experiment.runner import plan
from gera_lightning.geometry.diffusion import DiffusionOperator
from gera_lightning.geometry.kernels import squared_distances
from gera_lightning.geometry.neighbors import SearchSettings, knn_graph
from gera_lightning.losses.geometric import geometric_loss

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.parametrize("backend", ["faiss", "torch"])
def test_the_graph_on_the_device_is_that_of_the_cpu(backend):
    x = torch.nn.functional.normalize(
        torch.randn(5000, 64, generator=torch.Generator().manual_seed(0)), dim=1
    )
    here, there = (
        knn_graph(v, 10, how=SearchSettings(name))
        for v, name in ((x, "torch"), (x.cuda() if backend == "torch" else x, backend))
    )
    shared = (here.indices.unsqueeze(2) == there.indices.cpu().unsqueeze(1)).any(2).float().mean()
    assert float(shared) > 0.999  # ties and rounding
    torch.testing.assert_close(there.distances2.cpu(), here.distances2, rtol=1e-3, atol=1e-4)


@pytest.mark.skipif(not hasattr(faiss, "StandardGpuResources"), reason="needs a FAISS with GPUs")
@pytest.mark.parametrize("shard", [True, False])
def test_a_graph_by_several_gpus_is_that_of_one(monkeypatch, shard):
    """Each of two FAISS resources stands for a GPU; a machine with one takes it twice."""

    def on_two(index, co):
        devices = [number % torch.cuda.device_count() for number in range(2)]
        return faiss.index_cpu_to_gpu_multiple_py(
            [faiss.StandardGpuResources() for _ in devices], index, co, devices
        )

    x = torch.nn.functional.normalize(
        torch.randn(20_000, 384, generator=torch.Generator().manual_seed(0)), dim=1
    )
    expected = knn_graph(x.cuda(), 16, how=SearchSettings("torch")).indices.cpu()
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 2)
    monkeypatch.setattr(faiss, "index_cpu_to_all_gpus", on_two)
    found = knn_graph(x, 16, how=SearchSettings(shard=shard)).indices
    assert float((found == expected).float().mean()) > 0.999


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_geometric_loss_agrees_with_the_cpu_under_autocast(dtype):
    x = torch.nn.functional.normalize(
        torch.randn(8, 9, 16, generator=torch.Generator().manual_seed(0)), dim=2
    )
    z = torch.nn.functional.normalize(
        torch.randn(8, 9, 12, generator=torch.Generator().manual_seed(1)), dim=2
    )
    operator = DiffusionOperator(self_loops=False).calibrated(squared_distances(x), scale=1.0)
    with torch.autocast("cuda", dtype=torch.bfloat16, enabled=dtype is torch.bfloat16):
        there = geometric_loss(x.cuda(), z.cuda(), operator, scale=1.0)
    here = geometric_loss(x, z, operator, scale=1.0)
    torch.testing.assert_close(there.cpu(), here, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_run_on_the_device_learns_what_one_on_the_cpu_learns(tmp_path, repository, precision):
    found = {}
    for accelerator in ("cpu", "gpu"):
        words = {
            "budgets": [100],
            "methods": ["gera"],
            "trainer.accelerator": accelerator,
            "trainer.max_steps": 30,
            "trainer.precision": precision if accelerator == "gpu" else "32-true",
            "data.synthetic.items": 1500,
            "runs_dir": str(tmp_path / accelerator),
            "cache_dir": str(tmp_path / "cache"),
        }
        [run] = plan(load("synthetic", words))
        found[accelerator] = execute(run)["ab/r@10"]
    assert abs(found["gpu"] - found["cpu"]) < 0.05


@pytest.mark.parametrize(
    "method", ["coupled_ridge", "kernel_ridge", "cca", "manifold_kernel_ridge", "self_training"]
)
def test_a_closed_form_on_the_device_is_that_of_the_cpu(tmp_path, repository, method):
    found = {}
    for accelerator in ("cpu", "gpu"):
        words = {
            "budgets": [100],
            "methods": [method],
            "trainer.accelerator": accelerator,
            "data.synthetic.items": 1500,
            "runs_dir": str(tmp_path / accelerator),
        }
        [run] = plan(load("synthetic", words))
        found[accelerator] = execute(run)
    assert abs(found["gpu"]["ab/r@10"] - found["cpu"]["ab/r@10"]) < 0.02
    assert set(found["gpu"]["chosen"]) == set(found["cpu"]["chosen"])


def test_an_export_by_the_device_is_that_of_the_cpu(tmp_path, repository):
    words = {
        "budgets": [100],
        "methods": ["coupled_ridge"],
        "data.synthetic.items": 1500,
        "runs_dir": str(tmp_path / "runs"),
    }
    [run] = plan(load("synthetic", words))
    execute(run)
    rows, told = {}, {}
    for accelerator in ("cpu", "gpu"):
        chosen = [f"trainer.accelerator={accelerator}", "data.synthetic.items=1500"]
        rows[accelerator] = torch.from_numpy(
            EmbeddingStore(
                export(str(run.folder), chosen, out=str(tmp_path / accelerator)) / "b"
            ).read()
        )
        told[accelerator] = search(
            str(run.folder), str(run.stores.a.rows["row"].iloc[0]), chosen, k=1
        )
    torch.testing.assert_close(rows["gpu"], rows["cpu"], rtol=0, atol=1e-4)
    assert told["gpu"].split()[-1] == told["cpu"].split()[-1]
