"""Make the encoder of a store again, from what the store's manifest says of it.

A manifest may come from another person. So it names one of the package's own encoders by its short
name, and gives plain values for the arguments in `ARGUMENTS`, never a class to import.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gera_lightning.encoders.base import Encoder
from gera_lightning.utils.errors import UserError
from gera_lightning.utils.instantiate import build


@dataclass(frozen=True)
class _Kind:
    """An encoder class: what it encodes, and which arguments a manifest has.

    Attributes:
        modality: `text`, `audio` or `image`.
        source: the argument that says where the weights are: the manifest's `name` by default.
        arguments: keys of the manifest that are arguments of the same name.
    """

    modality: str
    source: str
    arguments: tuple[str, ...]


ARGUMENTS = {
    "text": _Kind(
        "text", "checkpoint", ("layer", "pooling", "normalize", "max_tokens", "prefix", "name")
    ),
    "speech": _Kind(
        "audio", "checkpoint", ("layer", "normalize", "max_seconds", "context", "name")
    ),
    "image": _Kind("image", "checkpoint", ("layer", "pooling", "normalize", "name")),
    "torchaudio": _Kind("audio", "bundle", ("layer", "normalize", "max_seconds")),
    "efficientnet_lite": _Kind("image", "variant", ()),
}
PREFIXES = {"torchaudio": "torchaudio/", "efficientnet_lite": "efficientnet-"}
"""What stands in a manifest's `name` before the argument."""


def encoded_modality(description: Mapping[str, Any]) -> str | None:
    """What an encoder encodes, `text`, `audio` or `image`; None for a class that is not ours.

    >>> encoded_modality({"class": "speech", "name": "openai/whisper-base"})
    'audio'
    """
    kind = ARGUMENTS.get(str(description.get("class")))
    return None if kind is None else kind.modality


def side_that_takes(encoders: Mapping[str, Mapping[str, Any]], modality: str) -> str | None:
    """The first side whose encoder, by its description, encodes `text`, `audio` or `image`."""
    return next((s for s, about in encoders.items() if encoded_modality(about) == modality), None)


def none_takes(
    encoders: Mapping[str, Mapping[str, Any]], names: Mapping[str, str], modality: str
) -> str:
    """Says that no side's encoder takes a modality, and which encoders there are."""
    known = (
        f"{names[side]} by {about.get('name') or 'an encoder that is not recorded'}"
        for side, about in encoders.items()
    )
    return f"no encoder takes {modality} ({', '.join(known)})"


def rebuild_encoder(description: Mapping[str, Any], source: str = "") -> Encoder:
    """The encoder that a manifest describes.

    Args:
        description: `encoder` of a manifest, or what `Encoder.describe` gave.
        source: where its weights are, a hub name, a folder or `package:MODULE/FOLDER`; by default
            the name that the manifest gives, which is that of the hub where it was not a folder.

    Raises:
        UserError: an encoder of another class, or weights that cannot be loaded.
    """
    name = str(description.get("class"))
    kind, given = ARGUMENTS.get(name), str(description.get("name", ""))
    if kind is None:
        raise UserError(
            f"the encoder {given!r} is none of the package's own, and cannot be made from a store",
            remedy="encode the query yourself and call Aligner.search",
        )
    arguments = {key: description[key] for key in kind.arguments if key in description}
    arguments[kind.source] = source or given.removeprefix(PREFIXES.get(name, ""))
    made: Encoder = build({"class": name, **arguments}, "encoder")
    return made
