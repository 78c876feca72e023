"""Show what a store holds.

gera inspect STORE [examples=3 neighbors=3]
"""

from __future__ import annotations

from collections.abc import Sequence

from gera_lightning.config.overrides import parse_kwargs
from gera_lightning.data.inspection import inspect_store
from gera_lightning.utils.errors import UserError


def run(words: Sequence[str]) -> None:
    """The command line's `gera inspect`."""
    if not words:
        raise UserError(
            "gera inspect takes the folder of a store, such as: gera inspect data/emoji/text"
        )
    print(inspect_store(words[0], **parse_kwargs(words[1:], inspect_store)))
