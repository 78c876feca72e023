"""A stream of steps on rows that are given, without stores."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from gera_lightning.config.merging import typed
from gera_lightning.data.training_rows import TrainingRows
from gera_lightning.training.datamodule import AlignmentDataModule
from gera_lightning.training.method import Method
from gera_lightning.training.training_set import TrainingSet
from gera_lightning.utils.progress import no_progress


@pytest.fixture
def stream_of(tmp_path: Path) -> Callable[..., AlignmentDataModule]:
    """`stream_of(rows, pairs=5, anchors=8, k=3)`: with a geometric loss where there is a `k`, and
    with one of unpaired rows where `unpaired` says how many.
    """

    def make(
        rows: TrainingRows,
        *,
        pairs: int = 5,
        anchors: int = 8,
        region: int = 1,
        k: int | None = 3,
        unpaired: int | None = None,
        paired_anchors: bool = False,
        positions: np.ndarray | None = None,
        seed: int = 0,
        cache_dir: Path = tmp_path / "cache",
    ) -> AlignmentDataModule:
        losses: dict[str, Any] = {"pair": "clip"}
        losses |= {"geometric": "geometric"} if k is not None else {}
        losses |= {"structure": "structure"} if unpaired is not None else {}
        batch = {"pairs": pairs, "anchors": anchors, "region": region}
        batch["paired_anchors"] = paired_anchors
        batch |= {} if unpaired is None else {"unpaired": unpaired}
        settings = {"losses": losses, "batch": batch, "graph": {"k": k or 3}}
        config = typed({**settings, "cache_dir": str(cache_dir)}, "a test")
        training_set = TrainingSet(
            Method.from_config(config), rows, pd.Series(dtype=object), seed, tmp_path, no_progress
        )
        chosen = np.arange(len(rows.items)) if positions is None else positions
        return AlignmentDataModule.of_training_set(training_set, chosen, 12)

    return make
