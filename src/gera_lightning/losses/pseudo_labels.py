"""S-CLIP's captions: an unpaired row takes a mixture of the paired partners as its label, by
transport onto the paired rows.

Legend: `n` unpaired rows, `B` pairs, `D` shared width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gera_lightning.losses.base import Projected, StepBatch, UnpairedLoss
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
    """Cross-entropy against soft labels: `-1/n sum_ij q_ij log softmax_j(s_ij)`, s and q `[n, B]`."""
    return -(labels * logits.log_softmax(1)).sum(1).mean()


@register("captions")
class CaptionLoss(UnpairedLoss):
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

    term = "captions"

    def __init__(self, sides: str = "both", eps: float | None = None, iterations: int = 10) -> None:
        super().__init__()
        check_one_of("sides", sides, SIDES)
        if eps is not None and not eps > 0:
            raise UserError(f"eps={eps} must be above 0")
        if iterations < 1:
            raise UserError(f"iterations={iterations} must be at least 1")
        self.sides, self.eps, self.iterations = sides, eps, iterations

    def forward(self, step: StepBatch) -> Tensor:
        """The loss of a step, a scalar.

        Raises:
            UserError: the pair loss has no scale.
        """
        if step.scale is None:
            raise UserError(
                "pair_loss has no scale, which pseudo-labels need: take"
                " gera_lightning.losses.contrastive.CLIPLoss"
            )
        (a, b), pairs_a, pairs_b = step.unpaired, step.pairs_a, step.pairs_b
        terms = []
        if self.sides in ("both", "a"):
            terms.append(self._of(a, pairs_a, pairs_b, step.scale))
        if self.sides in ("both", "b"):
            terms.append(self._of(b, pairs_b, pairs_a, step.scale))
        return torch.stack(terms).sum() / 2

    def _of(self, rows: Projected, own: Projected, other: Projected, scale: Tensor) -> Tensor:
        with torch.autocast(rows.z.device.type, enabled=False):
            wide = torch.promote_types(rows.z.dtype, torch.float32)
            unpaired, own_z, other_z = (part.z.to(wide) for part in (rows, own, other))
            labels = pseudo_labels(
                unpaired,
                own_z,
                1 / scale.detach() if self.eps is None else self.eps,
                self.iterations,
            )
            return caption_loss(scale * unpaired @ other_z.T, labels)
