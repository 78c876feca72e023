"""Arrays of NumPy and torch as the tensors that the mathematics takes, and back.

Legend: `n` rows, `D` width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from gera_lightning.utils.errors import UserError

Array = Tensor | np.ndarray
"""Rows `[n, D]` of real numbers of any type."""


class Rows(Protocol):
    """Float32 rows `[n, D]` that are asked for by number: a tensor, or rows that lie on disk."""

    @property
    def shape(self) -> Sequence[int]:
        """`(n, D)`."""
        ...

    @property
    def device(self) -> torch.device:
        """Where they are once they are asked for."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any, /) -> Tensor:
        """The rows of a slice, of a mask `[n]` or of numbers, as a tensor."""
        ...


def blocks(rows: Rows, size: int) -> Iterator[Tensor]:
    """All rows in order, at most `size` at a time.

    >>> [len(block) for block in blocks(torch.eye(5), 2)]
    [2, 2, 1]
    """
    return (rows[start : start + size] for start in range(0, len(rows), size))


def float_rows(x: Array, name: str = "x", width: int | None = None) -> Tensor:
    """Rows `[n, D]` as a float32 tensor; a tensor stays on its device.

    Args:
        x: a tensor, a NumPy array of any strides and byte order, or what NumPy makes one of.
        name: what a message calls it.
        width: the width that it must have.

    Raises:
        UserError: no array of real numbers, or one of another shape.

    >>> float_rows(np.arange(6).reshape(3, 2)).dtype
    torch.float32
    """
    try:
        rows = _float_tensor(x)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"must be an array of real numbers [rows, width] ({error})", key=name
        ) from error
    check_shape(rows.shape, name, width)
    return rows


def check_shape(
    shape: Sequence[int], name: str, width: int | None = None, remedy: str = ""
) -> None:
    """Refuse what is not `[n, D]`, or of another width.

    Raises:
        UserError: naming the shape.
    """
    if len(shape) != 2 or width not in (None, shape[1]):
        raise UserError(
            f"must be [rows, {width or 'width'}], got shape {tuple(shape)}", key=name, remedy=remedy
        )


def _float_tensor(x: Array) -> Tensor:
    if isinstance(x, Tensor):
        if x.is_complex():
            raise TypeError(f"of type {x.dtype}")
        return x.detach().to(torch.float32)
    rows = np.asarray(x)
    if rows.dtype.kind not in "fiubO":
        raise TypeError(f"of type {rows.dtype}")
    rows = np.ascontiguousarray(rows, dtype=np.float32)
    # torch warns of memory that it may not write to, such as a memory-mapped file's
    return torch.from_numpy(rows if rows.flags.writeable else rows.copy())


def finite_rows(x: Array, name: str = "x", width: int | None = None) -> Tensor:
    """`float_rows`, checked to be finite.

    Raises:
        UserError: as `float_rows`, or a row that is not finite, by its number.
    """
    rows = float_rows(x, name, width)
    bad = (~rows.isfinite().all(1)).nonzero()
    if len(bad):
        raise UserError(f"{name}: row {int(bad[0])} is not finite: embed it again or leave it out")
    return rows


def as_numpy(x: Tensor) -> np.ndarray:
    """A tensor as a contiguous float32 array on the CPU."""
    return np.ascontiguousarray(x.detach().cpu().numpy(), dtype=np.float32)
