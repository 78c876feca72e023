"""What trainings on some pairs start from and learn from, fitted in closed form."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from gera_lightning.aligners.base import ClosedForm, Maps
from gera_lightning.models.maps import Identity, Linear
from gera_lightning.training.cross_validation import cross_validated
from gera_lightning.training.training_set import TrainingSet, on_accelerator
from gera_lightning.utils.errors import UserError


@dataclass(frozen=True)
class WarmStart:
    """The closed forms that trainings on some pairs start from (`init`) and learn from (teachers).

    Each is fitted once, however many values of `tuning.grid` are trained from it.

    Attributes:
        training_set, positions: what they are fitted on.
    """

    training_set: TrainingSet
    positions: np.ndarray
    _maps: dict[str, Maps] = field(default_factory=dict, repr=False)

    def linear(self) -> tuple[dict[str, Tensor | None], int]:
        """Start of both maps' linear parts, `[D_a, D]` and `[D_b, D]`, and the shared width D.

        None and `dim` without an `init`. A start is scaled to images of unit mean square norm, so
        that a penalty's shrinkage does not weigh against the residual.
        """
        form, config = self.training_set.method.init, self.training_set.config
        if form is None:
            return {"a": None, "b": None}, config.dim
        starts: dict[str, Tensor | None] = {}
        for side, mapping in zip("ab", self.fit_closed_form(form), strict=True):
            weight = linear_weight(mapping)
            images = getattr(self.training_set.rows, side).pairs[self.positions] @ weight
            norm = images.square().sum(1).mean().sqrt()
            starts[side] = weight / norm.clamp(min=1e-6)
        return starts, weight.shape[1]

    def fit_closed_form(self, form: ClosedForm) -> Maps:
        """A closed form's maps, its setting chosen on folds of the pairs."""
        if repr(form) not in self._maps:
            count = self.training_set.config.tuning.max_trials
            map_a, map_b = on_accelerator(
                self.training_set,
                lambda seen: cross_validated(seen, form, self.positions, count)[0],
            )
            self._maps[repr(form)] = map_a.cpu(), map_b.cpu()
        return self._maps[repr(form)]


def linear_weight(mapping: nn.Module) -> Tensor:
    """The matrix of a linear map.

    Raises:
        UserError: a map that is not linear.
    """
    if isinstance(mapping, Linear):
        return mapping.weight.detach()
    if isinstance(mapping, Identity):
        return torch.eye(mapping.dim)
    raise UserError(
        "init: maps start from a linear closed form in one space, such as init.direction=a_to_b"
    )
