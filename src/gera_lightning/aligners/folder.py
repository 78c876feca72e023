"""An aligner's two files, written and read: `aligner.json` and `maps.safetensors`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from gera_lightning.utils.errors import UserError
from gera_lightning.utils.files import read_bounded, replace_atomically
from gera_lightning.utils.version import package_version

FORMAT = "gera-aligner"
VERSION = 1


def write_folder(folder: Path, record: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    """Write an aligner's folder; each file appears whole or not at all.

    Args:
        folder: made where it is missing.
        record: what `aligner.json` says, beside format, versions and the weights' checksum.
        weights: what `maps.safetensors` holds.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # a clone each: safetensors refuses tensors that share memory, as those of a map used on both
    # sides do
    written = safetensors.torch.save(
        {name: values.detach().cpu().contiguous().clone() for name, values in weights.items()}
    )
    head = {"format": FORMAT, "version": VERSION, "library": package_version()}
    # the checksum tells whether both files were written: the process may be killed between them
    whole = {**head, **record, "maps_sha256": hashlib.sha256(written).hexdigest()}
    text = json.dumps(whole, indent=1, ensure_ascii=False, default=str) + "\n"
    replace_atomically(folder / "maps.safetensors", written)
    replace_atomically(folder / "aligner.json", text.encode())


def read_folder(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The record and the weights of an aligner's folder, checked to belong together.

    Raises:
        UserError: no aligner there, another format, or damaged files.
    """
    try:
        record = json.loads(read_bounded(folder / "aligner.json"))
        written = (folder / "maps.safetensors").read_bytes()
        weights = safetensors.torch.load(written)
    except FileNotFoundError as error:
        raise UserError(
            f"no aligner at {str(folder)!r} ({Path(error.filename).name} is missing)",
            remedy="give the aligner/ folder of a run, or train that run again with overwrite=true",
        ) from error
    except (ValueError, RecursionError, OSError, safetensors.SafetensorError) as error:
        raise damaged(folder, str(error)) from error
    if not isinstance(record, dict):
        raise damaged(folder, "aligner.json holds no keys")
    if (record.get("format"), record.get("version")) != (FORMAT, VERSION):
        raise UserError(
            f"{folder}: format {record.get('format')!r} version {record.get('version')!r}; this"
            f" version reads {FORMAT!r} version {VERSION}"
        )
    if record.get("maps_sha256", "") not in ("", hashlib.sha256(written).hexdigest()):
        raise damaged(folder, "maps.safetensors is not the one that aligner.json was written with")
    return record, weights


def damaged(folder: Path, reason: str) -> UserError:
    """The error of a folder that cannot be read."""
    return UserError(f"{folder}: the aligner is damaged ({reason})", remedy="train it again")
