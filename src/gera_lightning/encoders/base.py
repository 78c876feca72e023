"""What every frozen encoder offers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np


class Encoder(Protocol):
    """A frozen encoder of one modality."""

    name: str
    dim: int

    def describe(self) -> dict[str, Any]:
        """Name, revision, width, pooling and preprocessing: what a store's manifest records."""
        ...

    def encode(self, items: Sequence[Any]) -> np.ndarray:
        """Rows `[len(items), dim]`, float32, in the order of `items`."""
        ...
