"""Align two frozen embedding spaces from few pairs and many unpaired samples.

The rooms of the house, each importing only from those below it:

- `cli`, `commands`  the command `gera`, one file per verb
- `report`           tables, figures and the page of an experiment
- `experiment`       plan, runs, results: every method at every budget and seed
- `training`         a config becomes objects (`method`); closed forms and trained maps are fitted;
                     the LightningModule and the LightningDataModule
- `evaluation`       retrieval, neighbourhoods, similarity of spaces, statistics
- `embedding`        raw items to embedding stores
- `aligners`         closed forms, and the `Aligner` that is saved, loaded and searched with
- `data`             embedding stores, splits, budgets and pools
- `losses`           one published loss per file; `filters` of frozen features
- `encoders`         frozen networks; `config`: settings and presets; `geometry`: kernels,
                     neighbours, diffusion operators; `models`: maps and the shared space
- `utils`            errors, files, processes, parts from settings

The names below are imported when they are used: `import gera_lightning` alone imports no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    __version__: str
    from gera_lightning.aligners import (
        ASIF,
        CCA,
        Aligner,
        CoupledRidge,
        KernelRidge,
        ManifoldRidge,
        Procrustes,
        Ridge,
        SelfTraining,
    )
    from gera_lightning.commands.align import align
    from gera_lightning.commands.train import train
    from gera_lightning.data.store import EmbeddingStore, write_store
    from gera_lightning.geometry.diffusion import DiffusionOperator
    from gera_lightning.geometry.neighbors import knn_graph
    from gera_lightning.losses.contrastive import CLIPLoss, SigLIPLoss
    from gera_lightning.losses.geometric import GeometricLoss
    from gera_lightning.training.datamodule import AlignmentDataModule
    from gera_lightning.training.module import AlignmentModule
    from gera_lightning.utils.errors import UserError

_HOMES = {
    "commands.align": ("align",),
    "commands.train": ("train",),
    "aligners.aligner": ("Aligner",),
    "aligners.asif": ("ASIF",),
    "aligners.cca": ("CCA",),
    "aligners.coupled_ridge": ("CoupledRidge",),
    "aligners.kernel_ridge": ("KernelRidge",),
    "aligners.manifold_ridge": ("ManifoldRidge",),
    "aligners.procrustes": ("Procrustes",),
    "aligners.ridge": ("Ridge",),
    "aligners.self_training": ("SelfTraining",),
    "data.store": ("EmbeddingStore", "write_store"),
    "geometry.diffusion": ("DiffusionOperator",),
    "geometry.neighbors": ("knn_graph",),
    "losses.contrastive": ("CLIPLoss", "SigLIPLoss"),
    "losses.geometric": ("GeometricLoss",),
    "training.datamodule": ("AlignmentDataModule",),
    "training.module": ("AlignmentModule",),
    "utils.errors": ("UserError",),
}
"""Module to the public names that it defines."""
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "ASIF",
    "CCA",
    "Aligner",
    "AlignmentDataModule",
    "AlignmentModule",
    "CLIPLoss",
    "CoupledRidge",
    "DiffusionOperator",
    "EmbeddingStore",
    "GeometricLoss",
    "KernelRidge",
    "ManifoldRidge",
    "Procrustes",
    "Ridge",
    "SelfTraining",
    "SigLIPLoss",
    "UserError",
    "__version__",
    "align",
    "knn_graph",
    "train",
    "write_store",
]


def __getattr__(name: str) -> Any:
    """A public name, imported when it is first used (PEP 562)."""
    if name == "__version__":
        from gera_lightning.utils.version import package_version

        return package_version()
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
