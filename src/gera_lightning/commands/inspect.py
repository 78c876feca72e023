"""Show what a store holds.

gera inspect STORE [examples=3 neighbors=3]
"""

from __future__ import annotations

from collections.abc import Sequence

from gera_lightning.config.overrides import parse_kwargs
from gera_lightning.data.inspection import inspect_store
from gera_lightning.utils.errors import UserError

inspect = inspect_store


def run(words: Sequence[str]) -> None:
    """The command line's `gera inspect`."""
    if not words:
        raise UserError(
            "takes the folder of a store",
            key="gera inspect",
            remedy="such as gera inspect data/pictures/text",
        )
    print(inspect(words[0], **parse_kwargs(words[1:], inspect)))
    print(f"next  gera doctor {words[0]} OTHER_STORE   whether the two can be aligned")
