"""Published peers behind the one path of all methods: their presets, their settings, and several
processes against one.

The two gloo processes come from a fork server that has imported the package once. Each runs this
file by its path, under the name `worker`.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import runpy
import socket
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from gera_lightning.aligners import Aligner
from gera_lightning.aligners.base import FitData
from gera_lightning.aligners.cca import CCA
from gera_lightning.config import combinations, load
from gera_lightning.config.merging import merge, typed
from gera_lightning.data.training_rows import Modality, TrainingRows
from gera_lightning.experiment.runner import plan, run_experiment
from gera_lightning.losses.transport import TransportLoss
from gera_lightning.models.preprocessing import Preprocessing
from gera_lightning.training.datamodule import AlignmentDataModule
from gera_lightning.training.fit_trained import stopping_steps
from gera_lightning.training.method import Method
from gera_lightning.training.module import AlignmentModule
from gera_lightning.training.training_set import TrainingSet
from gera_lightning.training.warm_start import WarmStart
from gera_lightning.utils import distributed
from gera_lightning.utils.errors import UserError
from gera_lightning.utils.instantiate import build
from gera_lightning.utils.progress import no_progress

METHODS = Path(__file__).parents[2] / "src" / "gera_lightning" / "config" / "presets"
TERMS = {
    "contrastive_linear": {"pair"},
    "contrastive_siglip": {"pair"},
    "fusemix": {"pair"},
    "contrastive_mlp": {"pair"},
    "contrastive_linear_ridge": {"pair"},
    "gera": {"pair", "geometric"},
    "gera_linear": {"pair", "geometric"},
    "gera_linear_ridge": {"pair", "geometric"},
    "gera_mlp": {"pair", "geometric"},
    "structure": {"pair", "structure"},
    "structure_pairs": {"pair", "structure"},
    "sotalign": {"pair", "transport"},
    "sotalign_procrustes": {"pair", "transport"},
    "sclip": {"pair", "captions"},
}
TWINS = {
    "fusemix": "contrastive",
    "sclip": "contrastive",
    "structure": "contrastive_linear",
    "structure_pairs": "contrastive_linear",
}
TWINS |= {"gera": "contrastive", "gera_mlp": "contrastive_mlp"}
TWINS |= {"gera_linear": "contrastive_linear", "gera_linear_ridge": "contrastive_linear_ridge"}
CLOSED = {
    "manifold_ridge": "smoothness",
    "manifold_kernel_ridge": "smoothness",
    "self_training": "ratio",
}
"""Closed forms that read the pools, with what they tune beside the penalty."""
TRANSPORT = "gera_lightning.losses.transport.TransportLoss"
CCA_CLASS = "gera_lightning.aligners.cca.CCA"


# ---- one step on several processes ----


@dataclass(frozen=True)
class Case:
    """One step's losses, on few enough rows that shares are uneven."""

    loss: str | None = None
    settings: dict[str, Any] | None = None
    mixup: bool = False
    pair_loss: str = "clip"
    pairs: int = 7
    unpaired: int = 9


CASES = {
    "mixup": Case(mixup=True),
    "structure": Case("structure", {"hops": 2, "warmup": 5, "temperature": 0.3}),
    "structure of pairs": Case("structure", {"rows": "pairs", "temperature": 0.3}),
    "transport": Case("transport", {"teacher_eps": 0.1}, pair_loss="siglip"),
    "captions": Case("captions"),
    "captions of mixed pairs": Case("captions", {"eps": 0.2}, mixup=True),
    "more processes than rows": Case("structure", {"temperature": 0.3}, pairs=2, unpaired=2),
}
STEPS = (0, 3)


def training_rows() -> TrainingRows:
    """Ten pairs of eight items (two items stand there twice) and unpaired rows, fewer of b than a
    step takes, in double precision.
    """

    def modality(d: int, pool: int, seed: int) -> Modality:
        x = torch.randn(
            10 + pool, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
        )
        x = torch.nn.functional.normalize(x)
        return Modality(
            x[:10],
            x[10:],
            Preprocessing(None),
            {"data": f"{d}-{seed}"},
            np.array([f"pool{d}-{i}" for i in range(len(x) - 10)]),
        )

    items = np.array(list("abcdefghab"))
    return TrainingRows(modality(6, 30, 0), modality(5, 8, 1), items, items)


