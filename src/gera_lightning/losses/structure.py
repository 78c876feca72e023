"""STRUCTURE: similarities of a batch among itself, several hops far, before and after the map.

Legend: `n` rows of a batch, `D_x` frozen width, `D` shared width, `L` hops.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gera_lightning.losses.base import UNPAIRED, Loss, StepBatch
from gera_lightning.models.maps import normalized
from gera_lightning.utils.errors import UserError, check_one_of
from gera_lightning.utils.instantiate import register


def similarity_distribution(x: Tensor, temperature: float) -> Tensor:
    """`P = softmax_rows(C C' / temperature)`, C the unit rows of x less their mean: `[n, D] -> [n,
    n]`, rows sum to 1.

    A row is its own likeliest neighbour. Of rows at right angles `P_ii = 1 / (1 + (n - 1) exp(-1 /
    temperature))`: at 0.05 P is all but the identity, and only rows much nearer than at right
    angles show in it.
    """
    c = normalized(x)
    c = c - c.mean(0)
    return (c @ c.T / temperature).softmax(1)


def jensen_shannon(p: Tensor, q: Tensor) -> Tensor:
    """Mean over rows of the Jensen-Shannon divergence of two distributions `[n, m]`, in nats: at
    most log 2.
    """
    middle = (p + q) / 2
    entropy = [
        torch.special.xlogy(d, d.clamp(min=torch.finfo(d.dtype).tiny)).sum(1)
        for d in (p, q, middle)
    ]
    return ((entropy[0] + entropy[1]) / 2 - entropy[2]).mean()


def structure_loss(x: Tensor, z: Tensor, temperature: float = 0.05, hops: int = 1) -> Tensor:
    """`R = 1/L sum_{l=1..L} JS(P_x^l, P_z^l) / l` of a batch before and after the map, in nats.

    `P^l` is the l-th matrix power: the similarities l hops far. Gradient through z only.

    Args:
        x: frozen rows `[n, D_x]`.
        z: their images `[n, D]`.
        temperature: of the softmax over the batch.
        hops: L.

    Source:
        Gröger et al., With limited data for multimodal alignment, let the STRUCTURE guide you,
        arXiv 2506.16895.
    """
    with torch.autocast(z.device.type, enabled=False):
        wide = torch.promote_types(z.dtype, torch.float32)
        with torch.no_grad():
            p = similarity_distribution(x.to(wide), temperature)
        q = similarity_distribution(z.to(wide), temperature)
        p_l, q_l, total = p, q, jensen_shannon(p, q)
        for hop in range(2, hops + 1):
            p_l, q_l = p_l @ p, q_l @ q
            total = total + jensen_shannon(p_l, q_l) / hop
        return total / hops


@register("structure")
class StructureLoss(Loss):
    """`structure_loss` of modality a plus that of b; its weight grows linearly over the first
    steps.

    Args:
        rows: `unpaired`, or `pairs` as in the paper: what it is taken of.
        temperature: of the softmax (0.05 in the paper).
        hops: L.
        warmup: steps until the full weight, `min(1, (step + 1) / warmup)`; 0: at once.

    >>> x = torch.randn(20, 8, generator=torch.Generator().manual_seed(0))
    >>> round(float(StructureLoss()(x, 2 * x)), 4)
    0.0
    """

    def __init__(
        self, rows: str = UNPAIRED, temperature: float = 0.05, hops: int = 1, warmup: int = 0
    ) -> None:
        super().__init__()
        check_one_of("rows", rows, (UNPAIRED, "pairs"))
        if not temperature > 0:
            raise UserError("must be above 0", key="temperature", value=temperature)
        for key, value, low in (("hops", hops, 1), ("warmup", warmup, 0)):
            if value < low:
                raise UserError(f"must be at least {low}", key=key, value=value)
        self.requires = (UNPAIRED,) if rows == UNPAIRED else ()
        self.temperature, self.hops, self.warmup = temperature, hops, warmup

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """`structure_loss` of one modality's rows `[n, D_x]` and their images `[n, D]`."""
        return structure_loss(x, z, self.temperature, self.hops)

    def on_step(self, batch: StepBatch) -> Tensor:
        """The loss of a step, a scalar."""
        a, b = batch.unpaired if self.requires else (batch.pairs_a, batch.pairs_b)
        grown = min(1.0, (batch.step + 1) / self.warmup) if self.warmup else 1.0
        return grown * (self(a.x, a.z) + self(b.x, b.z))
