"""Closed-form aligners, and the `Aligner` that every method ends as.

A closed form is a small frozen dataclass. On arrays, NumPy's or torch's, it takes three lines:

>>> import torch
>>> x_a = torch.randn(100, 8, generator=torch.Generator().manual_seed(0))
>>> x_b = x_a[:, :6] + x_a[:, 2:]
>>> form = Ridge().fit(x_a[:80], x_b[:80])
>>> scores, rows = form.search(x_a[80:], x_b[80:], k=3)

Tuning uses the two methods of `base.ClosedForm`; `estimator.Estimator` adds `fit` and what follows
it. Importing this package registers every kind of map.
"""

from gera_lightning import filters  # noqa: F401  its maps are registered too
from gera_lightning.aligners.aligner import Aligner
from gera_lightning.aligners.alternatives import Alternatives
from gera_lightning.aligners.asif import ASIF
from gera_lightning.aligners.base import ClosedForm, FitData
from gera_lightning.aligners.cca import CCA
from gera_lightning.aligners.coupled_ridge import CoupledRidge
from gera_lightning.aligners.estimator import Estimator
from gera_lightning.aligners.kernel_ridge import KernelRidge
from gera_lightning.aligners.manifold_ridge import ManifoldRidge
from gera_lightning.aligners.procrustes import Procrustes
from gera_lightning.aligners.ridge import Ridge
from gera_lightning.aligners.self_training import SelfTraining

__all__ = [
    "ASIF",
    "CCA",
    "Aligner",
    "Alternatives",
    "ClosedForm",
    "CoupledRidge",
    "Estimator",
    "FitData",
    "KernelRidge",
    "ManifoldRidge",
    "Procrustes",
    "Ridge",
    "SelfTraining",
]
