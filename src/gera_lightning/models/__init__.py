"""Maps from a frozen space to the shared one, their preprocessing, and the score."""

from gera_lightning.models.maps import (
    Concat,
    Identity,
    Linear,
    Normalize,
    ResidualMLP,
    Sequential,
    normalized,
    register_map,
)
from gera_lightning.models.preprocessing import Preprocessing
from gera_lightning.models.shared_space import CSLS, SharedSpace

__all__ = [
    "CSLS",
    "Concat",
    "Identity",
    "Linear",
    "Normalize",
    "Preprocessing",
    "ResidualMLP",
    "Sequential",
    "SharedSpace",
    "normalized",
    "register_map",
]
