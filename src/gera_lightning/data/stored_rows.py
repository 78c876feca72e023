"""Rows of a store that stay on disk, and whether a run's rows should.

Legend: `N` rows, `D` width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gera_lightning.data.store import EmbeddingStore
from gera_lightning.models.preprocessing import Preprocessing

FREE_SHARE = 0.25
"""Share of the free memory that pools may take as float32 under `data.residency: auto`."""


@dataclass(frozen=True)
class StoredRows:
    """Rows of a store that are read whenever they are asked for, and preprocessed then.

    They are indexed as a tensor `[N, D]` is: `rows[:9]`, `rows[mask]`, `rows[numbers]`.

    Attributes:
        store: what they are read from.
        numbers: their numbers in the store `[N]`.
        preprocess: what is done to them; None leaves them as they are.
    """

    store: EmbeddingStore
    numbers: np.ndarray
    preprocess: Preprocessing | None = None

    @property
    def shape(self) -> Sequence[int]:
        """`(N, D)`."""
        return len(self.numbers), self.store.dim

    @property
    def device(self) -> torch.device:
        """The CPU."""
        return torch.device("cpu")

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: Any, /) -> Tensor:
        numbers = self.numbers[np.asarray(index) if isinstance(index, Tensor) else index]
        x = torch.from_numpy(self.store.read(numbers.ravel()))
        x = x if self.preprocess is None else self.preprocess.overwrite(x)
        return x.view(*numbers.shape, self.store.dim)

    def subset(self, mask: np.ndarray) -> StoredRows:
        """The rows that `mask` `[N]` marks, on disk too."""
        return replace(self, numbers=self.numbers[mask])


def stay_on_disk(residency: str, cells: int) -> bool:
    """Whether pools stay on disk.

    Args:
        residency: `data.residency`.
        cells: numbers in both pools, `N_a D_a + N_b D_b`.
    """
    return residency == "disk" or (residency == "auto" and 4 * cells > FREE_SHARE * free_memory())


def free_memory() -> float:
    """Bytes that processes can still take; without end where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8")
        return int(lines.split("MemAvailable:")[1].split()[0]) * 1024
    except (OSError, IndexError):
        return float("inf")
