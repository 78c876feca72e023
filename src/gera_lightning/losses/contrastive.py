"""Contrastive losses on pairs: CLIP and SigLIP, with several positives per row.

Legend: `B` pairs of a batch, `D` shared width. Rows of the same item are positives of each other,
never negatives.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from gera_lightning.losses.base import Loss, StepBatch
from gera_lightning.utils.errors import UserError
from gera_lightning.utils.instantiate import register


def positives_of(item_a: Tensor, item_b: Tensor) -> Tensor:
    """Which rows belong together: `[B_a], [B_b] -> bool [B_a, B_b]`."""
    return item_a.unsqueeze(1) == item_b.unsqueeze(0)


def clip_loss(logits: Tensor, positives: Tensor) -> Tensor:
    """Symmetric InfoNCE: mean of both directions' cross-entropy against the uniform distribution
    over a row's positives.

    `-1/2 [ mean_i 1/|P_i| sum_{j in P_i} log softmax_j(s_ij) + the same over columns ]`; with one
    positive per row it is the loss of CLIP.

    Args:
        logits: scaled similarities `[B, B]`.
        positives: bool `[B, B]`, at least one in every row and column.

    Source:
        Radford et al., CLIP, arXiv 2103.00020; several positives as in Khosla et al., SupCon
        (L_out), arXiv 2004.11362.
    """
    target = positives.to(logits.dtype)
    rows = (target * logits.log_softmax(1)).sum(1) / target.sum(1)
    cols = (target * logits.log_softmax(0)).sum(0) / target.sum(0)
    return -(rows.mean() + cols.mean()) / 2


def siglip_loss(logits: Tensor, positives: Tensor) -> Tensor:
    """Sigmoid loss: `-1/B sum_ij log sigmoid(y_ij s_ij)`, `y = +1` on positives, `-1` elsewhere.

    Args:
        logits: scaled and biased similarities `[B, B]`.
        positives: bool `[B, B]`.

    Source:
        Zhai et al., SigLIP, arXiv 2303.15343.
    """
    sign = 2 * positives.to(logits.dtype) - 1
    return -nn.functional.logsigmoid(sign * logits).sum() / len(logits)


class ContrastiveLoss(Loss):
    """A loss of the pairs' scaled cosines.

    Args:
        scale: inverse temperature at the start.
        learned: False keeps it fixed.
        max_scale: the scale is clamped here.
    """

    def __init__(self, scale: float, learned: bool, max_scale: float) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)), requires_grad=learned)
        self.max_scale = max_scale

    @property
    def scale(self) -> Tensor:
        """Current inverse temperature."""
        return self.log_scale.exp().clamp(max=self.max_scale)

    def on_step(self, batch: StepBatch) -> Tensor:
        """The loss of a step's pairs."""
        loss: Tensor = self(batch.pairs_a.z, batch.pairs_b.z, batch.positives)
        return loss


def _diagonal(z: Tensor, positives: Tensor | None) -> Tensor:
    """The given positives; by default row i belongs to row i alone."""
    if positives is not None:
        return positives
    return torch.eye(len(z), dtype=torch.bool, device=z.device)


@register("clip")
class CLIPLoss(ContrastiveLoss):
    """`clip_loss` with a learned log-temperature.

    Args:
        temperature: start of the temperature; the scale is its inverse.
        learned: False keeps it fixed.
        max_scale: the scale is clamped here (100, as in CLIP).

    >>> z = torch.eye(4)
    >>> round(CLIPLoss(temperature=1.0)(z, z).item(), 4)  # log(e + 3) - 1
    0.7437
    """

    def __init__(
        self, temperature: float = 0.07, learned: bool = True, max_scale: float = 100.0
    ) -> None:
        if not temperature > 0:
            raise UserError("must be above 0", key="temperature", value=temperature)
        super().__init__(1 / temperature, learned, max_scale)

    def forward(self, z_a: Tensor, z_b: Tensor, positives: Tensor | None = None) -> Tensor:
        """Loss of unit rows `z_a`, `z_b` `[B, D]`; `positives` bool `[B, B]`, by default row i of
        one belongs to row i of the other.
        """
        return clip_loss(self.scale * z_a @ z_b.T, _diagonal(z_a, positives))

    def extra_repr(self) -> str:
        """What `repr` shows."""
        return f"temperature={float(1 / self.scale):.4g}, learned={self.log_scale.requires_grad}"


@register("siglip")
class SigLIPLoss(ContrastiveLoss):
    """`siglip_loss` with a learned scale and bias.

    Args:
        scale: start of the scale (10 in the paper; SAIL and SOTAlign start at 20).
        bias: start of the bias.
        learned: False keeps both fixed.
        max_scale: the scale is clamped here.

    >>> z = torch.eye(2)
    >>> round(SigLIPLoss(scale=1.0, bias=0.0)(z, z).item(), 4)  # log(1 + 1/e) + log 2
    1.0064
    """

    def __init__(
        self,
        scale: float = 10.0,
        bias: float = -10.0,
        learned: bool = True,
        max_scale: float = 100.0,
    ) -> None:
        if not scale > 0:
            raise UserError("must be above 0", key="scale", value=scale)
        super().__init__(scale, learned, max_scale)
        self.bias = nn.Parameter(torch.tensor(float(bias)), requires_grad=learned)

    def forward(self, z_a: Tensor, z_b: Tensor, positives: Tensor | None = None) -> Tensor:
        """Loss of unit rows `z_a`, `z_b` `[B, D]`; `positives` as in `CLIPLoss`."""
        return siglip_loss(self.scale * z_a @ z_b.T + self.bias, _diagonal(z_a, positives))

    def extra_repr(self) -> str:
        """What `repr` shows."""
        return f"scale={float(self.scale):.4g}, bias={float(self.bias):.4g}"
