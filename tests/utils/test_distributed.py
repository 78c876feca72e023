"""Two and three gloo processes against one: the same losses, parameter gradients and weights.

The processes come from a fork server that has imported the package once. Each runs this file by its
path, under the name `worker`.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import socket
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from gera_lightning.commands.train import train
from gera_lightning.config.merging import typed
from gera_lightning.data.training_rows import Modality, TrainingRows
from gera_lightning.geometry.diffusion import DiffusionOperator
from gera_lightning.geometry.kernels import squared_distances
from gera_lightning.losses.geometric import geometric_loss
from gera_lightning.models.preprocessing import Preprocessing
from gera_lightning.training.datamodule import AlignmentDataModule
from gera_lightning.training.method import Method
from gera_lightning.training.module import AlignmentModule
from gera_lightning.training.training_set import TrainingSet
from gera_lightning.training.warm_start import WarmStart
from gera_lightning.utils import distributed
from gera_lightning.utils.errors import UserError
from gera_lightning.utils.progress import no_progress

STEPS = (0, 3)


@dataclass(frozen=True)
class Case:
    """One step's losses: `pairs` and `anchors` of the global batch, few enough that shares are
    uneven or empty.
    """

    pair_loss: str = "clip"
    geometric: dict[str, Any] | None = None
    pairs: int = 7
    anchors: int = 5
    paired_anchors: bool = False


GEOMETRIC: dict[str, dict[str, Any]] = {
    "patch": {},
    "self_tuning": {"bandwidth": "self_tuning", "kernel": "student"},
    "global": {"bandwidth": "global", "kernel": "laplacian"},
    "fixed": {"bandwidth": "fixed", "form": "js", "power": 2},
    "tied global": {"bandwidth": "global", "tied": True, "form": "frobenius"},
    "kl": {"form": "kl"},
}
CASES = {
    "clip": Case(),
    "siglip": Case("siglip"),
    **{f"geometric {name}": Case(geometric=settings) for name, settings in GEOMETRIC.items()},
    "siglip and geometric": Case("siglip", GEOMETRIC["global"], paired_anchors=True),
    "more processes than rows": Case(geometric=GEOMETRIC["global"], pairs=2, anchors=1),
}


def rows() -> TrainingRows:
    """Ten pairs of eight items (two items stand there twice) and unpaired rows, in double
    precision.
    """

    def modality(d: int, seed: int) -> Modality:
        x = torch.nn.functional.normalize(
            torch.randn(40, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        )
        return Modality(
            x[:10],
            x[10:],
            Preprocessing(None),
            {"data": f"{d}-{seed}"},
            np.arange(len(x) - 10).astype(str),
        )

    items = np.array(list("abcdefghab"))
    return TrainingRows(modality(6, 0), modality(5, 1), items, items)


def started(case: Case, cache: Path) -> tuple[AlignmentModule, AlignmentDataModule]:
    """The module and the stream of a case, in double precision."""
    losses: dict[str, Any] = {
        "pair": {"class": "clip", "temperature": 0.2} if case.pair_loss == "clip" else "siglip"
    }
    if case.geometric is not None:
        losses["geometric"] = {"class": "geometric", "weight": 3.0, **case.geometric}
    settings = {
        "losses": losses,
        "head": {"class": "residual_mlp", "hidden": 4},
        "dim": 3,
        "graph": {"k": 4},
        "cache_dir": str(cache),
        "batch": {
            "pairs": case.pairs,
            "anchors": case.anchors,
            "paired_anchors": case.paired_anchors,
        },
        "trainer": {"log_every_n_steps": 1},
    }
    method = Method.from_config(typed(settings, "a case"))
    training_set = TrainingSet(method, rows(), pd.Series(dtype=object), 0, Path(), no_progress)
    data = AlignmentDataModule.of_training_set(training_set, np.arange(10), 9)
    data.setup("fit")
    module = AlignmentModule.of_method(method, 0)
    module.start(data, WarmStart(training_set, data.positions))
    module.double()
    for head in (module.map_a, module.map_b):
        torch.nn.init.normal_(head.outer, generator=torch.Generator().manual_seed(9))
    return module, data


def one_step(case: Case, step: int, cache: Path, rank: int, size: int) -> dict[str, Tensor]:
    """Losses and parameter gradients of a step; gradients averaged over processes, as DDP does."""
    module, data = started(case, cache)
    logged: dict[str, Tensor] = {}
    module.log = lambda name, value, **_: logged.update({name: value.double()})  # type: ignore[method-assign]
    module.training_step(data.gather(data.step_rows(step, rank, size)), 0).backward()
    for name, parameter in module.named_parameters():
        gradient = parameter.grad.clone()
        if size > 1:
            torch.distributed.all_reduce(gradient)
        logged[f"gradient/{name}"] = gradient / size
    return logged


def all_steps(folder: Path, rank: int = 0, size: int = 1) -> dict[str, dict[str, Tensor]]:
    return {
        f"{name} {step}": one_step(case, step, folder / f"knn{rank}", rank, size)
        for name, case in CASES.items()
        for step in STEPS
    }


def primitives(rank: int, size: int) -> dict[str, Any]:
    """What each process gets from the gather, the mean and the broadcast."""
    out: dict[str, Any] = {
        "world": distributed.world(),
        "broadcast": distributed.broadcast_object({"from": rank}),
    }
    for count in (1, 5, 6, 7):
        full = torch.arange(2.0 * count).view(count, 2)
        out[f"rows {count}"] = distributed.gather_rows(full[rank::size], count)
        out[f"numbers {count}"] = distributed.gather_rows(torch.arange(count)[rank::size], count)
        out[f"mean {count}"] = distributed.global_mean(full[rank::size, 0], count)
    return out


def run_all(experiment: str, runs: Path) -> None:
    train(experiment, runs_dir=str(runs), cache_dir=str(runs / "cache"))


def work(rank: int, size: int, port: int, experiment: str, folder: str) -> None:
    """What one process does, told of the others as torchrun tells it."""
    told = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": size,
        "LOCAL_WORLD_SIZE": size,
        "MASTER_PORT": port,
    }
    os.environ |= {
        **{k: str(v) for k, v in told.items()},
        "MASTER_ADDR": "127.0.0.1",
        "TORCHELASTIC_RUN_ID": "test",
        "GROUP_RANK": "0",
    }
    torch.set_num_threads(1)
    distributed.initialize()
    out = Path(folder)
    torch.save((primitives(rank, size), all_steps(out, rank, size)), out / f"{rank}.pt")
    run_all(experiment, out / "runs")
    torch.distributed.destroy_process_group()


if __name__ == "worker":
    work(*JOB)  # type: ignore[name-defined]  # noqa: F821


# ---- fixtures ----

HEAD = {"class": "gera_lightning.models.maps.ResidualMLP", "hidden": 8}
FILES = {
    "small.yaml": {
        "data": {
            "synthetic": {"items": 120, "dim_a": 6, "dim_b": 5, "features": 16},
            "reserved_pairs": 11,
        },
        "budgets": [11],
        "methods": ["clip_patch", "siglip_global", "twin", "ridge"],
        "head": HEAD,
        "dim": 4,
        "optimizer": {"class": "torch.optim.SGD", "lr": 0.5, "momentum": 0.9},
        "batch": {"pairs": 7, "anchors": 5},
        "graph": {"k": 4},
        "tuning": {"folds": 2, "used_folds": 1, "max_trials": 1},
        "trainer": {"max_steps": 20, "accelerator": "cpu", "gradient_clip_val": 1.0},
    },
    "methods/clip_patch.yaml": {"losses": {"geometric": "geometric"}},
    "methods/siglip_global.yaml": {
        "closed_form": None,
        "losses": {"pair": "siglip", "geometric": {"class": "geometric", "bandwidth": "global"}},
    },
    "methods/twin.yaml": {},
    "methods/ridge.yaml": {"closed_form": {"class": "gera_lightning.aligners.ridge.Ridge"}},
}
TRAINED = ["clip_patch", "siglip_global", "twin"]


@dataclass(frozen=True)
class Result:
    """What one process, or several, left behind: results of each rank, and the folder of the
    experiment's runs.
    """

    ranks: list[tuple[dict[str, Any], dict[str, dict[str, Tensor]]]]
    runs: Path


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory, write_yaml: Any) -> str:
    return str(write_yaml(tmp_path_factory.mktemp("experiments"), FILES) / "small.yaml")


@pytest.fixture(scope="module")
def one(experiment: str, tmp_path_factory: pytest.TempPathFactory) -> Result:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("one")
    steps = all_steps(folder)
    run_all(experiment, folder / "runs")
    return Result([(primitives(0, 1), steps)], folder / "runs" / "small")


@pytest.fixture(scope="module", params=[2, 3])
def several(
    request: pytest.FixtureRequest, experiment: str, tmp_path_factory: pytest.TempPathFactory
) -> Result:
    folder = tmp_path_factory.mktemp(f"{request.param}")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["gera_lightning.experiment.runner", "pytest"])
    workers = []
    for rank in range(request.param):
        job = {"JOB": (rank, request.param, port, experiment, str(folder))}
        workers.append(
            context.Process(target=runpy.run_path, args=(__file__, job, "worker"), daemon=True)
        )
        workers[-1].start()
    deadline = time.monotonic() + 150
    for worker in workers:
        worker.join(max(0, deadline - time.monotonic()))
        worker.kill()  # one that waits for the others for ever; one that has ended does not mind
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * request.param
    ranks = [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(request.param)]
    return Result(ranks, folder / "runs" / "small")


# ---- primitives ----


def test_one_process_needs_no_others(one, monkeypatch):
    assert one.ranks[0][0]["world"] == (0, 1)
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert not distributed.launched()
    distributed.initialize()
    assert not torch.distributed.is_initialized()
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert distributed.launched()


def test_each_process_sees_the_whole_batch_in_order(one, several):
    size = len(several.ranks)
    for rank, (found, _) in enumerate(several.ranks):
        assert found["world"] == (rank, size)
        assert found["broadcast"] == {"from": 0}
        for name, expected in one.ranks[0][0].items():
            if isinstance(expected, Tensor):
                torch.testing.assert_close(found[name], expected)


# ---- one step ----


@pytest.mark.parametrize("name", CASES)
def test_losses_and_gradients_equal_those_of_one_process_on_the_joined_batch(one, several, name):
    for step in STEPS:
        expected = one.ranks[0][1][f"{name} {step}"]
        assert {"loss/pair", "loss/total"} <= set(expected)
        assert ("loss/geometric" in expected) == (CASES[name].geometric is not None)
        assert (
            min(float(v.abs().max()) for n, v in expected.items() if n.startswith("gradient/")) > 0
        )
        for _, results in several.ranks:
            found = results[f"{name} {step}"]
            assert set(found) == set(expected)
            for key, value in expected.items():
                torch.testing.assert_close(
                    found[key],
                    value,
                    rtol=1e-9,
                    atol=1e-11,
                    msg=lambda text, key=key: f"{key}: {text}",
                )


def test_the_total_is_the_pair_loss_and_the_weighted_geometric_losses(one):
    terms = one.ranks[0][1]["siglip and geometric 0"]
    torch.testing.assert_close(
        terms["loss/total"], terms["loss/pair"] + 3 * terms["loss/geometric"]
    )


def test_the_losses_of_a_step_are_those_of_its_rows(tmp_path):
    """Against the pure functions: every anchor's patch mapped on its own."""
    case = CASES["geometric patch"]
    found = one_step(case, 0, tmp_path, 0, 1)
    module, data = started(case, tmp_path)
    each = []
    for side, mapping in (("a", module.map_a), ("b", module.map_b)):
        pool, graph = getattr(rows(), side).pool, data.graphs[side]
        patches = getattr(data.gather(data.step_rows(0)), f"patches_{side}")
        anchors = patches.points[patches.members[:, 0]]
        numbers = [int((pool == anchor).all(1).nonzero()) for anchor in anchors]
        assert len(set(numbers)) == case.anchors
        operator = DiffusionOperator(self_loops=False).calibrated(
            squared_distances(pool[graph.patches(torch.arange(len(pool)))]), scale=graph.edge_scale
        )
        losses = []
        for number in numbers:
            patch = pool[[number, *((pool - pool[number]) ** 2).sum(1).argsort()[1:5].tolist()]]
            z = torch.nn.functional.normalize(mapping(patch), dim=1)
            scale = graph.edge_scale
            losses.append(geometric_loss(patch[None], z[None], operator, scale=scale))
        each.append(torch.cat(losses).mean().detach())
    torch.testing.assert_close(found["loss/geometric"], each[0] + each[1])


