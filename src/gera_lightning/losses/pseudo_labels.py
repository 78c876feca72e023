"""S-CLIP's captions: an unpaired row takes a mixture of the paired partners as its label, by
transport onto the paired rows.

Legend: `n` unpaired rows, `B` pairs, `D` shared width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gera_lightning.losses.base import UNPAIRED, Loss, StepBatch, in_full_precision
from gera_lightning.losses.transport import sinkhorn
from gera_lightning.utils.errors import UserError, check_one_of
from gera_lightning.utils.instantiate import register

SIDES = ("both", "a", "b")


@torch.no_grad()
def pseudo_labels(
    unpaired: Tensor, paired: Tensor, eps: float | Tensor, iterations: int = 10
) -> Tensor:
    """How much each pair's partner is an unpaired row's label: `q_ij = n P_ij`, `[n, B]`, rows sum
    to 1, no gradient.

    P is the entropic transport plan between the unpaired and the paired rows of one modality,
    uniform marginals, cost `-cos`: each pair is used alike, `B/n sum_i q_ij = 1` at convergence.

    Args:
        unpaired, paired: unit rows of one modality `[n, D]`, `[B, D]`.
        eps: weight of the plan's entropy.
        iterations: of Sinkhorn; rows are normalised after it.
    """
    return sinkhorn(unpaired @ paired.T, eps, iterations).softmax(1)


def caption_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy with soft labels: `-1/n sum_ij q_ij log softmax_j(s_ij)`, both `[n, B]`."""
    return -(labels * logits.log_softmax(1)).sum(1).mean()


@register("captions")
class CaptionLoss(Loss):
    """`1/2 sum over sides` of the cross-entropy of unpaired rows to the pairs' partners against
    their pseudo-labels.

    An unpaired row u of a takes its labels q from a's paired rows, and is drawn to b's: `s_j =
    scale cos(u, z_b,j)`. The paper does so for images, the side with unpaired rows; both sides
    alike are ours. Its text-to-image term, in which unpaired images join the negatives of the
    paired texts, and its keyword labels are left out.

    Args:
        sides: `both`, `a` or `b`: whose unpaired rows are labelled.
        eps: entropy of the plan; by default the pair loss's temperature, as in the published code.
        iterations: of Sinkhorn (10 in the published code).

    Source:
        Mo et al., S-CLIP: semi-supervised vision-language learning using few specialist captions,
        arXiv 2305.14095.
    """

    requires = (UNPAIRED,)

    def __init__(self, sides: str = "both", eps: float | None = None, iterations: int = 10) -> None:
        super().__init__()
        check_one_of("sides", sides, SIDES)
        if eps is not None and not eps > 0:
            raise UserError("must be above 0", key="eps", value=eps)
        if iterations < 1:
            raise UserError("must be at least 1", key="iterations", value=iterations)
        self.sides, self.eps, self.iterations = sides, eps, iterations

    def forward(
        self, unpaired: Tensor, paired: Tensor, partners: Tensor, scale: float | Tensor
    ) -> Tensor:
        """Loss of one modality's unpaired rows.

        Args:
            unpaired: unit rows of the modality `[n, D]`.
            paired: unit paired rows of the same modality `[B, D]`.
            partners: their partners of the other modality `[B, D]`.
            scale: inverse temperature.
        """
        inverse = 1 / torch.as_tensor(scale).detach()
        eps = inverse if self.eps is None else self.eps
        labels = pseudo_labels(unpaired, paired, eps, self.iterations)
        return caption_loss(scale * unpaired @ partners.T, labels)

    def on_step(self, batch: StepBatch) -> Tensor:
        """The loss of a step, a scalar.

        Raises:
            UserError: no loss of the step has a scale.
        """
        if batch.scale is None:
            raise UserError("captions need a loss with a temperature beside them, such as clip")
        unpaired_a, unpaired_b = batch.unpaired
        with torch.autocast(unpaired_a.z.device.type, enabled=False):
            u_a, u_b, z_a, z_b = in_full_precision(
                unpaired_a.z, unpaired_b.z, batch.pairs_a.z, batch.pairs_b.z
            )
            terms = []
            if self.sides in ("both", "a"):
                terms.append(self(u_a, z_a, z_b, batch.scale))
            if self.sides in ("both", "b"):
                terms.append(self(u_b, z_b, z_a, batch.scale))
        return torch.stack(terms).sum() / 2
