"""Maps from a frozen space to the shared one. Every map is an `nn.Module` of plain tensors that an
aligner folder can hold.

Legend: `n` rows, `D_in` frozen width, `D` shared width. Maps return rows that are **not**
    normalised; `normalized` does that.

A map that is registered with `@register_map("kind")` and has a property `settings` (what, with its
weights, rebuilds it) is saved and loaded by kind; a saved artefact never names code to import.
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
    record: Mapping[str, Any], kinds: Mapping[str, type[nn.Module]] | None = None
) -> nn.Module:
    """The map that `describe_map` described, its weights still to be filled in.

    Args:
        record: as from `describe_map`.
        kinds: more kinds than the registered ones: a user's own classes.

    Raises:
        UserError: an unknown kind.
    """
    known = {**MAPS, **(kinds or {})}
    kind = record["kind"]
    if kind not in known:
        raise UserError(
            f"the aligner's map is a {kind!r}, not one of {', '.join(known)}: pass its class,"
            f" load(path, kinds={{{kind!r}: ...}})"
        )
    return known[kind](
        *(build_map(part, kinds) for part in record.get("parts", ())), **record["settings"]
    )


@register_map("linear")
class Linear(nn.Module):
    """`x W`, no bias.

    Args:
        dim_in: frozen width.
        dim: shared width.
        weight: start `[dim_in, dim]`; by default orthogonal rows or columns, drawn from
            `generator`.
        generator: random state of the start.
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
        self.weight = nn.Parameter(
            weight.clone(memory_format=torch.contiguous_format)
        )  # as it will be loaded: same digits

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
            raise UserError(f"hidden={hidden} must be at least 1")
        self.linear = Linear(dim_in, dim, weight=weight, generator=generator)
        self.inner = nn.Parameter(
            torch.randn(dim_in, hidden, generator=generator) * math.sqrt(2 / dim_in)
        )
        self.inner_bias = nn.Parameter(torch.zeros(hidden))
        self.outer = nn.Parameter(torch.zeros(hidden, dim))
        self.dropout = nn.Dropout(dropout)

    @property
    def settings(self) -> dict[str, Any]:
        """What, with the weights, rebuilds this map."""
        return {**self.linear.settings, "hidden": self.inner.shape[1], "dropout": self.dropout.p}

    def forward(self, x: Tensor) -> Tensor:
        """`[n, dim_in] -> [n, dim]`."""
        return (
            self.linear(x)
            + self.dropout(nn.functional.gelu(x @ self.inner + self.inner_bias)) @ self.outer
        )


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
    """`[sqrt(s_1) n(m_1(x)); sqrt(s_2) n(m_2(x)); ...]`: the dot product of two such rows is the
    mean of their parts' cosines.

    Args:
        maps: the parts, each of the same input.
        shares: s, the parts' weights in that mean, scaled to sum to 1; equal by default.
    """

    def __init__(self, *maps: nn.Module, shares: Sequence[float] | None = None) -> None:
        super().__init__()
        self.maps = nn.ModuleList(maps)
        self.shares = _shares(shares, len(maps))

    @property
    def settings(self) -> dict[str, Any]:
        """What, with the parts, rebuilds this map."""
        return {"shares": self.shares}

    def forward(self, x: Tensor) -> Tensor:
        """`[n, dim_in] -> [n, sum of the parts' widths]`."""
        return torch.cat(
            [
                normalized(part(x)) * math.sqrt(share)
                for part, share in zip(self.maps, self.shares, strict=True)
            ],
            dim=-1,
        )


def _shares(shares: Sequence[float] | None, count: int) -> list[float]:
    values = [1.0] * count if shares is None else [float(share) for share in shares]
    if len(values) != count or min(values) <= 0:
        raise ValueError(f"shares={values} must be {count} numbers above 0")
    return [value / sum(values) for value in values]


@register_map("blocks")
class WeightedBlocks(nn.Module):
    """A row's blocks of columns, each brought to the length of its share: `Concat` of what one map
    has computed in one go.

    Args:
        widths: columns of each block; they sum to D.
        shares: as in `Concat`.
    """

    def __init__(self, widths: Sequence[int], shares: Sequence[float] | None = None) -> None:
        super().__init__()
        self.widths = list(widths)
        self.shares = _shares(shares, len(self.widths))

    @property
    def settings(self) -> dict[str, Any]:
        """What rebuilds this map."""
        return {"widths": self.widths, "shares": self.shares}

    def forward(self, x: Tensor) -> Tensor:
        """`[n, D] -> [n, D]`."""
        return torch.cat(
            [
                normalized(b) * math.sqrt(s)
                for b, s in zip(x.split(self.widths, dim=-1), self.shares, strict=True)
            ],
            dim=-1,
        )


@register_map("chain")
class Sequential(nn.Module):
    """`m_2(m_1(x))` and so on.

    Args:
        maps: applied in this order.
    """

    def __init__(self, *maps: nn.Module) -> None:
        super().__init__()
        self.maps = nn.ModuleList(maps)

    def forward(self, x: Tensor) -> Tensor:
        """`[n, dim_in] -> [n, dim of the last]`."""
        for part in self.maps:
            x = part(x)
        return x


@register_map("shift")
class Center(nn.Module):
    """`x - offset`.

    Args:
        offset: `[D]`.
        dim: D, for an empty map that weights are loaded into.
    """

    offset: Tensor

    def __init__(self, offset: Tensor | None = None, *, dim: int | None = None) -> None:
        super().__init__()
        self.register_buffer("offset", torch.zeros(dim or 0) if offset is None else offset)

    @property
    def settings(self) -> dict[str, Any]:
        """What, with the weights, rebuilds this map."""
        return {"dim": len(self.offset)}

    def forward(self, x: Tensor) -> Tensor:
        """`[n, D] -> [n, D]`."""
        return x - self.offset


@register_map("unit")
class Normalize(nn.Module):
    """`x / |x|` as a map, for use between two others."""

    def forward(self, x: Tensor) -> Tensor:
        """`[n, D] -> [n, D]`."""
        return normalized(x)
