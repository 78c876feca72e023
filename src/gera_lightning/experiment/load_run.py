"""Load a finished run: an experiment's default one, or that of a folder."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gera_lightning import config
from gera_lightning.aligners.aligner import Aligner
from gera_lightning.config.merging import merge, parse_overrides, typed
from gera_lightning.config.schema import DEFAULT_METHOD
from gera_lightning.data.records import for_terminal
from gera_lightning.data.store import EmbeddingStore
from gera_lightning.experiment.paired_stores import (
    joint_hash,
    modality_names,
    open_stores,
    wanted_results,
)
from gera_lightning.experiment.results import finished_records, load_sweep
from gera_lightning.utils import distributed
from gera_lightning.utils.errors import UserError


@dataclass(frozen=True)
class LoadedRun:
    """A finished run's aligner with the stores that it was fitted on.

    Attributes:
        aligner: the artefact.
        a, b: the stores.
        folder: of the run.
        device: to compute on.
    """

    aligner: Aligner
    a: EmbeddingStore
    b: EmbeddingStore
    folder: Path
    device: torch.device

    @property
    def modalities(self) -> tuple[str, str]:
        """Names of a and b, as the aligner recorded them, or else the stores' own."""
        a, b = self.aligner.about.get("modalities") or modality_names(self.a, self.b)
        return for_terminal(str(a)), for_terminal(str(b))


def load_run(
    target: str, overrides: Sequence[str] = (), *, method: str = "", budget: int | None = None
) -> LoadedRun:
    """Load the run that `target` names, with its stores.

    Args:
        target: an experiment, of which the run with the largest budget and smallest seed is taken,
            or where none is finished the aligner of all pairs that `gera align` made; or the folder
            of a run, or of an aligner.
        overrides: `key=value` words of the experiment, such as `runs_dir=...` or
            `trainer.accelerator=cpu`.
        method: of an experiment's runs; by default `coupled_ridge`, else the method with the best
            recall.
        budget: of an experiment's runs; by default the largest.

    Raises:
        UserError: no such experiment or run, or stores that hold other data than the run had.
    """
    place = aligner_folder(target)
    if place is not None:
        folder = place.parent if place.name == "aligner" else place
        aligner = Aligner.load(place)
        settings = _with_stores_of(aligner, overrides, folder)
        a, b = open_stores(settings)
    else:
        experiment = config.load(target, overrides)
        settings = experiment.common
        a, b = open_stores(settings)
        folder = Path(settings.runs_dir) / experiment.name
        if finished_records(folder) or method or budget is not None or not aligner_folder(folder):
            folder = _best(folder, method, budget, wanted_results(settings, joint_hash(a, b)))
        aligner = Aligner.load(folder / "aligner")
    if joint_hash(a, b) != aligner.about.get("data_hash"):
        raise UserError(
            f"had other data than {a.path} and {b.path} hold now",
            key=str(folder),
            remedy="name its stores by data.a=... and data.b=..., or train it again",
        )
    return LoadedRun(aligner, a, b, folder, distributed.device(settings.trainer.accelerator))


def aligner_folder(target: str | Path) -> Path | None:
    """The aligner's folder, where `target` is one or holds one."""
    if not str(target):
        return None
    places = (Path(target), Path(target) / "aligner")
    return next((place for place in places if (place / "aligner.json").is_file()), None)


def existing_aligner_folder(target: str | os.PathLike[str]) -> Path:
    """The aligner's folder, where `target` is one or holds one.

    Raises:
        UserError: neither.
    """
    place = aligner_folder(os.fspath(target))
    if place is None:
        raise UserError("holds no aligner", key=str(target), remedy="gera align makes one")
    return place


def _with_stores_of(aligner: Aligner, overrides: Sequence[str], folder: Path) -> config.Config:
    """The user's settings, with the stores that an aligner records where they name none.

    The paths of its stores are all that is taken from an aligner's folder, which may be another
    person's: nothing in it names code or settings.

    Raises:
        UserError: neither names the stores.
    """
    settings = typed(merge(parse_overrides(overrides)), "the command line")
    data, stores = settings.data, aligner.about.get("stores")
    if data.synthetic is None and isinstance(stores, Mapping):
        data.a, data.b = (getattr(data, side) or str(stores.get(side, "")) for side in "ab")
    if data.synthetic is None and not (data.a and data.b):
        raise UserError(
            "does not say which stores it was fitted on",
            key=str(folder),
            remedy="name them by data.a=... and data.b=...",
        )
    return settings


def _best(folder: Path, method: str, budget: int | None, wanted: Mapping[str, Any]) -> Path:
    """The folder of an experiment's run to load."""
    sweep = load_sweep(folder, wanted)
    name = method or (DEFAULT_METHOD if DEFAULT_METHOD in sweep.methods else sweep.methods[0])
    runs = sweep.runs[sweep.runs["method"] == name]
    if budget is not None:
        runs = runs[runs["budget"] == budget]
    if not len(runs):
        raise UserError(
            f"names no finished run of {name} in {folder}",
            key="method" if budget is None else "budget",
            value=name if budget is None else budget,
            remedy=f"there are methods {', '.join(sweep.methods)}; budgets {sweep.budgets}",
        )
    return Path(runs.sort_values(["budget", "seed"], ascending=[False, True])["folder"].iloc[0])
