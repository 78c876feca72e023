"""Text encoders: any text model of `transformers`, or a sentence-transformers folder.

Legend: `n` texts, `T` tokens, `L` layers, `D` width.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gera_lightning.encoders.base import Inputs, NetworkEncoder, check_batch_size, masked_mean
from gera_lightning.encoders.layers import Layer, Layers
from gera_lightning.encoders.loading import (
    Checkpoint,
    checkpoint_folder,
    load_model,
    load_or_explain,
    revision_of,
)
from gera_lightning.utils.errors import UserError, check_one_of
from gera_lightning.utils.instantiate import register

POOLINGS = ("mean", "cls", "last", "max")
MAX_TOKENS = 256
"""Longest text by default; less for a network with fewer positions."""
SENTENCE_MODULES = ("Transformer", "Pooling", "Normalize")
POOLING_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_lasttoken": "last",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
}
"""Setting of a sentence-transformers pooling module to pooling."""


def pool_tokens(states: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """Pool token states to one row per text.

    Args:
        states: `[n, T, D]`.
        mask: `[n, T]`, 1 for tokens and 0 for padding.
        pooling: `mean` of the tokens, `cls` (the first), `last`, or `max` (the largest value of
            each column).

    Returns:
        Rows `[n, D]`.

    >>> states = torch.tensor([[[1.0], [3.0], [9.0]]])
    >>> pool_tokens(states, torch.tensor([[1, 1, 0]]), "mean")
    tensor([[2.]])
    """
    if pooling == "mean":
        return masked_mean(states, mask)
    if pooling == "cls":
        return states[:, 0]
    if pooling == "last":
        last = (mask * torch.arange(mask.shape[1], device=mask.device)).argmax(1)
        return states[torch.arange(len(states), device=states.device), last]
    return states.masked_fill(mask.unsqueeze(-1) == 0, -torch.inf).amax(1)


@dataclass(frozen=True)
class SentenceSettings:
    """Settings that a sentence-transformers folder has beside its network.

    Attributes:
        pooling: None where there is no such setting.
        normalize: whether it ends in a Normalize module; None in another folder.
        max_tokens: longest text; None where there is no such setting.
        include_prompt: whether the tokens of the prefix are pooled.
    """

    pooling: str | None = None
    normalize: bool | None = None
    max_tokens: int | None = None
    include_prompt: bool = True


def sentence_settings(checkpoint: Checkpoint, revision: str | None = None) -> SentenceSettings:
    """Read the settings of a sentence-transformers folder, if it is one.

    They are in `modules.json`, the Pooling module's `config.json` and `sentence_bert_config.json`.

    Raises:
        UserError: a module that is not supported here, or a pooling that is not one of `POOLINGS`.
    """
    modules = _optional_json(checkpoint, "modules.json", revision)
    if modules is None:
        return SentenceSettings()
    path_of = {str(module["type"]).rpartition(".")[2]: module["path"] for module in modules}
    unsupported = [name for name in path_of if name not in SENTENCE_MODULES]
    if unsupported:
        raise UserError(
            f"has a module {unsupported[0]!r}; only {', '.join(SENTENCE_MODULES)} are supported",
            key="checkpoint",
            value=str(checkpoint),
        )
    config: dict[str, Any] = {}
    if "Pooling" in path_of:
        config = _optional_json(checkpoint, f"{path_of['Pooling']}/config.json", revision) or {}
    limits = _optional_json(checkpoint, "sentence_bert_config.json", revision) or {}
    return SentenceSettings(
        pooling=_pooling_of(config, checkpoint),
        normalize="Normalize" in path_of,
        max_tokens=limits.get("max_seq_length"),
        include_prompt=bool(config.get("include_prompt", True)),
    )


def _pooling_of(config: Mapping[str, Any], checkpoint: Checkpoint) -> str | None:
    """The pooling of a Pooling module: newer ones name it, older ones have a flag for each."""
    named = config.get("pooling_mode")
    flagged = [pooling for flag, pooling in POOLING_FLAGS.items() if config.get(flag)]
    found = [str(named)] if named else flagged
    found = ["last" if pooling == "lasttoken" else pooling for pooling in found]
    if len(found) > 1 or any(pooling not in POOLINGS for pooling in found):
        raise UserError(
            f"pools by {'+'.join(found)}; only one of {', '.join(POOLINGS)} is supported",
            key="checkpoint",
            value=str(checkpoint),
            remedy="set pooling=",
        )
    return found[0] if found else None


def _optional_json(checkpoint: Checkpoint, name: str, revision: str | None) -> Any:
    """Content of a file of the checkpoint; None where it has no such file."""
    from transformers.utils import cached_file

    if Path(checkpoint).is_dir():
        path = Path(checkpoint) / name
        found = str(path) if path.is_file() else None
    else:
        missing_is_fine = {
            "_raise_exceptions_for_missing_entries": False,
            "_raise_exceptions_for_connection_errors": True,
        }
        found = load_or_explain(
            name,
            checkpoint,
            lambda: cached_file(str(checkpoint), name, revision=revision, **missing_is_fine),
        )
    if found is None:
        return None
    try:
        return json.loads(Path(found).read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(
            f"is not readable as JSON ({error})",
            key=str(found),
            remedy="download the checkpoint again",
        ) from error


def _text_tower(model: Any, checkpoint: Checkpoint) -> Any:
    """The text network of a checkpoint: an encoder, or the text tower of two.

    Raises:
        UserError: a network that reads no text.
    """
    if getattr(model.config, "is_encoder_decoder", False):
        tower = model.get_encoder()
    else:
        tower = model.text_model if hasattr(model.config, "text_config") else model
    reads_text = getattr(tower, "main_input_name", "") == "input_ids"
    if not reads_text or not hasattr(tower.config, "hidden_size"):
        raise UserError(
            f"is a {type(model).__name__}, not a network of texts",
            key="checkpoint",
            value=str(checkpoint),
        )
    return tower


@register("text")
class TextEncoder(NetworkEncoder):
    """A `transformers` checkpoint as a frozen text encoder.

    Args:
        checkpoint: hub name, local folder or `package:MODULE/FOLDER`. A sentence-transformers
            folder has its own `pooling`, `normalize` and `max_tokens`, the defaults of those below;
            of CLIP, SigLIP and the like the text tower is taken.
        name: name in the store's manifest; the checkpoint's own by default.
        layer: layer whose states are pooled: a number, -1, several `[6, 9, 12]` or `all`, see
            `encoders.layers`.
        pooling: `mean`, `cls`, `last` or `max`; `mean` by default.
        normalize: L2-normalise the rows; True by default.
        max_tokens: longer texts are cut; 256 by default, never more than the network has positions.
        prefix: instruction before each text, such as `"query: "`.
        batch_size: texts per forward pass.
        revision: hub revision.
        trust_remote_code: run code that the checkpoint brings.
        device: torch device.

    Raises:
        UserError: a checkpoint that cannot be loaded, a layer it does not have, or an unknown
            pooling.

    Example::

        encoder = TextEncoder("intfloat/e5-base-v2", prefix="query: ")
        rows = encoder.encode(["a cat", "a dog"])  # [2, 768], unit rows
    """

    layers: Layers

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        name: str | None = None,
        layer: Layer = -1,
        pooling: str | None = None,
        normalize: bool | None = None,
        max_tokens: int | None = None,
        prefix: str = "",
        batch_size: int = 64,
        revision: str | None = None,
        trust_remote_code: bool = False,
        device: str = "cpu",
    ) -> None:
        from transformers import AutoTokenizer

        given_name, checkpoint = str(checkpoint), checkpoint_folder(checkpoint)
        if pooling is not None:
            check_one_of("pooling", pooling, POOLINGS)
        own = SentenceSettings()
        if None in (pooling, normalize, max_tokens):
            own = sentence_settings(checkpoint, revision)
        self.tokenizer = load_or_explain(
            "its tokenizer",
            checkpoint,
            lambda: AutoTokenizer.from_pretrained(
                checkpoint, revision=revision, trust_remote_code=trust_remote_code
            ),
        )
        # positions count from the left: padding there would make a row depend on its batch
        self.tokenizer.padding_side = "right"
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        model: Any = load_model(checkpoint, revision=revision, trust_remote_code=trust_remote_code)
        self.name = name or given_name
        self.revision = revision_of(checkpoint, model.config, revision)
        model = _text_tower(model, checkpoint)
        self.model, config = model.to(device), model.config
        self.dim = int(config.hidden_size)
        self.layers = Layers.of(layer, int(config.num_hidden_layers))
        self.pooling = pooling or own.pooling or "mean"
        self.normalize = normalize if normalize is not None else own.normalize is not False
        limits = (
            getattr(config, "max_position_embeddings", None),
            self.tokenizer.model_max_length,  # 1e30 where it is not known
            max_tokens or own.max_tokens or MAX_TOKENS,
        )
        self.max_tokens = min(int(limit) for limit in limits if limit)
        self.prefix, self.include_prompt = prefix, own.include_prompt
        self.preprocessing = (
            f"tokens of {type(self.tokenizer).__name__}, the first {self.max_tokens}"
        )
        self.batch_size = check_batch_size(batch_size)

    def settings(self) -> Mapping[str, Any]:
        """The other settings that change the rows."""
        return {
            "layer": self.layers.numbers,
            "normalize": self.normalize,
            "max_tokens": self.max_tokens,
            "prefix": self.prefix,
        }

    def size(self, item: str) -> int:
        """Number of characters."""
        return len(item)

    def prepare(self, items: Sequence[str]) -> Inputs:
        """Token ids and masks `[n, T]`; `pooled_mask` marks the tokens that are pooled."""
        tokens = dict(
            self.tokenizer(
                [self.prefix + text for text in items],
                padding=True,
                truncation=True,
                max_length=self.max_tokens,
                return_tensors="pt",
            )
        )
        mask = tokens["attention_mask"]
        if self.prefix and not self.include_prompt:
            mask = self._without_prefix(mask)
        return {**tokens, "pooled_mask": mask}

    def is_cut(self, items: Sequence[str]) -> list[bool]:
        """Which texts have more than `max_tokens` tokens."""
        texts = [self.prefix + text for text in items]
        tokens = self.tokenizer(texts, return_attention_mask=False, verbose=False)["input_ids"]
        return [len(of_text) > self.max_tokens for of_text in tokens]

    def _without_prefix(self, mask: Tensor) -> Tensor:
        """The mask without the first special token and the tokens of the prefix.

        A text that was cut before the prefix ends keeps all its tokens.
        """
        prefix_tokens = len(self.tokenizer(self.prefix)["input_ids"]) - 1
        behind_prefix = mask * (mask.cumsum(1) > prefix_tokens)
        return torch.where(behind_prefix.any(1, keepdim=True), behind_prefix, mask)

    def pooled(self, inputs: Inputs) -> Tensor:
        """Rows `[n, dim]`, or `[n, L, dim]` of several layers."""
        tokens = {key: value for key, value in inputs.items() if key != "pooled_mask"}
        out = self.model(**tokens, output_hidden_states=self.layers.needs_hidden_states)
        rows = self.layers.stack(
            [
                pool_tokens(states.float(), inputs["pooled_mask"], self.pooling)
                for states in self.layers.states(out)
            ]
        )
        return torch.nn.functional.normalize(rows, dim=-1) if self.normalize else rows
