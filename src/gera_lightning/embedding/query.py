"""Encode something new, words, a sound, a picture or a folder of them, as a store's rows were."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gera_lightning.data.store import EmbeddingStore
from gera_lightning.embedding.corpus import SUFFIXES, files_below
from gera_lightning.embedding.reading import Unreadable, read_audio, read_image
from gera_lightning.encoders.base import Encoder
from gera_lightning.encoders.rebuild import encoded_modality, rebuild_encoder
from gera_lightning.utils.errors import UserError

SAME = 0.99
"""Cosine of a store's row and its text encoded anew, from which on the encoder is the store's."""


@dataclass(frozen=True)
class NewItems:
    """Raw items to encode.

    Attributes:
        modality: `text`, `audio` or `image`.
        items: texts, or files.
        names: of each, for a person.
    """

    modality: str
    items: list[str | Path]
    names: list[str]


def new_items(query: str) -> NewItems:
    """What a query stands for: a file, a folder's files (end it with /), else words.

    >>> new_items("a red heart")
    NewItems(modality='text', items=['a red heart'], names=['a red heart'])

    Raises:
        UserError: a folder without sounds, pictures or texts, or the name of a file that is not
            there.
    """
    path = Path(query)
    if os.sep in query and path.is_dir():
        for modality, suffixes in SUFFIXES.items():
            files = files_below(path, suffixes)
            if files:
                return NewItems(modality, list(files), [str(f.relative_to(path)) for f in files])
        raise UserError("holds no sound, picture or text", key="query", value=query)
    for modality, suffixes in SUFFIXES.items():
        if path.name.lower().endswith(suffixes):
            if not path.is_file():
                raise UserError("is no file", key="query", value=query)
            return NewItems(modality, [path], [query])
    return NewItems("text", [query], [query])


def store_encoder(
    description: Mapping[str, Any], source: str, store: EmbeddingStore | None
) -> Encoder:
    """The encoder that a manifest describes.

    Args:
        description, source: as of `rebuild_encoder`.
        store: rows of that encoder; where it has texts, the first is encoded again to check it.

    Raises:
        UserError: as `rebuild_encoder`, or an encoder whose rows are not the store's.
    """
    try:
        encoder = rebuild_encoder(description, source)
    except UserError as error:
        if source:
            raise
        raise UserError(f"{error}, and name it by encoder=FOLDER") from error
    if store is not None:
        _check_encoder(encoder, store)
    return encoder


def encode_new(encoder: Encoder, new: NewItems) -> np.ndarray:
    """Rows `[n, D]` of new items.

    Raises:
        UserError: a file that cannot be read.
    """
    return encoder.encode([_read(item, new.modality, encoder) for item in new.items])


def _read(item: str | Path, modality: str, encoder: Encoder) -> Any:
    if isinstance(item, str):
        return item
    try:
        if modality == "audio":
            longest = getattr(encoder, "max_seconds", None)
            return read_audio(item, getattr(encoder, "sample_rate", 16_000), longest)
        return read_image(item) if modality == "image" else item.read_text(encoding="utf-8")
    except (Unreadable, UnicodeDecodeError) as error:
        raise UserError(f"cannot be read: {error}", key="query", value=str(item)) from error


def _check_encoder(encoder: Encoder, store: EmbeddingStore) -> None:
    """Refuse an encoder that makes another row of the store's first text than the store has."""
    if "text" not in store.rows or encoded_modality(store.encoder) != "text":
        return
    texts = store.rows["text"].fillna("").astype(str)
    number = int((texts.str.len() > 0).to_numpy().argmax())
    if not texts.iloc[number]:
        return
    [fresh], [kept] = encoder.encode([texts.iloc[number]]), store.read([number])
    if fresh.shape == kept.shape:
        norms = np.linalg.norm(fresh) * np.linalg.norm(kept)
        if float(fresh @ kept) >= SAME * float(norms):
            return
    raise UserError(
        f"makes another row of {texts.iloc[number]!r} than {store.path} holds",
        key="encoder",
        value=encoder.name,
        remedy="name the weights that made the store by encoder=FOLDER",
    )
