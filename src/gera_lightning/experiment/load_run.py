"""The finished run that a name stands for: an experiment's best one, or that of a folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gera_lightning import config
from gera_lightning.aligners.aligner import Aligner
from gera_lightning.config.merging import merge, parse_overrides, read_yaml, typed
from gera_lightning.data.store import EmbeddingStore
from gera_lightning.experiment.paired_stores import joint_hash, open_stores, wanted_results
from gera_lightning.experiment.results import load_sweep
from gera_lightning.utils import distributed
from gera_lightning.utils.errors import UserError

PREFERRED = "gera"


@dataclass(frozen=True)
class LoadedRun:
    """A finished run's aligner, the stores it is of, its folder, and the device to compute on."""

    aligner: Aligner
    a: EmbeddingStore
    b: EmbeddingStore
    folder: Path
    device: torch.device


def load_run(
    target: str, overrides: Sequence[str] = (), *, method: str = "", budget: int | None = None
) -> LoadedRun:
    """What `target` stands for.

    Args:
        target: an experiment, whose run of the largest budget and least seed is taken; or a folder
            with an `aligner` in it, such as a run's, or that folder.
        overrides: `key=value` words of the experiment, such as `runs_dir=...` or
            `trainer.accelerator=cpu`.
        method, budget: of an experiment's runs; by default `gera`, or where it was not run the
            method of the best recall, and the largest.

    Raises:
        UserError: no such experiment or run, or stores that hold other data than the run had.
    """
    found = next(
        (
            path
            for path in (Path(target), Path(target) / "aligner")
            if target and (path / "aligner.json").is_file()
        ),
        None,
    )
    if found is not None:
        folder = found.parent if found.name == "aligner" else found
        aligner = Aligner.load(found)
        settings = _recorded(folder, aligner, overrides)
        a, b = open_stores(settings)
    else:
        experiment = config.load(target, overrides)
        settings = experiment.common
        a, b = open_stores(settings)
        folder = _best(
            Path(settings.runs_dir) / experiment.name,
            method,
            budget,
            wanted_results(settings, joint_hash(a, b)),
        )
        aligner = Aligner.load(folder / "aligner")
    if joint_hash(a, b) != aligner.about.get("data_hash"):
        raise UserError(
            f"{folder}: {a.path} and {b.path} hold other data than this run had: name its stores by"
            " data.a=... and data.b=..., or train it again"
        )
    return LoadedRun(aligner, a, b, folder, distributed.device(settings.trainer.accelerator))


def _recorded(folder: Path, aligner: Aligner, overrides: Sequence[str]) -> config.Config:
    """Settings with the data that a run was of, as its folder says; its experiment's, where the
    folder does not name the stores.
    """
    stores = aligner.about.get("stores")
    if stores is None:
        return config.load(str(aligner.about.get("experiment", "")), overrides).common
    settings = folder / "config.yaml"
    data = {**(read_yaml(settings).get("data", {}) if settings.is_file() else {}), **stores}
    return typed(merge([{"data": data}, *parse_overrides(overrides)]), str(folder))


def _best(folder: Path, method: str, budget: int | None, wanted: Mapping[str, Any]) -> Path:
    sweep = load_sweep(folder, wanted)
    name = method or (PREFERRED if PREFERRED in sweep.methods else sweep.methods[0])
    runs = sweep.runs[sweep.runs["method"] == name]
    if budget is not None:
        runs = runs[runs["budget"] == budget]
    if not len(runs):
        asked = f"method={name}" + (f" budget={budget}" if budget is not None else "")
        raise UserError(
            f"{asked}: {folder} holds no such run (methods {', '.join(sweep.methods)}; budgets"
            f" {sweep.budgets})"
        )
    return Path(runs.sort_values(["budget", "seed"], ascending=[False, True])["folder"].iloc[0])
