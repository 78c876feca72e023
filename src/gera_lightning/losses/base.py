"""What a loss of a whole step is given: the joined batch's pairs and unpaired rows, before and
after the map.

Legend: `B` pairs, `n_a`, `n_b` unpaired rows of a step, over all processes; `D_a`, `D_b` frozen
    widths, `D` shared width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class Projected:
    """Rows of one modality before and after its map.

    Attributes:
        x: frozen rows, preprocessed, `[n, D_frozen]`; pairs that a mixup mixed are no longer unit.
        z: their images, unit rows `[n, D]`; gradients flow through them.
    """

    x: Tensor
    z: Tensor


@dataclass(frozen=True)
class StepBatch:
    """The joined batch of a step, the same on every process.

    Attributes:
        pairs_a, pairs_b: paired rows, B each, row i of one with row i of the other.
        unpaired_a, unpaired_b: unpaired rows, n_a and n_b; None where the loss asks for none.
        scale: the pair loss's inverse temperature, learned with it; None where it has none.
        step: number of the step, from 0.
    """

    pairs_a: Projected
    pairs_b: Projected
    unpaired_a: Projected | None
    unpaired_b: Projected | None
    scale: Tensor | None
    step: int

    @property
    def unpaired(self) -> tuple[Projected, Projected]:
        """Both modalities' unpaired rows, for a loss that asked for them."""
        assert self.unpaired_a is not None
        assert self.unpaired_b is not None
        return self.unpaired_a, self.unpaired_b


class UnpairedLoss(nn.Module, ABC):
    """A loss of a step beside the pair loss; a subclass computes it in `forward`.

    Attributes:
        term: what it is logged as, `loss/<term>`.
        warmup: steps until it has its full weight.
        reads_unpaired: whether a step needs unpaired rows for it.
        teacher: a closed form (`aligners.base.ClosedForm`) that must be fitted on the pairs first,
            see `taught`; None where there is none.
    """

    term: str = "unpaired"
    warmup: int = 0
    reads_unpaired: bool = True
    teacher: Any = None

    def taught(self, map_a: nn.Module, map_b: nn.Module) -> UnpairedLoss:
        """This loss with its teacher's maps, fitted on exactly the pairs that are trained on."""
        raise NotImplementedError(f"{type(self).__name__} has no teacher")

    @abstractmethod
    def forward(self, step: StepBatch) -> Tensor:
        """The loss, a scalar, of the joined batch."""
