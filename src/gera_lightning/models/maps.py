"""Maps from a frozen space to the shared one.

Every map is an `nn.Module` of plain tensors that an aligner folder can hold.

Legend: `n` rows, `D_in` frozen width, `D` shared width. Maps return rows that are **not**
normalised; `normalized` does that.

A map that is registered with `@register_map("kind")` and has a property `settings` (what, with its
weights, rebuilds it) is saved and loaded by kind; a saved artefact never names code to import:

>>> mapping = Linear(2, 2, weight=torch.eye(2))
>>> describe_map(mapping)
{'kind': 'linear', 'settings': {'dim_in': 2, 'dim': 2}}
>>> again = build_map(describe_map(mapping))
>>> again.load_state_dict(mapping.state_dict())
<All keys matched successfully>
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from gera_lightning.utils.errors import UserError
from gera_lightning.utils.instantiate import register


def normalized(x: Tensor) -> Tensor:
    """Unit rows: `x / |x|`, a zero row stays zero."""
    return nn.functional.normalize(x, dim=-1)


MAPS: dict[str, type[nn.Module]] = {}
"""Kind of map, as an aligner folder names it, to class."""
MapClass = TypeVar("MapClass", bound=type[nn.Module])


def register_map(kind: str) -> Callable[[MapClass], MapClass]:
    """Class decorator: maps of this class are saved under `kind`."""

    def add(cls: MapClass) -> MapClass:
        MAPS[kind] = cls
        return register(kind)(cls)

    return add


def describe_map(mapping: nn.Module) -> dict[str, Any]:
    """Kind, settings and parts of a map, for `aligner.json`."""
    kind = next(
        (name for name, cls in MAPS.items() if cls is type(mapping)), type(mapping).__name__
    )
    record: dict[str, Any] = {"kind": kind, "settings": getattr(mapping, "settings", {})}
    if isinstance(mapping, Concat | Sequential):
        record["parts"] = [describe_map(part) for part in mapping.maps]
    return record


def build_map(
    record: Mapping[str, Any], map_classes: Mapping[str, type[nn.Module]] | None = None
) -> nn.Module:
    """The map that `describe_map` described, its weights still to be filled in.

    Args:
        record: as from `describe_map`.
        map_classes: more kinds than the registered ones: a user's own classes.

    Raises:
        UserError: an unknown kind.
    """
    known = {**MAPS, **(map_classes or {})}
    kind = record["kind"]
    if kind not in known:
        raise UserError(
            f"is no kind of map that is known here: {', '.join(known)}",
            key="kind",
            value=kind,
            remedy=f"pass its class, load(path, map_classes={{{kind!r}: ...}})",
        )
    parts = [build_map(part, map_classes) for part in record.get("parts", ())]
    return known[kind](*parts, **record["settings"])


@register_map("linear")
class Linear(nn.Module):
    """`x W`, no bias.

    Args:
        dim_in: frozen width.
        dim: shared width.
        weight: start `[dim_in, dim]`; by default orthogonal rows or columns, drawn from
            `generator`.
        generator: random state of the start.

    >>> Linear(8, 4)(torch.zeros(3, 8)).shape
    torch.Size([3, 4])
    """

    def __init__(
        self,
        dim_in: int,
        dim: int,
        *,
        weight: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if weight is None:
            weight = nn.init.orthogonal_(torch.empty(dim_in, dim), generator=generator)
        if weight.shape != (dim_in, dim):
            raise ValueError(f"weight {tuple(weight.shape)} is not {(dim_in, dim)}")
        # contiguous, as it will be loaded: a product of another layout gives other last digits
        self.weight = nn.Parameter(weight.clone(memory_format=torch.contiguous_format))

    @property
    def settings(self) -> dict[str, Any]:
        """What, with the weights, rebuilds this map."""
        return {"dim_in": self.weight.shape[0], "dim": self.weight.shape[1]}

    def forward(self, x: Tensor) -> Tensor:
        """`[n, dim_in] -> [n, dim]`."""
        return x @ self.weight


@register_map("residual_mlp")
class ResidualMLP(nn.Module):
    """`x W + dropout(gelu(x V + c)) U`, U zero at the start: the map begins as its linear part.

    Args:
        dim_in: frozen width.
        dim: shared width.
        hidden: width of the residual branch.
        dropout: on the hidden layer.
        weight: start of W `[dim_in, dim]`; by default orthogonal.
        generator: random state of the start.

    >>> mlp, x = ResidualMLP(8, 4, hidden=16), torch.ones(3, 8)
    >>> torch.equal(mlp(x), mlp.linear(x))  # before training
    True
    """

    def __init__(
        self,
        dim_in: int,
        dim: int,
        hidden: int = 512,
        dropout: float = 0.0,
        *,
        weight: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if hidden < 1:
            raise UserError("must be at least 1", key="hidden", value=hidden)
        self.linear = Linear(dim_in, dim, weight=weight, generator=generator)
        inner = torch.randn(dim_in, hidden, generator=generator) * math.sqrt(2 / dim_in)
        self.inner = nn.Parameter(inner)
        self.inner_bias = nn.Parameter(torch.zeros(hidden))
        self.outer = nn.Parameter(torch.zeros(hidden, dim))
        self.dropout = nn.Dropout(dropout)

    @property
    def settings(self) -> dict[str, Any]:
        """What, with the weights, rebuilds this map."""
        return {**self.linear.settings, "hidden": self.inner.shape[1], "dropout": self.dropout.p}

    def forward(self, x: Tensor) -> Tensor:
        """`[n, dim_in] -> [n, dim]`."""
        hidden = nn.functional.gelu(x @ self.inner + self.inner_bias)
        return self.linear(x) + self.dropout(hidden) @ self.outer


@register_map("identity")
class Identity(nn.Module):
    """`x` itself: the side that a one-way closed form leaves alone.

    Args:
        dim: its width.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    @property
    def settings(self) -> dict[str, Any]:
        """What rebuilds this map."""
        return {"dim": self.dim}

    def forward(self, x: Tensor) -> Tensor:
        """`[n, dim] -> [n, dim]`."""
        return x


