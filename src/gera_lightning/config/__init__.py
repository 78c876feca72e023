"""Settings: a tree of typed dataclasses (`settings`), loaded from an experiment's file, method
presets and overrides (`experiment`).
"""

from gera_lightning.config.grid import combinations
from gera_lightning.config.identity import RESULTS_VERSION, config_hash, identity
from gera_lightning.config.loading import Experiment, load
from gera_lightning.config.schema import (
    BatchConfig,
    Config,
    DataConfig,
    EvaluationConfig,
    GraphConfig,
    SweepConfig,
    TrainerConfig,
    TuningConfig,
)

__all__ = [
    "RESULTS_VERSION",
    "BatchConfig",
    "Config",
    "DataConfig",
    "EvaluationConfig",
    "Experiment",
    "GraphConfig",
    "SweepConfig",
    "TrainerConfig",
    "TuningConfig",
    "combinations",
    "config_hash",
    "identity",
    "load",
]
