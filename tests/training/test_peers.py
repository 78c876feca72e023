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
from gera_lightning.config import Config, combinations, config_hash, identity, load
from gera_lightning.data.training_rows import Modality, TrainingRows
from gera_lightning.experiment.runner import plan, run_experiment
from gera_lightning.losses.base import UnpairedLoss
from gera_lightning.losses.contrastive import CLIPLoss, SigLIPLoss
from gera_lightning.losses.pseudo_labels import CaptionLoss
from gera_lightning.losses.structure import StructureLoss
from gera_lightning.losses.transport import TransportLoss
from gera_lightning.models.maps import ResidualMLP
from gera_lightning.models.preprocessing import Preprocessing
from gera_lightning.training.build import WarmStart, build_module
from gera_lightning.training.datamodule import AlignmentDataModule
from gera_lightning.training.fit_trained import stopping_steps
from gera_lightning.training.mixup import FuseMix
from gera_lightning.training.module import AlignmentModule
from gera_lightning.training.preflight import check
from gera_lightning.training.training_set import TrainingSet
from gera_lightning.utils import distributed
from gera_lightning.utils.errors import UserError
from gera_lightning.utils.instantiate import build

METHODS = Path(__file__).parents[2] / "experiments" / "methods"
TERMS = {
    "contrastive_linear": {"pair"},
    "contrastive_siglip": {"pair"},
    "fusemix": {"pair"},
    "contrastive_mlp": {"pair"},
    "contrastive_linear_ridge": {"pair"},
    "gera_plain": {"pair", "geometric_a", "geometric_b"},
    "gera_linear": {"pair", "geometric_a", "geometric_b"},
    "gera_linear_ridge": {"pair", "geometric_a", "geometric_b"},
    "gera_mlp": {"pair", "geometric_a", "geometric_b"},
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
TWINS |= {"gera_plain": "contrastive", "gera_mlp": "contrastive_mlp"}
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
LOSSES = {"structure": StructureLoss, "captions": CaptionLoss}


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

    return TrainingRows(modality(6, 30, 0), modality(5, 8, 1), np.array(list("abcdefghab")))


def loss_of(case: Case, rows: TrainingRows) -> UnpairedLoss | None:
    if case.loss != "transport":
        return None if case.loss is None else LOSSES[case.loss](**(case.settings or {}))
    samples = FitData(rows.a.pairs, rows.b.pairs, rows.a.pool, rows.b.pool)
    return TransportLoss(CCA(), **(case.settings or {})).taught(
        *next(CCA().candidates(samples, [{"penalty": 1.0, "share": 1.0}]))
    )


def one_step(case: Case, step: int, rank: int = 0, size: int = 1) -> dict[str, Tensor]:
    """Losses and parameter gradients of a step; gradients averaged over processes, as DDP does."""
    rows = training_rows()
    loss = loss_of(case, rows)
    reads = case.unpaired if loss is not None and loss.reads_unpaired else None
    data = AlignmentDataModule(rows, pairs_per_step=case.pairs, k=None, unpaired_per_step=reads)
    data.setup("fit")
    heads = [
        ResidualMLP(d, 3, hidden=4, generator=torch.Generator().manual_seed(d)) for d in (6, 5)
    ]
    for head in heads:
        torch.nn.init.normal_(head.outer, generator=torch.Generator().manual_seed(9))
    module = AlignmentModule(
        *heads,
        CLIPLoss(0.2) if case.pair_loss == "clip" else SigLIPLoss(),
        unpaired_loss=loss,
        unpaired_weight=3.0,
        mixup=FuseMix() if case.mixup else None,
        optimizer=torch.optim.SGD,
        schedule_steps=1,
    ).double()
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
    "head": {"class": "gera_lightning.models.maps.ResidualMLP", "hidden": 8},
    "dim": 4,
    "batch": {"pairs": 7, "unpaired": 9},
    "graph": {"k": 3},
    "tuning": {"folds": 2, "used_folds": 1, "max_trials": 2},
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
    loss = preset.get("unpaired_loss")
    if loss and "warmup" in loss:
        preset["unpaired_loss"] = {**loss, "warmup": 2}
    return {**preset, "trainer": {**preset.get("trainer", {}), "max_steps": 3, "min_epochs": 0}}


def weights(runs: Path, method: str) -> dict[str, Tensor]:
    [folder] = (runs / method).iterdir()
    return safetensors.torch.load_file(folder / "aligner" / "maps.safetensors")


# ---- presets ----


@pytest.mark.parametrize("method", TERMS)
def test_each_preset_trains_and_logs_its_terms(runs, method):
    [folder] = (runs / method).iterdir()
    row = json.loads((folder / "metrics.json").read_text())
    assert row["steps"] == 3
    preset = load_preset(method)
    [(key, values)] = preset["tuning"]["grid"].items()
    first, second = (
        float(value) for value in values
    )  # the package's YAML reads 1e-3 as a number, this one as a word
    assert (row["settings"], set(row["chosen"])) == (2, {"steps", key})
    assert row["chosen"][key] in (first, second)
    events = EventAccumulator(str(folder / "tuning" / "fold0-choice0")).Reload()
    names = {
        tag.removeprefix("loss/") for tag in events.Tags()["scalars"] if tag.startswith("loss/")
    }
    assert names == TERMS[method] | {"total"}
    values = {name: [event.value for event in events.Scalars(f"loss/{name}")] for name in names}
    weight = first if key.endswith("_weight") else preset.get("unpaired_weight", 1)
    for number, total in enumerate(values["total"]):
        terms = [values[name][number] * (1 if name == "pair" else weight) for name in TERMS[method]]
        assert total == pytest.approx(sum(terms), rel=1e-5)
    assert len(values["total"]) == 3


def load_preset(method: str) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load((METHODS / f"{method}.yaml").read_text())
    return values


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
    [folder] = (runs / method).iterdir()
    row = json.loads((folder / "metrics.json").read_text())
    assert (row["steps"], row["settings"], row["converged"]) == (0, 2, None)
    assert set(row["chosen"]) == {"penalty", tuned}
    aligner = Aligner.load(folder / "aligner")
    scores = aligner.score(np.eye(6, dtype=np.float32), np.eye(6, 5, dtype=np.float32))
    assert scores.shape == (6, 6)
    assert scores.isfinite().all()
    assert float(scores.std()) > 1e-3


@pytest.mark.parametrize("method", sorted({*TERMS, *TWINS.values(), *CLOSED}))
def test_a_preset_says_which_values_are_ours_and_tunes_as_many_as_every_other(experiment, method):
    head = " ".join(
        line.removeprefix("# ")
        for line in (METHODS / f"{method}.yaml").read_text().splitlines()
        if line.startswith("#")
    )
    assert any(
        words in head for words in ("Ours:", "ours.", "All values ours", "Our values", "which ours")
    )
    config = load("speech_text", {"methods": [method]}, folder=METHODS.parent).methods[method]
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
    config = Config(
        geometric_loss=None, unpaired_loss={"class": TRANSPORT, "teacher": {"class": CCA_CLASS}}
    )
    config.tuning.folds, config.trainer.accelerator = 2, "cpu"
    positions = np.array([1, 2, 4, 5, 6, 7])
    items = sorted({*rows.items, *rows.a.pool_items, *rows.b.pool_items})
    families = pd.Series(items, index=items)
    data = AlignmentDataModule(rows, positions=positions, k=None, unpaired_per_step=9)
    data.setup("fit")
    task = TrainingSet(config, rows, families, 0, tmp_path, lambda *_: None)
    module = build_module(task, data, WarmStart(task, positions))
    trained_on = {tuple(row) for row in rows.a.pairs[positions].tolist()}
    assert all({tuple(row) for row in x.tolist()} <= trained_on for x in seen)
    assert len(seen) == 3  # both folds, then all
    assert torch.equal(seen[-1], rows.a.pairs[positions])
    assert isinstance(module.unpaired_loss, TransportLoss)
    assert module.unpaired_loss.maps is not None
    kept = module.configure_optimizers()["optimizer"].param_groups
    assert not {id(p) for p in module.unpaired_loss.parameters()} & {
        id(p) for group in kept for p in group["params"]
    }


def test_a_part_inside_a_part_is_checked_and_built():
    loss = build(
        {"class": TRANSPORT, "teacher": {"class": CCA_CLASS, "similarity": "csa"}}, "unpaired_loss"
    )
    assert loss.teacher == CCA("csa")
    for teacher, words in (
        (
            {"class": CCA_CLASS, "similarities": "csa"},
            ["unpaired_loss.teacher.similarities", "did you mean 'similarity'"],
        ),
        ({"class": CCA + "s"}, ["unpaired_loss.teacher.class", "did you mean 'CCA'"]),
        ({"class": CCA, "smallest": -1.0}, ["unpaired_loss.teacher", "smallest=-1.0"]),
        ({"similarity": "csa"}, ["unpaired_loss", "teacher={", "no closed form", "teacher.class="]),
    ):
        with pytest.raises(UserError) as caught:
            build({"class": TRANSPORT, "teacher": teacher}, "unpaired_loss")
        assert all(word in str(caught.value) for word in words), caught.value


# ---- settings ----


def test_runs_without_a_peers_section_are_the_runs_they_were(experiment):
    plain = load(experiment, ["methods=[contrastive]"]).methods["contrastive"]
    assert not {"mixup", "unpaired_loss", "unpaired_weight"} & set(identity(plain))
    assert "unpaired" not in identity(plain)["batch"]
    for changes in ({"unpaired_weight": 5.0}, {"batch.unpaired": 99}):
        with_peer = load(experiment, {"methods": ["contrastive", "sotalign"], **changes}).methods
        assert config_hash(with_peer["contrastive"]) == config_hash(plain)
        assert config_hash(with_peer["sotalign"]) != config_hash(
            load(experiment).methods["sotalign"]
        )


def test_an_argument_reaches_the_methods_that_have_the_part(experiment):
    words = [
        "methods=[contrastive,fusemix,sotalign]",
        "mixup.alpha=0.3",
        "unpaired_loss.teacher.score=csa",
        "unpaired_loss.eps=0.1",
    ]
    methods = load(experiment, words).methods
    assert methods["fusemix"].mixup == {
        "class": "gera_lightning.training.mixup.FuseMix",
        "alpha": 0.3,
    }
    assert methods["sotalign"].unpaired_loss == {
        "class": TRANSPORT,
        "eps": 0.1,
        "teacher": {"class": CCA_CLASS, "similarity": "csa"},
    }
    assert (
        methods["contrastive"].mixup
        is methods["contrastive"].unpaired_loss
        is methods["sotalign"].mixup
        is None
    )
    mixed = load(
        experiment, ["methods=[contrastive]", "mixup.class=gera_lightning.training.mixup.FuseMix"]
    ).methods["contrastive"]
    assert mixed.mixup == {"class": "gera_lightning.training.mixup.FuseMix"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["mixup.alpha=1"], "mixup: none of the methods contrastive has this section"),
        (
            ["unpaired_loss.eps=1"],
            "unpaired_loss: none of the methods contrastive has this section",
        ),
        (
            ["unpaired_weight=2"],
            "unpaired_weight: none of the methods contrastive has a section unpaired_loss",
        ),
        (
            ["batch.unpaired=5"],
            "batch.unpaired: none of the methods contrastive has a section unpaired_loss",
        ),
        (
            ["geometric_weight=5"],
            "geometric_weight: none of the methods contrastive has a section geometric_loss",
        ),
        (["graph.k=9"], "graph: none of the methods contrastive has a section geometric_loss"),
        (
            ["batch.anchors=9"],
            "batch.anchors: none of the methods contrastive has a section geometric_loss",
        ),
        (["batch.unpaired=1"], "batch.unpaired=1 must be at least 2"),
        (["unpaired_weight=-1"], "unpaired_weight=-1.0 must be at least 0"),
    ],
)
def test_a_mistake_names_key_value_and_remedy(experiment, words, message):
    with pytest.raises(UserError) as caught:
        load(experiment, ["methods=[contrastive]", *words])
    assert message in str(caught.value)


def test_a_loss_of_another_kind_is_refused_before_anything_runs(experiment):
    settings = load(
        experiment,
        {
            "methods": ["sclip"],
            "unpaired_loss": {"class": "gera_lightning.losses.contrastive.CLIPLoss"},
        },
    )
    with pytest.raises(
        UserError, match=r"unpaired_loss.class='.*CLIPLoss' is no loss of a step.*UnpairedLoss"
    ):
        check(settings.methods["sclip"])


def test_pools_that_are_empty_are_refused_before_anything_runs(experiment, tmp_path):
    words = {"cache_dir": str(tmp_path), "runs_dir": str(tmp_path), "data.reserved_pairs": 92}
    with pytest.raises(
        UserError, match=r"data.reserved_pairs=92.*unpaired_loss of structure.*lower it"
    ):
        plan(load(experiment, {**words, "methods": ["structure"]}))
    assert plan(load(experiment, {**words, "methods": ["structure_pairs"]}))  # reads no pool
