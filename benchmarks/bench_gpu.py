"""What a CUDA device gains: neighbour graphs, and whole runs on it, in bfloat16 and on the CPU
beside it.

python benchmarks/bench_gpu.py                                  graphs and runs; nothing where there
is no CUDA device python benchmarks/bench_gpu.py graphs
python benchmarks/bench_gpu.py runs gera,contrastive 100,3000   runs of these methods at these
budgets

Graphs are of random unit rows. Runs are of speech_text, seed 0, on the validation part
(`data.split=dev`): seconds with tuning and evaluation, and R@10 as the mean of both directions. The
first run on the device pays for starting it.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from gera_lightning.config import load
from gera_lightning.evaluation.neighborhoods import overlap
from gera_lightning.experiment.plan import plan
from gera_lightning.experiment.run import execute
from gera_lightning.geometry.neighbors import NeighborGraph, SearchSettings, knn_graph
from gera_lightning.models.maps import normalized

DIM, K = 384, 16
ON_CPU_AT_MOST = 30_000
METHODS = ("coupled_ridge", "manifold_kernel_ridge", "contrastive", "gera")
BUDGETS = (300, 3000)
WHERE = {
    "gpu": {"trainer.accelerator": "gpu"},
    "gpu, bf16": {"trainer.accelerator": "gpu", "trainer.precision": "bf16-mixed"},
    "cpu": {"trainer.accelerator": "cpu"},
}


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What `work` gives, and its seconds, the device's work included."""
    torch.cuda.synchronize()
    started = time.perf_counter()
    result = work()
    torch.cuda.synchronize()
    return result, time.perf_counter() - started


def graphs() -> None:
    """The same graph by every backend; each is built twice, and the second counts."""
    for count in (10_000, 30_000, 100_000, 300_000):
        x = normalized(torch.randn(count, DIM, generator=torch.Generator().manual_seed(0)))
        on_device, exact = x.cuda(), None
        ways: dict[str, Callable[[], NeighborGraph]] = {
            "torch": lambda on_device=on_device: knn_graph(
                on_device, K, how=SearchSettings("torch")
            ),
            "faiss": lambda x=x: knn_graph(x, K, how=SearchSettings("faiss")),
        }
        told = []
        for name, build in ways.items():
            build()
            graph, seconds = timed(build)
            exact = graph if exact is None else exact
            told.append(
                f"{name} {seconds * 1e3:,.0f} ms (recall"
                f" {overlap(exact.indices.cuda(), graph.indices.cuda()):.4f})"
            )
        if count <= ON_CPU_AT_MOST:
            with mock.patch("faiss.get_num_gpus", return_value=0):
                _, seconds = timed(ways["faiss"])
            told.append(
                f"faiss on the CPU, {torch.get_num_threads()} threads, {seconds * 1e3:,.0f} ms"
            )
        print(f"{count:,} rows, width {DIM}, {K} neighbours: {', '.join(told)}", flush=True)


def runs(methods: tuple[str, ...] = METHODS, budgets: tuple[int, ...] = BUDGETS) -> None:
    """Each method and budget in every place that can run it."""
    with tempfile.TemporaryDirectory() as name:
        for number, (where, words) in enumerate(WHERE.items()):
            settings = {
                "methods": list(methods),
                "budgets": list(budgets),
                "data.split": "dev",
                "runs_dir": str(Path(name) / str(number)),
                "cache_dir": str(Path(name) / "cache"),
                **words,
            }
            for run in plan(load("speech_text", settings)):
                if run.config.closed_form is not None and where == "gpu, bf16":
                    continue  # closed forms know one precision
                row, seconds = timed(lambda run=run: execute(run))
                rate = (row["ab/r@10"] + row["ba/r@10"]) / 2
                print(
                    f"{run.method}, {run.budget:,} pairs, {where}: {seconds:.1f} s, R@10"
                    f" {rate:.3f}",
                    flush=True,
                )


def main() -> None:
    """What the arguments name."""
    if not torch.cuda.is_available():
        print("no CUDA device: nothing to measure")
        return
    print(torch.cuda.get_device_name(), f"torch {torch.__version__}", flush=True)
    match sys.argv[1:]:
        case []:
            graphs()
            runs()
        case ["graphs"]:
            graphs()
        case ["runs"]:
            runs()
        case ["runs", methods, budgets]:
            runs(tuple(methods.split(",")), tuple(int(budget) for budget in budgets.split(",")))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