@register_map("concat")
class Concat(nn.Module):
    """Several maps side by side: `[sqrt(s_1) n(m_1(x)); sqrt(s_2) n(m_2(x)); ...]`.

    The dot product of two such rows is the mean of their parts' cosines.

    Args:
        maps: the parts, each of the same input.
        shares: s, the parts' weights in that mean, scaled to sum to 1; equal by default.

    >>> Concat(Linear(3, 1, weight=torch.ones(3, 1)), Identity(3), shares=[3, 1])(torch.eye(3)[:1])
    tensor([[0.8660, 0.5000, 0.0000, 0.0000]], grad_fn=<CatBackward0>)
    """

    def __init__(self, *maps: nn.Module, shares: Sequence[float] | None = None) -> None:
        super().__init__()
        self.maps = nn.ModuleList(maps)
        shares = [1.0] * len(maps) if shares is None else shares
        if len(shares) != len(maps) or min(shares) <= 0:
            raise ValueError(f"shares={shares} must be {len(maps)} numbers above 0")
        self.shares = [float(share) / sum(shares) for share in shares]

    @property
    def settings(self) -> dict[str, Any]:
        """What, with the parts, rebuilds this map."""
        return {"shares": self.shares}

    def forward(self, x: Tensor) -> Tensor:
        """`[n, dim_in] -> [n, sum of the parts' widths]`."""
        parts = zip(self.maps, self.shares, strict=True)
        return torch.cat([normalized(part(x)) * math.sqrt(s) for part, s in parts], dim=-1)


@register_map("chain")
class Sequential(nn.Module):
    """`m_2(m_1(x))` and so on.

    Args:
        maps: applied in this order.

    >>> Sequential(Normalize(), Identity(2))(torch.tensor([[3.0, 4.0]]))
    tensor([[0.6000, 0.8000]])
    """

    def __init__(self, *maps: nn.Module) -> None:
        super().__init__()
        self.maps = nn.ModuleList(maps)

    def forward(self, x: Tensor) -> Tensor:
        """`[n, dim_in] -> [n, dim of the last]`."""
        for part in self.maps:
            x = part(x)
        return x


@register_map("unit")
class Normalize(nn.Module):
    """`x / |x|` as a map, for use between two others."""

    def forward(self, x: Tensor) -> Tensor:
        """`[n, D] -> [n, D]`."""
        return normalized(x)
