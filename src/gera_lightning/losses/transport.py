"""Optimal transport between unpaired rows: SOTAlign's KLOT, the distance of a student's transport
plan from a teacher's.

Legend: `n`, `m` unpaired rows of modality a and b, `D` shared width. Similarities are cosines, the
cost is their negative. Plans have uniform marginals `1/n`, `1/m` and sum to 1.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from gera_lightning.losses.base import UNPAIRED, Loss, LossSetup, StepBatch, in_full_precision
from gera_lightning.models.maps import normalized
from gera_lightning.utils.errors import UserError
from gera_lightning.utils.instantiate import register

WIDEST = 300.0
"""Spread of K / eps up to which `exp(K / eps)` and its scalings stay within float64, whose
exponents reach 700.
"""


def sinkhorn(similarity: Tensor, eps: float | Tensor, iterations: int = 100) -> Tensor:
    """Logarithm of the entropic transport plan `argmax_P <P, K> + eps H(P)`, rows `1/n`, columns
    `1/m`, by Sinkhorn's iterations.

    `log P = K/eps + f + g`, f and g in turn such that the rows and then the columns have their
    sums: after the last iteration columns are exact, rows as near as the iterations brought them.
    Where `exp(K/eps)` is within float64, f and g are the logarithms of scalings u, v, and an
    iteration is two products with a vector, about a tenth of the time; elsewhere it is done in
    logarithms.

    Args:
        similarity: K `[n, m]`, the negative cost.
        eps: weight of the entropy, in units of K.
        iterations: updates of f and g.

    Returns:
        log P `[n, m]`; no gradient is meant to flow through it, see `klot`.

    Source:
        Cuturi, Sinkhorn distances, arXiv 1306.0895.
    """
    n, m = similarity.shape
    scaled = similarity / eps
    most = scaled.max()
    if (
        similarity.device.type != "mps" and float(most - scaled.min()) <= WIDEST
    ):  # MPS knows no float64
        shifted = scaled.double() - most
        kernel, v = shifted.exp(), shifted.new_ones(m)
        for _ in range(iterations):
            u = 1 / n / (kernel @ v)
            v = 1 / m / (u @ kernel)
        return (shifted + u.log().unsqueeze(1) + v.log()).to(similarity.dtype)
    g = scaled.new_zeros(1, m)
    for _ in range(iterations):
        f = -math.log(n) - (scaled + g).logsumexp(1, keepdim=True)
        g = -math.log(m) - (scaled + f).logsumexp(0, keepdim=True)
    return scaled + f + g


class _KlToPlan(torch.autograd.Function):
    """`KL(P* | P(K))` with the gradient of converged Sinkhorn, `(P - P*) / eps`, instead of
    unrolled iterations.

    `-sum P* log P = -(<P*, K> + <r, f> + <c, g>) / eps` where P* has P's marginals r, c. The
    potentials are those of the dual at its optimum, whose derivative in K is P alone (envelope
    theorem).
    """

    @staticmethod
    def forward(
        ctx: Any, similarity: Tensor, log_target: Tensor, eps: float, iterations: int
    ) -> Tensor:
        log_plan = sinkhorn(similarity, eps, iterations)
        target = log_target.exp()
        ctx.save_for_backward((log_plan.exp() - target) / eps)
        return (target * (log_target - log_plan)).sum()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (slope,) = ctx.saved_tensors
        return grads[0] * slope, None, None, None


def klot(
    similarity: Tensor, log_target: Tensor, eps: float = 0.05, iterations: int = 100
) -> Tensor:
    """`KL(P* | OT_eps(K))`, in nats, gradient `(P - P*) / eps` in K.

    P and P* sum to 1. Of plans whose rows sum to 1 the divergence is n times as large: a weight
        alpha there is `n alpha` here.

    Args:
        similarity: the student's K `[n, m]`.
        log_target: log P* `[n, m]`, uniform marginals.
        eps: of the student's plan.
        iterations: of Sinkhorn.

    Source:
        Roschmann et al., SOTAlign, arXiv 2602.23353.
    """
    value: Tensor = _KlToPlan.apply(similarity, log_target, eps, iterations)
    return value


@register("transport")
class TransportLoss(Loss):
    """KLOT of a step's unpaired rows: the plan of the trained maps' cosines against a teacher's.

    Args:
        teacher: a closed form, such as `cca`; it is fitted on the pairs that are trained on, before
            training.
        eps: entropy of the student's plan (0.05 in the paper).
        teacher_eps: entropy of the teacher's plan (0.005 to 0.01 in the paper).
        iterations: of Sinkhorn (100 in the paper).

    >>> loss = TransportLoss(teacher=None)
    >>> z = torch.eye(4)
    >>> bool(loss(z.flip(0), z, z, z) > 1 > abs(loss(z, z, z, z)))
    True
    """

    requires = (UNPAIRED,)

    def __init__(
        self, teacher: Any, eps: float = 0.05, teacher_eps: float = 0.01, iterations: int = 100
    ) -> None:
        super().__init__()
        for key, value in (("eps", eps), ("teacher_eps", teacher_eps)):
            if not value > 0:
                raise UserError("must be above 0", key=key, value=value)
        if iterations < 1:
            raise UserError("must be at least 1", key="iterations", value=iterations)
        self.teacher = teacher
        self.eps, self.teacher_eps, self.iterations = eps, teacher_eps, iterations
        # in a tuple, so that the teacher is no part of the loss's own state
        self.teacher_maps: tuple[nn.Module, ...] = ()

    def prepare(self, setup: LossSetup) -> None:
        """Fit the teacher on the pairs that are trained on; its maps stay as they are."""
        assert setup.fit_closed_form is not None
        maps = setup.fit_closed_form(self.teacher)
        self.teacher_maps = tuple(copy.deepcopy(part).requires_grad_(False) for part in maps)

    def forward(self, z_a: Tensor, z_b: Tensor, teacher_a: Tensor, teacher_b: Tensor) -> Tensor:
        """KLOT of unit rows, the student's `[n, D]`, `[m, D]` and the teacher's `[n, D_t]`,
        `[m, D_t]`.
        """
        with torch.no_grad():
            log_target = sinkhorn(teacher_a @ teacher_b.T, self.teacher_eps, self.iterations)
        return klot(z_a @ z_b.T, log_target, self.eps, self.iterations)

    def on_step(self, batch: StepBatch) -> Tensor:
        """The loss of a step, a scalar."""
        a, b = batch.unpaired
        with torch.autocast(a.z.device.type, enabled=False):
            z_a, z_b, x_a, x_b = in_full_precision(a.z, b.z, a.x, b.x)
            map_a, map_b = (part.to(z_a.device) for part in self.teacher_maps)
            with torch.no_grad():
                teacher_a, teacher_b = normalized(map_a(x_a)), normalized(map_b(x_b))
            loss: Tensor = self(z_a, z_b, teacher_a, teacher_b)
            return loss
