"""Filters of frozen features, fitted on a modality's unpaired rows."""

from gera_lightning.filters.base import Filter, fit_filters
from gera_lightning.filters.beside import Beside
from gera_lightning.filters.diffusion import GraphDiffusion
from gera_lightning.filters.local_centering import LocalCentering

__all__ = ["Beside", "Filter", "GraphDiffusion", "LocalCentering", "fit_filters"]
