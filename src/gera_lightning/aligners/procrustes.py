"""Orthogonal Procrustes: the rotation that brings the pairs together.

Legend: `n` pairs, `D_a`, `D_b` frozen widths, `r` rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from gera_lightning.aligners.base import FitData, Maps, Setting, grid, log_spaced
from gera_lightning.aligners.estimator import Estimator
from gera_lightning.models.maps import Linear
from gera_lightning.utils.instantiate import register


@register("procrustes")
@dataclass(frozen=True, repr=False)
class Procrustes(Estimator):
    """`z_a = x_a U_r`, `z_b = x_b V_r` with `x_a' x_b = U S V'`; the rank r is tuned.

    At full rank the dot product is that of the orthogonal map `argmax_R tr(R' x_a' x_b) = U V'` on
    the spans of the pairs (directions that no pair has are left out: the pairs say nothing of
    them); a lower rank keeps the directions in which the pairs agree most. The rank is our
    addition.

    Source:
        Schönemann, A generalized solution of the orthogonal Procrustes problem, 1966.

    >>> x_a = torch.randn(100, 8, generator=torch.Generator().manual_seed(0))
    >>> rotation, _ = torch.linalg.qr(x_a[:8])
    >>> scores, rows = Procrustes().fit(x_a[:80], x_a[:80] @ rotation).search(
    ...     x_a[80:], x_a[80:] @ rotation, k=1
    ... )
    >>> rows[:, 0].tolist() == list(range(20))
    True
    """

    def settings(self, count: int, pairs: int) -> Sequence[Setting]:
        """`count` shares of the largest rank, the smallest first; the last is plain Procrustes."""
        lowest = min(1.0, 8 / pairs)
        return grid(count, share=log_spaced(lowest, 1.0, count) if count > 1 else [1.0])

    def default_setting(self, pairs: int) -> Setting:  # noqa: ARG002
        """The largest rank: plain Procrustes."""
        return {"share": 1.0}

    def candidates(self, samples: FitData, settings: Sequence[Setting]) -> Iterator[Maps]:
        """The maps of each setting, from one decomposition."""
        # the singular vectors of x_a' x_b lie in the spans of the rows, so the decomposition of a
        # matrix of at most n x n finds them, however wide the rows are
        u_a, s_a, vh_a = torch.linalg.svd(samples.x_a, full_matrices=False)
        u_b, s_b, vh_b = torch.linalg.svd(samples.x_b, full_matrices=False)
        core_u, s, core_vh = torch.linalg.svd(
            s_a.unsqueeze(1) * (u_a.T @ u_b) * s_b, full_matrices=False
        )
        u, vh = vh_a.T @ core_u, core_vh @ vh_b
        for setting in settings:
            rank = max(1, round(setting["share"] * len(s)))
            yield (
                Linear(u.shape[0], rank, weight=u[:, :rank].contiguous()),
                Linear(vh.shape[1], rank, weight=vh[:rank].T.contiguous()),
            )