# ---- twenty steps ----


def weights(result: Result, method: str) -> dict[str, Tensor]:
    [folder] = (result.runs / method).glob("b*")
    return load_file(folder / "aligner" / "maps.safetensors")


@pytest.mark.parametrize("method", TRAINED)
def test_weights_after_twenty_steps_equal_those_of_one_process(one, several, method):
    expected, found = weights(one, method), weights(several, method)
    assert set(found) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=1e-3, atol=2e-5, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_twenty_steps_move_the_weights_and_the_terms_differ(one):
    """What the test above could miss: equal weights because nothing was trained, or because a term
    did nothing.
    """
    trained = {method: weights(one, method)["space.map_a.outer"] for method in TRAINED}
    for method, value in trained.items():
        assert float(value.abs().max()) > 1e-3  # zero at the start
        assert all(
            not torch.allclose(value, other, atol=1e-3)
            for name, other in trained.items()
            if name != method
        )


def test_several_processes_leave_one_result_a_run(one, several):
    for result in (one, several):
        assert sorted(p.name for p in result.runs.iterdir() if p.is_dir()) == sorted(
            [*TRAINED, "ridge", "summary"]
        )
        assert not list(result.runs.glob("*/*.partial"))
    found, expected = ((r.runs / "results.jsonl").read_text().splitlines() for r in (several, one))
    assert len(found) == len(expected) == 4
    for line, other in zip(map(yaml.safe_load, found), map(yaml.safe_load, expected), strict=True):
        assert {
            k: line[k]
            for k in ("method", "config_hash", "data_hash", "steps", "n_trials", "chosen")
        } == {
            k: other[k]
            for k in ("method", "config_hash", "data_hash", "steps", "n_trials", "chosen")
        }
        for name in ("ab/mrr", "ba/mrr", "foscttm"):
            assert line[name] == pytest.approx(other[name], abs=1e-2)