def method_of(case: Case) -> Method:
    losses: dict[str, Any] = {
        "pair": {"class": "clip", "temperature": 0.2} if case.pair_loss == "clip" else "siglip"
    }
    if case.loss is not None:
        teacher = {"teacher": {"class": "cca"}} if case.loss == "transport" else {}
        losses[case.loss] = {"class": case.loss, "weight": 3.0, **teacher, **(case.settings or {})}
    settings = {
        "losses": losses,
        "head": {"class": "residual_mlp", "hidden": 4},
        "dim": 3,
        "batch": {"pairs": case.pairs, "unpaired": case.unpaired},
        "trainer": {"log_every_n_steps": 1},
        "mixup": "fusemix" if case.mixup else None,
    }
    return Method.from_config(typed(settings, "a case"))


def fit_teacher(form: CCA, rows: TrainingRows) -> Any:
    """A teacher in its one setting, without folds."""
    samples = FitData(rows.a.pairs, rows.b.pairs, rows.a.pool, rows.b.pool)
    return next(form.candidates(samples, [{"penalty": 1.0, "share": 1.0}]))


def one_step(case: Case, step: int, rank: int = 0, size: int = 1) -> dict[str, Tensor]:
    """Losses and parameter gradients of a step; gradients averaged over processes, as DDP does."""
    rows, method = training_rows(), method_of(case)
    training_set = TrainingSet(method, rows, pd.Series(dtype=object), 0, Path(), no_progress)
    data = AlignmentDataModule.of_training_set(training_set, np.arange(10), 9)
    data.setup("fit")
    module = AlignmentModule.of_method(method, 0)
    random_start = SimpleNamespace(
        linear=lambda: ({"a": None, "b": None}, 3),
        fit_closed_form=lambda form: fit_teacher(form, rows),
    )
    module.start(data, random_start)  # type: ignore[arg-type]
    module.double()
    for head in (module.map_a, module.map_b):
        torch.nn.init.normal_(head.outer, generator=torch.Generator().manual_seed(9))
    logged: dict[str, Tensor] = {}
    module.log = lambda name, value, **_: logged.update({name: value.double()})  # type: ignore[method-assign]
    module.training_step(data.gather(data.step_rows(step, rank, size)), 0).backward()
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            gradient = parameter.grad.clone()
            if size > 1:
                torch.distributed.all_reduce(gradient)
            logged[f"gradient/{name}"] = gradient / size
    return logged


def all_steps(rank: int = 0, size: int = 1) -> dict[str, dict[str, Tensor]]:
    return {
        f"{name} {step}": one_step(case, step, rank, size)
        for name, case in CASES.items()
        for step in STEPS
    }


def train(experiment: str, runs: Path, *methods: str) -> None:
    chosen = {"methods": list(methods)} if methods else {}
    run_experiment(
        load(experiment, {"runs_dir": str(runs), "cache_dir": str(runs / "cache"), **chosen})
    )


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
    torch.save(all_steps(rank, size), Path(folder) / f"{rank}.pt")
    train(experiment, Path(folder) / "runs", *WHOLE)
    torch.distributed.destroy_process_group()


WHOLE = ("fusemix", "sotalign")

if __name__ == "worker":
    work(*JOB)  # type: ignore[name-defined]  # noqa: F821


# ---- fixtures ----

