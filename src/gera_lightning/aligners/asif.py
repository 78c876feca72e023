"""ASIF: coupled data turned into a shared space without training.

Legend: `n` pairs, `D` frozen width, `m` rows to map.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gera_lightning.aligners.base import FitData, Maps, Setting, check_values, grid
from gera_lightning.aligners.estimator import Estimator
from gera_lightning.models.maps import normalized, register_map
from gera_lightning.utils.instantiate import register


@register_map("relative")
class RelativeMap(nn.Module):
    """Similarities to the pairs of the own modality, the largest kept: `z = topk(max(x A', 0))^p`.

    Args:
        anchors: unit rows A `[n, D]`.
        kept: entries kept per row.
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
        similarity = (normalized(x) @ self.anchors.T).clamp(min=0)
        values, index = similarity.topk(self.kept, dim=1)
        return torch.zeros_like(similarity).scatter_(1, index, values**self.power)


@register("asif")
@dataclass(frozen=True, repr=False)
class ASIF(Estimator):
    """ASIF: rows are compared through their similarities to the pairs.

    How many entries are kept, and their power, are tuned.

    Attributes:
        shares: entries kept, as shares of the pairs (the paper keeps 800 of some million; ours are
            relative).
        powers: exponents (8 in the paper).

    Source:
        Norelli et al., ASIF, arXiv 2210.01738.

    >>> x_a = torch.randn(100, 8, generator=torch.Generator().manual_seed(0))
    >>> form = ASIF().fit(x_a[:80], x_a[:80, :6])
    >>> form.encode_a(x_a).shape  # one coordinate per pair
    torch.Size([100, 80])
    """

    shares: tuple[float, ...] = (1.0, 0.25)
    powers: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0)

    def __post_init__(self) -> None:
        check_values("shares", self.shares, above=0, most=1)
        check_values("powers", self.powers, above=0)

    def settings(self, count: int, pairs: int) -> Sequence[Setting]:  # noqa: ARG002
        """`count` settings, the smallest power first."""
        return grid(count, power=self.powers, share=self.shares)

    def default_setting(self, pairs: int) -> Setting:  # noqa: ARG002
        """The first share, and the power in the middle."""
        return {"power": self.powers[(len(self.powers) - 1) // 2], "share": self.shares[0]}

    def candidates(self, samples: FitData, settings: Sequence[Setting]) -> Iterator[Maps]:
        """The maps of each setting: nothing is fitted."""
        a, b = normalized(samples.x_a), normalized(samples.x_b)
        for setting in settings:
            kept = max(1, round(setting["share"] * len(a)))
            yield RelativeMap(a, kept, setting["power"]), RelativeMap(b, kept, setting["power"])
