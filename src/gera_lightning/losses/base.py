"""The one protocol of losses: what a loss of a training step is given, and what it says it needs.

Legend: `B` pairs, `n_a`, `n_b` unpaired rows of a step, over all processes; `A` anchors, `M` points
of a patch, `U` distinct points of all patches; `D_a`, `D_b` frozen widths, `D` shared width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

UNPAIRED = "unpaired"
"""Unpaired rows without neighbours."""
PATCHES = "patches"
"""Unpaired rows, each with its nearest neighbours."""


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
class ProjectedPatches:
    """This process's share of a step's patches, before and after the map.

    Attributes:
        points: each distinct point of all patches once, `[U, D_frozen]` and `[U, D]`.
        members: places in `points` of each anchor's patch, the anchor first, `[A, M]`.
        count: anchors of the joined batch.
    """

    points: Projected
    members: Tensor
    count: int


@dataclass(frozen=True)
class StepBatch:
    """The batch of a step. Pairs and unpaired rows are those of the joined batch, the same on every
    process; patches are this process's share.

    Attributes:
        pairs_a, pairs_b: paired rows, B each, row i of one with row i of the other.
        positives: which rows of a and b belong together, bool `[B, B]`.
        unpaired_a, unpaired_b: unpaired rows, n_a and n_b; None where no loss asks for them.
        patches_a, patches_b: patches of unpaired rows; None where no loss asks for them.
        scale: inverse temperature of the first loss that has one, learned with it; None where none
            has.
        step: number of the step, from 0.
    """

    pairs_a: Projected
    pairs_b: Projected
    positives: Tensor
    unpaired_a: Projected | None = None
    unpaired_b: Projected | None = None
    patches_a: ProjectedPatches | None = None
    patches_b: ProjectedPatches | None = None
    scale: Tensor | None = None
    step: int = 0

    @property
    def unpaired(self) -> tuple[Projected, Projected]:
        """Both modalities' unpaired rows, for a loss that asked for them."""
        assert self.unpaired_a is not None
        assert self.unpaired_b is not None
        return self.unpaired_a, self.unpaired_b

    @property
    def patches(self) -> dict[str, ProjectedPatches]:
        """Both modalities' patches, for a loss that asked for them."""
        assert self.patches_a is not None
        assert self.patches_b is not None
        return {"a": self.patches_a, "b": self.patches_b}


@dataclass(frozen=True)
class LossSetup:
    """What a loss may look at once, before a training.

    Attributes:
        patches: some frozen patches `[A, M, D_frozen]` of each modality and the median squared edge
            length of its neighbour graph; empty where no loss asks for patches.
        fit_closed_form: fits a closed form on exactly the pairs that are trained on; returns the
            maps of both modalities.
    """

    patches: Mapping[str, tuple[Tensor, float]] = field(default_factory=dict)
    fit_closed_form: Callable[[Any], tuple[nn.Module, nn.Module]] | None = None


class Loss(nn.Module, ABC):
    """A loss of a training step. A method has several, each with a weight.

    Your own loss is a subclass with `on_step`; YAML names it by its import path::

        class Uniformity(Loss):
            def on_step(self, batch):
                return batch.pairs_a.z.mean(0).square().sum()

        losses:
          pair: clip
          uniformity: {class: my_package.Uniformity, weight: 0.1}

    Attributes:
        requires: what a step must hold beside the pairs: any of `UNPAIRED` and `PATCHES`.
        warmup: steps until the loss has its full weight.
        teacher: a closed form that is fitted on the pairs before training; None where there is
            none.
    """

    requires: tuple[str, ...] = ()
    warmup: int = 0
    teacher: Any = None

    def prepare(self, setup: LossSetup) -> None:
        """Look at the data once before training; most losses have no need to."""

    @abstractmethod
    def on_step(self, batch: StepBatch) -> Tensor:
        """The loss of a step, a scalar: that of the joined batch, on every process."""


def in_full_precision(*tensors: Tensor) -> list[Tensor]:
    """Tensors in float32 at least: losses that subtract near numbers need it under autocast."""
    return [x.to(torch.promote_types(x.dtype, torch.float32)) for x in tensors]
