"""Distances to affinities: kernels and their bandwidths.

Legend: `A` anchors (any leading shape), `M` points of a patch, `D` width. All distances are
**squared** L2 distances; between unit vectors that is `2 - 2 cos`. A softmax over cosines with
temperature tau is the heat kernel on the sphere with `eps = 2 tau`: there is no separate cosine
kernel.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gera_lightning.utils.errors import check_one_of

TINY = 1e-12


def squared_distances(x_AMD: Tensor) -> Tensor:
    """Squared distances between all points of each patch, `[..., M, D] -> [..., M, M]`.

    `d2_jl = |x_j|^2 + |x_l|^2 - 2 x_j.x_l`, clamped at 0, the diagonal exactly 0. Its gradient is
    finite on duplicates. In float32 at least, under autocast too: what is lost in lower precisions
    are the distances of near neighbours.

    >>> squared_distances(torch.tensor([[0.0, 0.0], [3.0, 4.0]]))
    tensor([[ 0., 25.],
            [25.,  0.]])
    """
    with torch.autocast(x_AMD.device.type, enabled=False):
        x_AMD = x_AMD.to(torch.promote_types(x_AMD.dtype, torch.float32))
        gram = x_AMD @ x_AMD.mT
    norm2 = gram.diagonal(dim1=-2, dim2=-1)
    d2 = (norm2.unsqueeze(-1) + norm2.unsqueeze(-2) - 2 * gram).clamp(min=0)
    return d2 * ~torch.eye(d2.shape[-1], dtype=torch.bool, device=d2.device)


def heat_kernel(d2: Tensor, eps: Tensor) -> Tensor:
    """`exp(-d2 / eps)`."""
    return torch.exp(-d2 / eps)


def student_kernel(d2: Tensor, eps: Tensor) -> Tensor:
    """`1 / (1 + d2 / eps)`: Student-t with one degree of freedom, a heavy tail."""
    return 1 / (1 + d2 / eps)


def laplacian_kernel(d2: Tensor, eps: Tensor) -> Tensor:
    """`exp(-sqrt(d2 / eps + tiny))`, its diagonal 1: the root has an infinite gradient at 0."""
    w = torch.exp(-torch.sqrt(d2 / eps + TINY))
    return torch.where(
        torch.eye(d2.shape[-1], dtype=torch.bool, device=d2.device), torch.ones_like(w), w
    )


KERNELS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "heat": heat_kernel,
    "student": student_kernel,
    "laplacian": laplacian_kernel,
}
BANDWIDTHS = ("patch", "self_tuning", "global", "fixed")


def patch_bandwidth(d2: Tensor) -> Tensor:
    """Mean off-diagonal squared distance of each patch, `[..., M, M] -> [..., 1, 1]`."""
    m = d2.shape[-1]
    return d2.sum((-2, -1), keepdim=True) / (m * (m - 1))


def self_tuning_bandwidth(d2: Tensor, neighbor: int) -> Tensor:
    """`eps_jl = s_j s_l` `[..., M, M]`, `s_j` the distance from j to its `neighbor`-th neighbour.

    Zelnik-Manor & Perona, Self-tuning spectral clustering, 2004. Patches with fewer neighbours use
    their last one.
    """
    s = d2.sort(dim=-1).values[..., min(neighbor, d2.shape[-1] - 1)].sqrt()
    return s.unsqueeze(-1) * s.unsqueeze(-2)


def bandwidth_floor(scale: float) -> float:
    """Smallest bandwidth for edges of median squared length `scale`: below is rounding."""
    return 1e-6 * max(scale, 1e-6)


def bandwidth(
    d2: Tensor, rule: str, factor: float, scale: Tensor | float, neighbor: int, floor: float
) -> Tensor:
    """Bandwidth `eps` of each patch, broadcastable to `d2` `[..., M, M]`, never below `floor`.

    Args:
        d2: squared distances; no gradient flows through eps.
        rule: `patch`: factor x mean off-diagonal d2 of the patch; `self_tuning`: factor x s_j s_l;
            `global`: factor x scale; `fixed`: factor itself, a squared distance.
        factor: multiple of the rule's own scale.
        scale: median squared length of the neighbour graph's edges (a number of the whole
            modality).
        neighbor: which neighbour sets `s_j` under `self_tuning`.
        floor: smallest eps, see `bandwidth_floor`.

    Raises:
        UserError: an unknown rule.
    """
    check_one_of("bandwidth", rule, BANDWIDTHS)
    d2 = d2.detach()
    if rule == "patch":
        eps = factor * patch_bandwidth(d2)
    elif rule == "self_tuning":
        eps = factor * self_tuning_bandwidth(d2, neighbor)
    elif rule == "global":
        eps = factor * torch.as_tensor(scale, dtype=d2.dtype, device=d2.device)
    else:
        eps = torch.full((), factor, dtype=d2.dtype, device=d2.device)
    return eps.clamp(min=floor)