def test_the_pair_loss_of_a_share_alone_is_another(one, tmp_path):
    """The joined batch matters: a process with its own rows alone would not have passed."""
    case = replace(CASES["clip"], pairs=4)
    assert not torch.isclose(
        one_step(case, 0, tmp_path, 0, 1)["loss/pair"],
        one.ranks[0][1]["clip 0"]["loss/pair"],
        rtol=1e-3,
    )


# ---- cores ----


def test_cores_are_those_of_the_job_not_of_the_machine(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 4, 9}, raising=False)
    assert distributed.cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    assert distributed.cores() == 64


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, ["0", "1", "2"]),
        ("4, 6,7", ["4", "6", "7"]),
        ("MIG-a,MIG-b,MIG-c", ["MIG-a", "MIG-b", "MIG-c"]),
    ],
)
def test_gpus_are_named_as_the_environment_names_them(monkeypatch, visible, expected):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert distributed.gpus() == expected


def test_without_a_gpu_there_is_none_to_name(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert distributed.gpus() == []


@pytest.mark.parametrize(
    ("accelerator", "there", "device"),
    [
        ("auto", True, "cuda:1"),
        ("gpu", True, "cuda:1"),
        ("cuda", True, "cuda:1"),
        ("cpu", True, "cpu"),
        ("mps", True, "cpu"),
        ("auto", False, "cpu"),
    ],
)
def test_closed_forms_are_computed_on_this_process_gpu_where_it_may(
    monkeypatch, accelerator, there, device
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert str(distributed.device(accelerator)) == device


def test_a_gpu_that_is_not_there_is_told(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"trainer\.accelerator=gpu: there is no GPU here"):
        distributed.device("gpu")


@pytest.mark.parametrize(("gpus", "chosen"), [(0, []), (1, []), (2, [1])])
def test_a_process_takes_its_gpu_where_there_is_one_for_it(monkeypatch, gpus, chosen):
    """Two processes on the CPU of a machine with one GPU: the second has none to take."""
    taken = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda *_, **__: None)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    distributed.initialize()
    assert taken == chosen


@pytest.mark.parametrize(
    ("devices", "launched", "count"),
    [(1, False, 1), (3, False, 3), (3, True, 1), (-1, False, 2), (-1, True, 1)],
)
def test_as_many_processes_are_wanted_as_devices_unless_this_is_one_of_them(
    monkeypatch, devices, launched, count
):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if launched:
        monkeypatch.setenv("LOCAL_RANK", "0")
    assert distributed.num_processes(devices) == count
