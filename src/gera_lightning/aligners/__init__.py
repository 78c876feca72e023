"""Closed-form aligners, and the `Aligner` that every method ends as: saved, loaded, encoded, scored
and searched with.

A closed form is a small frozen dataclass, see `base.ClosedForm`: `candidates(samples, settings)`
fits all its settings at once and yields one pair of maps each. Importing this package registers
every map's kind.
"""

from gera_lightning.aligners import asif, cca, coupled_ridge, kernel_ridge, procrustes, ridge
from gera_lightning.aligners.aligner import Aligner
from gera_lightning.filters import diffusion, local_centering

__all__ = [
    "Aligner",
    "asif",
    "cca",
    "coupled_ridge",
    "diffusion",
    "kernel_ridge",
    "local_centering",
    "procrustes",
    "ridge",
]
