"""ASIF: coupled data turned into a shared space without training.

Legend: `n` pairs, `D` frozen width, `m` rows to map.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gera_lightning.aligners.base import FitData, Maps, Setting, grid
from gera_lightning.models.maps import normalized, register_map
from gera_lightning.utils.errors import UserError
from gera_lightning.utils.instantiate import register


@register_map("relative")
class RelativeMap(nn.Module):
    """Similarities to the paired anchors of the own modality, all but the largest set to 0: `z =
    topk(max(x A', 0))^p`.

    Args:
        anchors: unit rows A `[n, D]`.
        kept: entries kept a row.
        power: p.
        shape: `(n, D)`, for an empty map that weights are loaded into.
    """

    anchors: Tensor

    def __init__(
        self,
        anchors: Tensor | None = None,
        kept: int = 1,
        power: float = 1.0,
        *,
        shape: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        anchors = torch.zeros(*shape) if shape is not None else anchors
        assert anchors is not None
        self.register_buffer("anchors", anchors)
        self.kept, self.power = min(kept, len(anchors)), power

    @property
    def settings(self) -> dict[str, Any]:
        """What, with the weights, rebuilds this map."""
        return {"kept": self.kept, "power": self.power, "shape": tuple(self.anchors.shape)}

    def forward(self, x: Tensor) -> Tensor:
        """`[m, D] -> [m, n]`."""
        values, index = (normalized(x) @ self.anchors.T).clamp(min=0).topk(self.kept, dim=1)
        return torch.zeros(len(x), len(self.anchors), dtype=x.dtype, device=x.device).scatter_(
            1, index, values**self.power
        )


@register("asif")
@dataclass(frozen=True)
class ASIF:
    """ASIF: rows are compared through their similarities to the pairs; entries kept and power are
    tuned.

    Attributes:
        shares: entries kept, as shares of the pairs (the paper keeps 800 of some million; ours are
            relative).
        powers: exponents (8 in the paper).

    Source:
        Norelli et al., ASIF, arXiv 2210.01738.
    """

    shares: tuple[float, ...] = (1.0, 0.25)
    powers: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0)

    def __post_init__(self) -> None:
        if not self.shares or not 0 < min(self.shares) <= max(self.shares) <= 1:
            raise UserError(f"shares={self.shares} must be shares in (0, 1]")
        if not self.powers or min(self.powers) <= 0:
            raise UserError(f"powers={self.powers} must be above 0")

    def settings(self, count: int, pairs: int) -> Sequence[Setting]:  # noqa: ARG002
        """`count` settings, the smallest power first."""
        return grid(count, power=self.powers, share=self.shares)

    def candidates(self, samples: FitData, settings: Sequence[Setting]) -> Iterator[Maps]:
        """The maps of each setting: nothing is fitted."""
        a, b = normalized(samples.x_a), normalized(samples.x_b)
        for setting in settings:
            kept = max(1, round(setting["share"] * len(a)))
            yield RelativeMap(a, kept, setting["power"]), RelativeMap(b, kept, setting["power"])