SMALL = {
    "data": {
        "synthetic": {"items": 120, "dim_a": 6, "dim_b": 5, "features": 16},
        "reserved_pairs": 12,
    },
    "budgets": [12],
    "methods": ["contrastive", *TERMS, *CLOSED],
    "head": {"class": "residual_mlp", "hidden": 8},
    "dim": 4,
    "batch": {"pairs": 7, "unpaired": 9},
    "graph": {"k": 3},
    "tuning": {"folds": 2, "used_folds": 1, "max_trials": 4},
    "trainer": {"accelerator": "cpu", "log_every_n_steps": 1},
}


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small experiment beside the shipped presets, cut to three steps."""
    folder = tmp_path_factory.mktemp("experiments")
    (folder / "methods").mkdir()
    for path in METHODS.glob("*.yaml"):
        (folder / "methods" / path.name).write_text(
            yaml.safe_dump(shortened(load_preset(path.stem)))
        )
    (folder / "small.yaml").write_text(yaml.safe_dump(SMALL))
    return str(folder / "small.yaml")


@pytest.fixture(scope="module")
def runs(experiment: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every preset trained for three steps."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("one")
    train(experiment, folder)
    return folder / "small"


@pytest.fixture(scope="module")
def two(experiment: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes left behind."""
    folder = tmp_path_factory.mktemp("two")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["gera_lightning.experiment.runner", "pytest"])
    workers = [
        context.Process(
            target=runpy.run_path,
            args=(__file__, {"JOB": (rank, 2, port, experiment, str(folder))}, "worker"),
            daemon=True,
        )
        for rank in range(2)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0, 0]
    return folder


def shortened(preset: dict[str, Any]) -> dict[str, Any]:
    """A preset of three steps, its warm-up within them."""
    for name, loss in preset.get("losses", {}).items():
        if isinstance(loss, dict) and "warmup" in loss:
            preset["losses"][name] = {**loss, "warmup": 2}
    batch = {**preset.get("batch", {}), "min_epochs": 0}
    return {**preset, "batch": batch, "trainer": {**preset.get("trainer", {}), "max_steps": 3}}


def weights(runs: Path, method: str) -> dict[str, Tensor]:
    [folder] = (runs / method).glob("b*")
    return safetensors.torch.load_file(folder / "aligner" / "maps.safetensors")


# ---- presets ----


@pytest.mark.parametrize("method", TERMS)
def test_each_preset_trains_and_logs_its_terms(runs, method):
    [folder] = (runs / method).glob("b*")
    row = json.loads((folder / "metrics.json").read_text())
    assert row["steps"] in (1, 2, 3)
    preset = load_preset(method)
    # the package's YAML reads 1e-3 as a number, this one as a word
    grid = {key: list(map(float, values)) for key, values in preset["tuning"]["grid"].items()}
    assert (row["n_trials"], set(row["chosen"])) == (4, {"steps", *grid})
    assert all(row["chosen"][key] in values for key, values in grid.items())
    events = EventAccumulator(str(folder / "tuning" / "fold0-choice0")).Reload()
    names = {
        tag.removeprefix("loss/") for tag in events.Tags()["scalars"] if tag.startswith("loss/")
    }
    assert names == TERMS[method] | {"total"}
    values = {name: [event.value for event in events.Scalars(f"loss/{name}")] for name in names}
    weights = {
        name: loss.get("weight", 1) if isinstance(loss, dict) else 1
        for name, loss in preset["losses"].items()
    }
    weights |= {key.split(".")[1]: grid[key][0] for key in grid if key.endswith(".weight")}
    for number, total in enumerate(values["total"]):
        terms = [values[name][number] * weights[name] for name in TERMS[method]]
        assert total == pytest.approx(sum(terms), rel=1e-5)
    assert len(values["total"]) == 3


def load_preset(method: str) -> dict[str, Any]:
    """A preset with what it is `of`."""
    values: dict[str, Any] = yaml.safe_load((METHODS / f"{method}.yaml").read_text())
    of = values.pop("of", None)
    return values if of is None else merge([load_preset(of), values])


def comments_of(method: str) -> str:
    """A preset's comments, and those of what it is `of`."""
    text = (METHODS / f"{method}.yaml").read_text()
    lines = [line.removeprefix("# ") for line in text.splitlines() if line.startswith("#")]
    of = yaml.safe_load(text).get("of")
    return " ".join(lines) + ("" if of is None else comments_of(of))


@pytest.mark.parametrize(("method", "twin"), TWINS.items())
def test_each_term_moves_the_maps_of_its_twin(runs, method, twin):
    """Start, batches and steps are the same, so without an effect weights would be equal to the
    bit.
    """
    own, other = weights(runs, method), weights(runs, twin)
    assert set(own) == set(other)
    assert any(not torch.equal(value, other[name]) for name, value in own.items())


