"""Text encoders: any `transformers` checkpoint or sentence-transformers folder, pooled over its
tokens.
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
from gera_lightning.encoders.loading import Checkpoint, guarded, load_model, located, revision_of
from gera_lightning.utils.errors import UserError, check_one_of
from gera_lightning.utils.instantiate import register

POOLINGS = ("mean", "cls", "last", "max")
SENTENCE_MODULES = ("Transformer", "Pooling", "Normalize")
POOLING_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_lasttoken": "last",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
}
"""Key of a sentence-transformers pooling module to pooling."""


def pool_tokens(states: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """Pool token states `[n, T, D]` to `[n, D]`, padding (`mask` 0, `[n, T]`) left out.

    `mean` averages the real tokens, `cls` takes the first, `last` the last real one, `max` the
    largest value of each column.
    """
    if pooling == "mean":
        return masked_mean(states, mask)
    if pooling == "cls":
        return states[:, 0]
    if pooling == "last":
        last = (mask * torch.arange(mask.shape[1], device=mask.device)).argmax(1)
        return states[torch.arange(len(states), device=states.device), last]
    if pooling == "max":
        return states.masked_fill(mask.unsqueeze(-1) == 0, -torch.inf).amax(1)
    raise UserError(f"pooling={pooling!r} is not one of {', '.join(POOLINGS)}")


@dataclass(frozen=True)
class SentenceSettings:
    """What a sentence-transformers folder says beside its network.

    Attributes:
        pooling: None where it says nothing.
        normalize: whether it ends in a Normalize module; None outside such a folder.
        max_tokens: longest text; None where it says nothing.
        include_prompt: whether the prefix's tokens are pooled.
    """

    pooling: str | None = None
    normalize: bool | None = None
    max_tokens: int | None = None
    include_prompt: bool = True


def sentence_settings(checkpoint: Checkpoint, revision: str | None = None) -> SentenceSettings:
    """Read `modules.json`, the Pooling module's `config.json` and `sentence_bert_config.json`,
    where the checkpoint has them.

    Raises:
        UserError: a module that is not read here, or a pooling that is not one of `POOLINGS`.
    """
    modules = _optional_json(checkpoint, "modules.json", revision)
    if modules is None:
        return SentenceSettings()
    kinds = {str(module["type"]).rpartition(".")[2]: module["path"] for module in modules}
    strange = [kind for kind in kinds if kind not in SENTENCE_MODULES]
    if strange:
        raise UserError(
            f"checkpoint={str(checkpoint)!r} has a module {strange[0]!r}; only"
            f" {', '.join(SENTENCE_MODULES)} are read"
        )
    pooling = (
        (_optional_json(checkpoint, f"{kinds['Pooling']}/config.json", revision) or {})
        if "Pooling" in kinds
        else {}
    )
    given = pooling.get("pooling_mode")
    modes = (
        [str(given)] if given else [mode for key, mode in POOLING_FLAGS.items() if pooling.get(key)]
    )
    modes = ["last" if mode == "lasttoken" else mode for mode in modes]
    if len(modes) > 1 or any(mode not in POOLINGS for mode in modes):
        raise UserError(
            f"checkpoint={str(checkpoint)!r} pools by {'+'.join(modes)}; one of"
            f" {', '.join(POOLINGS)} is read: set pooling="
        )
    limits = _optional_json(checkpoint, "sentence_bert_config.json", revision) or {}
    return SentenceSettings(
        modes[0] if modes else None,
        "Normalize" in kinds,
        limits.get("max_seq_length"),
        bool(pooling.get("include_prompt", True)),
    )


def _optional_json(checkpoint: Checkpoint, name: str, revision: str | None) -> Any:
    from transformers.utils import cached_file

    if Path(checkpoint).is_dir():
        path = Path(checkpoint) / name
        found = str(path) if path.is_file() else None
    else:
        missing_is_fine = {
            "_raise_exceptions_for_missing_entries": False,
            "_raise_exceptions_for_connection_errors": True,
        }
        found = guarded(
            name,
            checkpoint,
            lambda: cached_file(str(checkpoint), name, revision=revision, **missing_is_fine),
        )
    if found is None:
        return None
    try:
        return json.loads(Path(found).read_text())
    except ValueError as error:
        raise UserError(
            f"{found}: not readable as JSON ({error}): download the checkpoint again"
        ) from error


@register("text")
class TextEncoder(NetworkEncoder):
    """A `transformers` checkpoint as a frozen text encoder.

    Args:
        checkpoint: hub name, local folder or `package:MODULE/FOLDER`; a sentence-transformers
            folder says itself how it pools, normalises and cuts.
        name: how the store's manifest names it; the checkpoint's own name by default.
        layer: whose states are pooled: a number, -1, several `[6, 9, 12]` or `all`, see
            `encoders.layers`.
        pooling: `mean`, `cls`, `last` or `max`; by default the folder's own, else `mean`.
        normalize: L2-normalise the rows; by default as the folder says, else True.
        max_tokens: longer texts are cut; by default the folder's own, else 256.
        prefix: instruction put before each text, such as `"query: "`.
        batch_size: texts a forward pass.
        revision: hub revision.
        trust_remote_code: run code that the checkpoint brings.
        device: torch device.

    Raises:
        UserError: a checkpoint that cannot be loaded, a layer it does not have, or a value that is
            refused.
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

        named, checkpoint = str(checkpoint), located(checkpoint)
        if pooling is not None:
            check_one_of("pooling", pooling, POOLINGS)
        own = (
            sentence_settings(checkpoint, revision)
            if pooling is None or normalize is None or max_tokens is None
            else SentenceSettings()
        )
        self.tokenizer = guarded(
            "its tokenizer",
            checkpoint,
            lambda: AutoTokenizer.from_pretrained(
                checkpoint, revision=revision, trust_remote_code=trust_remote_code
            ),
        )
        # positions count from the left: with padding there, a text's row would depend on its batch
        self.tokenizer.padding_side = "right"
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        model: Any = load_model(checkpoint, revision=revision, trust_remote_code=trust_remote_code)
        self.model = (model.get_encoder() if model.config.is_encoder_decoder else model).to(device)
        self.name = name or named
        self.revision = revision_of(checkpoint, model.config, revision)
        self.dim = int(model.config.hidden_size)
        self.layers = Layers.of(layer, int(model.config.num_hidden_layers))
        self.pooling = pooling or own.pooling or "mean"
        self.normalize = normalize if normalize is not None else own.normalize is not False
        self.max_tokens = max_tokens or own.max_tokens or 256
        self.prefix, self.include_prompt = prefix, own.include_prompt
        self.preprocessing = (
            f"tokens of {type(self.tokenizer).__name__}, the first {self.max_tokens}"
        )
        self.batch_size = check_batch_size(batch_size)

    def settings(self) -> Mapping[str, Any]:
        """What else changes the rows."""
        return {
            "layer": self.layers.record,
            "normalize": self.normalize,
            "max_tokens": self.max_tokens,
            "prefix": self.prefix,
        }

    def size(self, item: str) -> int:
        """Characters."""
        return len(item)

    def prepare(self, items: Sequence[str]) -> Inputs:
        """Token ids and masks `[n, T]`; `pooled_mask` marks the tokens that are pooled."""
        texts = [self.prefix + text for text in items]
        tokens = dict(
            self.tokenizer(
                texts,
                padding=True,
                truncation=True,
                max_length=self.max_tokens,
                return_tensors="pt",
            )
        )
        mask = tokens["attention_mask"]
        if (
            self.prefix and not self.include_prompt
        ):  # the prefix's tokens, and the first special one, are read but not pooled
            prompt = len(self.tokenizer(self.prefix)["input_ids"]) - 1
            kept = mask * (mask.cumsum(1) > prompt)
            mask = torch.where(kept.any(1, keepdim=True), kept, mask)
        return {**tokens, "pooled_mask": mask}

    def pooled(self, inputs: Inputs) -> Tensor:
        """Rows `[n, dim]`, or `[n, L, dim]`, of prepared texts."""
        read = {key: value for key, value in inputs.items() if key != "pooled_mask"}
        out = self.model(**read, output_hidden_states=self.layers.inner)
        rows = self.layers.joined(
            [
                pool_tokens(states.float(), inputs["pooled_mask"], self.pooling)
                for states in self.layers.states(out)
            ]
        )
        return torch.nn.functional.normalize(rows, dim=-1) if self.normalize else rows
