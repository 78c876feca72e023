"""Contrastive losses on pairs: CLIP and SigLIP, with several positives a row.

Legend: `B` pairs of a batch, `D` shared width. Rows of the same item are positives of each other,
    never negatives.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from gera_lightning.utils.errors import UserError
from gera_lightning.utils.instantiate import register


def positives_of(item_a: Tensor, item_b: Tensor) -> Tensor:
    """Which rows belong together: `[B_a], [B_b] -> bool [B_a, B_b]`."""
    return item_a.unsqueeze(1) == item_b.unsqueeze(0)


def clip_loss(logits: Tensor, positives: Tensor) -> Tensor:
    """Symmetric InfoNCE: mean of both directions' cross-entropy against the uniform distribution
    over a row's positives.

    `-1/2 [ mean_i 1/|P_i| sum_{j in P_i} log softmax_j(s_ij) + the same over columns ]`; with one
    positive a row it is the loss of CLIP.

    Args:
        logits: scaled similarities `[B, B]`.
        positives: bool `[B, B]`, at least one a row and a column.

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


@register("clip")
class CLIPLoss(nn.Module):
    """`clip_loss` with a learned log-temperature.

    Args:
        temperature: start of the temperature; the scale is its inverse.
        learned: False keeps it fixed.
        max_scale: the scale is clamped here (100, as in CLIP).
    """

    def __init__(
        self, temperature: float = 0.07, learned: bool = True, max_scale: float = 100.0
    ) -> None:
        super().__init__()
        if not temperature > 0:
            raise UserError(f"temperature={temperature} must be above 0")
        self.log_scale = nn.Parameter(
            torch.tensor(math.log(1 / temperature)), requires_grad=learned
        )
        self.max_scale = max_scale

    @property
    def scale(self) -> Tensor:
        """Current inverse temperature."""
        return self.log_scale.exp().clamp(max=self.max_scale)

    def forward(self, z_a: Tensor, z_b: Tensor, positives: Tensor) -> Tensor:
        """Loss of unit rows `z_a`, `z_b` `[B, D]` with `positives` bool `[B, B]`."""
        return clip_loss(self.scale * z_a @ z_b.T, positives)


@register("siglip")
class SigLIPLoss(nn.Module):
    """`siglip_loss` with a learned scale and bias.

    Args:
        scale: start of the scale (10 in the paper; SAIL and SOTAlign start at 20).
        bias: start of the bias.
        learned: False keeps both fixed.
        max_scale: the scale is clamped here.
    """

    def __init__(
        self,
        scale: float = 10.0,
        bias: float = -10.0,
        learned: bool = True,
        max_scale: float = 100.0,
    ) -> None:
        super().__init__()
        if not scale > 0:
            raise UserError(f"scale={scale} must be above 0")
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)), requires_grad=learned)
        self.bias = nn.Parameter(torch.tensor(float(bias)), requires_grad=learned)
        self.max_scale = max_scale

    @property
    def scale(self) -> Tensor:
        """Current scale."""
        return self.log_scale.exp().clamp(max=self.max_scale)

    def forward(self, z_a: Tensor, z_b: Tensor, positives: Tensor) -> Tensor:
        """Loss of unit rows `z_a`, `z_b` `[B, D]` with `positives` bool `[B, B]`."""
        return siglip_loss(self.scale * z_a @ z_b.T + self.bias, positives)