@pytest.mark.parametrize(("method", "tuned"), CLOSED.items())
def test_each_closed_preset_is_fitted_tuned_and_saved(runs, method, tuned):
    [folder] = (runs / method).glob("b*")
    row = json.loads((folder / "metrics.json").read_text())
    assert (row["steps"], row["n_trials"], row["converged"]) == (0, 4, None)
    assert set(row["chosen"]) == {"penalty", tuned}
    aligner = Aligner.load(folder / "aligner")
    scores = aligner.score(np.eye(6, dtype=np.float32), np.eye(6, 5, dtype=np.float32))
    assert scores.shape == (6, 6)
    assert scores.isfinite().all()
    assert float(scores.std()) > 1e-3


@pytest.mark.parametrize("method", sorted({*TERMS, *TWINS.values(), *CLOSED}))
def test_a_preset_says_which_values_are_ours_and_tunes_as_many_as_every_other(monkeypatch, method):
    monkeypatch.setattr("gera_lightning.config.loading.SHIPPED", METHODS.parent)
    assert any(
        words in comments_of(method)
        for words in ("Ours:", "ours.", "All values ours", "Our values", "which ours")
    )
    config = load({}, {"methods": [method]}).methods[method]
    if method in CLOSED:
        method_settings = build(config.closed_form, "closed_form").settings(
            config.tuning.max_trials, 100
        )
    else:
        choices = combinations(config)
        method_settings = len(choices) * stopping_steps(
            config.trainer.max_steps, config.tuning.max_trials // len(choices)
        )
    assert len(method_settings) == config.tuning.max_trials == 8


# ---- several processes ----


@pytest.mark.parametrize("name", CASES)
def test_losses_and_gradients_equal_those_of_one_process_on_the_joined_batch(two, name):
    for step in STEPS:
        expected = one_step(CASES[name], step)
        term = {"structure": "structure", "transport": "transport", "captions": "captions"}.get(
            name.split()[0]
        )
        assert term is None or float(expected[f"loss/{term}"]) > 0
        assert (
            max(float(v.abs().max()) for n, v in expected.items() if n.startswith("gradient/map_a"))
            > 1e-4
        )
        for rank in range(2):
            found = torch.load(two / f"{rank}.pt")[f"{name} {step}"]
            assert set(found) == set(expected)
            for key, value in expected.items():
                torch.testing.assert_close(
                    found[key],
                    value,
                    rtol=1e-9,
                    atol=1e-11,
                    msg=lambda text, key=key: f"{key}: {text}",
                )


@pytest.mark.parametrize("method", WHOLE)
def test_weights_of_whole_runs_equal_those_of_one_process(runs, two, method):
    expected, found = weights(runs, method), weights(two / "runs" / "small", method)
    assert set(found) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_mixed_pairs_and_unpaired_rows_matter():
    """What the test above could miss: a term or a mixing that does nothing."""
    plain = one_step(Case(), 3)["loss/total"]
    for name in ("mixup", "structure", "transport", "captions"):
        assert not torch.isclose(one_step(CASES[name], 3)["loss/total"], plain, rtol=1e-3), name
    assert torch.isclose(
        one_step(CASES["structure"], 3)["loss/pair"], plain
    )  # beside the pair loss, not in it


# ---- the teacher ----


def test_the_teacher_sees_exactly_the_pairs_that_are_trained_on(tmp_path, monkeypatch):
    rows, seen = training_rows(), []
    fitted = CCA.candidates

    def watched(self: CCA, samples: FitData, settings: Any) -> Any:
        seen.append(samples.x_a)
        return fitted(self, samples, settings)

    monkeypatch.setattr(CCA, "candidates", watched)
    settings = {
        "losses": {
            "pair": "clip",
            "transport": {"class": "transport", "teacher": {"class": "cca"}},
        },
        "batch": {"unpaired": 9},
        "tuning": {"folds": 2},
        "trainer": {"accelerator": "cpu"},
    }
    method = Method.from_config(typed(settings, "a test"))
    positions = np.array([1, 2, 4, 5, 6, 7])
    items = sorted({*rows.items, *rows.a.pool_units, *rows.b.pool_units})
    families = pd.Series(items, index=items)
    task = TrainingSet(method, rows, families, 0, tmp_path, no_progress)
    data = AlignmentDataModule.of_training_set(task, positions, 9)
    data.setup("fit")
    module = AlignmentModule.of_method(method, 0)
    module.start(data, WarmStart(task, positions))
    trained_on = {tuple(row) for row in rows.a.pairs[positions].tolist()}
    assert all({tuple(row) for row in x.tolist()} <= trained_on for x in seen)
    assert len(seen) == 3  # both folds, then all
    assert torch.equal(seen[-1], rows.a.pairs[positions])
    loss = module.losses["transport"]
    assert isinstance(loss, TransportLoss)
    assert len(loss.teacher_maps) == 2
    assert not list(loss.parameters())  # the teacher is no part of what is trained or saved


def test_a_part_inside_a_part_is_checked_and_built():
    loss = build(
        {"class": "transport", "teacher": {"class": "cca", "similarity": "csa"}}, "losses.x"
    )
    assert loss.teacher == CCA("csa")
    for teacher, words in (
        ({"class": "cca", "similarities": "csa"}, "losses.x.teacher.similarities"),
        ({"class": "ccas"}, "did you mean 'cca'"),
        ({"class": "cca", "smallest": -1.0}, "losses.x.teacher"),
    ):
        with pytest.raises(UserError, match=words):
            build({"class": "transport", "teacher": teacher}, "losses.x")


# ---- settings ----


def test_an_argument_reaches_the_methods_that_have_the_part(experiment):
    words = [
        "methods=[contrastive,fusemix,sotalign]",
        "mixup.alpha=0.3",
        "losses.transport.teacher.similarity=csa",
        "losses.transport.eps=0.1",
    ]
    methods = load(experiment, words).methods
    assert methods["fusemix"].mixup == {"class": "fusemix", "alpha": 0.3}
    teacher = {"class": "cca", "similarity": "csa"}
    assert methods["sotalign"].losses["transport"] == {
        "class": "transport",
        "eps": 0.1,
        "teacher": teacher,
    }
    assert methods["contrastive"].mixup is methods["sotalign"].mixup is None
    assert set(methods["contrastive"].losses) == {"pair"}
    mixed = load(experiment, ["methods=[contrastive]", "mixup=fusemix"]).methods["contrastive"]
    assert mixed.mixup == {"class": "fusemix"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["mixup.alpha=1"], "mixup: none of the methods contrastive"),
        (["losses.transport.eps=1"], "losses.transport: none of the methods contrastive"),
        (["losses.geometric.weight=5"], "losses.geometric: none of the methods contrastive"),
        (["losses.pairs.temperature=1"], "did you mean 'pair'"),
        (["batch.unpaired=5"], "batch.unpaired: none of the methods contrastive"),
        (["graph.k=9"], "graph: none of the methods contrastive"),
        (["batch.anchors=9"], "batch.anchors: none of the methods contrastive"),
        (["batch.unpaired=1"], "batch.unpaired=1 must be at least 2"),
        (["losses.pair.weight=-1"], "losses.pair.weight=-1 must be at least 0"),
    ],
)
def test_a_mistake_names_what_it_is_about(experiment, words, message):
    with pytest.raises(UserError) as caught:
        load(experiment, ["methods=[contrastive]", *words])
    assert message in str(caught.value)


def test_what_is_no_loss_is_refused_before_anything_runs(experiment):
    words = {"methods": ["contrastive"], "losses.pair": {"class": "torch.nn.Identity"}}
    with pytest.raises(UserError) as caught:
        Method.from_config(load(experiment, words).methods["contrastive"])
    assert caught.value.key == "losses.pair"


def test_pools_that_are_empty_are_refused_before_anything_runs(experiment, tmp_path):
    words = {"cache_dir": str(tmp_path), "runs_dir": str(tmp_path), "data.reserved_pairs": 92}
    with pytest.raises(UserError, match=r"data.reserved_pairs=92.*losses.structure of structure"):
        plan(load(experiment, {**words, "methods": ["structure"]}))
    assert plan(load(experiment, {**words, "methods": ["structure_pairs"]}))  # reads no pool
