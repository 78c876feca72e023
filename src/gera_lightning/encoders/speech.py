"""Audio encoders of `transformers`: wav2vec 2.0, HuBERT, WavLM and the like, Whisper, CLAP.

A row is the mean of an utterance's own frames of a layer.

Legend: `n` utterances, `S` samples, `C` channels, `T` frames, `L` layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gera_lightning.encoders.base import Inputs, check_batch_size
from gera_lightning.encoders.layers import Layer, Layers
from gera_lightning.encoders.loading import (
    Checkpoint,
    checkpoint_folder,
    load_model,
    load_or_explain,
    revision_of,
)
from gera_lightning.encoders.waves import AudioEncoder, frame_counts, pad_waves, receptive_field
from gera_lightning.utils.errors import UserError
from gera_lightning.utils.instantiate import register

CONTEXT_STEP = 0.5
"""Whisper reads sounds of lengths that are multiples of these seconds, where it does not read 30 s:
so that batches hold several of one length.
"""
FAMILIES = "wav2vec 2.0, HuBERT, WavLM, Whisper or CLAP"


class UnpaddedFrontEnd(nn.Module):
    """Runs a convolutional front end on the samples of each utterance, and pads their frames.

    Needed where the front end normalises over time (`group` norm): with padded samples the padding
    would enter the statistics.

    Args:
        front: `[1, S] -> [1, C, T]`.

    Attributes:
        lengths: samples of each utterance of the next batch; set it before a forward pass.
    """

    def __init__(self, front: nn.Module) -> None:
        super().__init__()
        self.front = front
        self.lengths: list[int] = []

    def forward(self, waves: Tensor) -> Tensor:
        """`[n, S] -> [n, C, T]`, the frames of each utterance without its padding."""
        frames = [
            self.front(wave[None, :length])[0].T
            for wave, length in zip(waves, self.lengths, strict=True)
        ]
        return nn.utils.rnn.pad_sequence(frames, batch_first=True).transpose(1, 2)


class _Wav2Vec:
    """wav2vec 2.0 and the like: samples in, convolutions, transformer."""

    preprocessing = "the utterance at zero mean and unit variance where the checkpoint asks for it"

    def __init__(self, model: Any, extractor: Any) -> None:
        self.model, self.extractor, config = model, extractor, model.config
        self.dim, self.last = int(config.hidden_size), int(config.num_hidden_layers)
        self.shortest = receptive_field(config.conv_kernel, config.conv_stride)
        self.max_seconds: float | None = None
        # the adapter of some speech-recognition checkpoints shortens the last layer's frames
        model.adapter = None
        self.front: UnpaddedFrontEnd | None = None
        if getattr(config, "feat_extract_norm", "group") == "group":
            self.front = model.feature_extractor = UnpaddedFrontEnd(model.feature_extractor)

    def prepare(self, waves: Sequence[np.ndarray]) -> Inputs:
        rate = self.extractor.sampling_rate
        values = [
            np.asarray(
                self.extractor(wave, sampling_rate=rate)["input_values"][0], dtype=np.float32
            )
            for wave in waves
        ]
        return pad_waves(values, self.shortest)

    def states(self, inputs: Inputs, layers: Layers) -> tuple[list[Tensor], Tensor]:
        waves, lengths = inputs["waves"], inputs["lengths"]
        if self.front is not None:
            self.front.lengths = lengths.tolist()
        mask = _first(lengths, waves.shape[1]).long()
        out = self.model(
            waves, attention_mask=mask, output_hidden_states=layers.needs_hidden_states
        )
        states, config = layers.states(out), self.model.config
        frames = frame_counts(lengths, config.conv_kernel, config.conv_stride)
        return states, _first(frames, states[0].shape[1])


class _Whisper:
    """Whisper's encoder: it reads 30 s, or the sound with some silence behind it; only the
    utterance's own frames are pooled.
    """

    def __init__(self, model: Any, extractor: Any, context: float | None) -> None:
        self.model, self.extractor = model.get_encoder(), extractor
        self.dim, self.last = int(model.config.d_model), int(model.config.encoder_layers)
        self.max_seconds: float | None = extractor.n_samples / extractor.sampling_rate
        self.context = context
        self.preprocessing = (
            "log-mel, padded to 30 s"
            if context is None
            else f"log-mel, padded by {context:g} s or more, to a multiple of {CONTEXT_STEP:g} s"
        )
        self.hop = 2 * extractor.hop_length  # the second convolution halves the rate

    def prepare(self, waves: Sequence[np.ndarray]) -> Inputs:
        rate = self.extractor.sampling_rate
        mels = self.extractor(list(waves), sampling_rate=rate, return_tensors="pt")[
            "input_features"
        ]
        inputs = {"mels": mels, "lengths": torch.tensor([len(wave) for wave in waves])}
        if self.context is None:
            return inputs
        seconds = inputs["lengths"] / rate + self.context
        read = (seconds / CONTEXT_STEP).ceil().clamp(min=1) * CONTEXT_STEP
        frames = (read * rate / self.hop).round().long().clamp(max=mels.shape[2] // 2)
        return {**inputs, "mels": mels[:, :, : 2 * int(frames.max())], "read": frames}

    def states(self, inputs: Inputs, layers: Layers) -> tuple[list[Tensor], Tensor]:
        mels = inputs["mels"]
        if self.context is None:
            states = self._forward(mels, layers)
        else:  # those of one length at a time, so that a row does not depend on its batch
            states = []
            for frames in inputs["read"].unique().tolist():
                members = (inputs["read"] == frames).nonzero()[:, 0]
                found = self._forward(mels[members, :, : 2 * frames], layers)
                states = states or [
                    part.new_zeros(len(mels), mels.shape[2] // 2, part.shape[2]) for part in found
                ]
                for whole, part in zip(states, found, strict=True):
                    whole[members, :frames] = part
        own = torch.div(inputs["lengths"] + self.hop - 1, self.hop, rounding_mode="floor")
        return states, _first(own.clamp(min=1), states[0].shape[1])

    def _forward(self, mels: Tensor, layers: Layers) -> list[Tensor]:
        """States of mels of one length; the network's positions end where they do."""
        config, positions, length = (
            self.model.config,
            self.model.embed_positions,
            mels.shape[2] // 2,
        )
        longest = config.max_source_positions
        try:
            if length < longest:
                config.max_source_positions = length
                self.model.embed_positions = nn.Embedding.from_pretrained(positions.weight[:length])
            out = self.model(mels, output_hidden_states=layers.needs_hidden_states)
        finally:
            config.max_source_positions, self.model.embed_positions = longest, positions
        return layers.states(out)


class _Clap:
    """CLAP's audio tower: it reads 10 s, a shorter sound repeatedly, and pools by itself."""

    preprocessing = "log-mel, repeated and padded to the network's length"

    def __init__(self, model: Any, extractor: Any) -> None:
        self.model, self.extractor = getattr(model, "audio_model", model), extractor
        self.dim, self.last = int(self.model.config.hidden_size), 0
        # the extractor crops longer sounds at random, so they are cut before
        self.max_seconds: float | None = extractor.nb_max_samples / extractor.sampling_rate

    def prepare(self, waves: Sequence[np.ndarray]) -> Inputs:
        rate = self.extractor.sampling_rate
        features = self.extractor(list(waves), sampling_rate=rate, return_tensors="pt")
        return {"mels": features["input_features"].float()}

    def states(self, inputs: Inputs, layers: Layers) -> tuple[list[Tensor], Tensor]:  # noqa: ARG002
        mels = inputs["mels"]
        # the extractor's own `is_longer` marks a sound at random where none is longer
        is_longer = torch.zeros(len(mels), 1, dtype=torch.bool, device=mels.device)
        rows = self.model(input_features=mels, is_longer=is_longer).pooler_output
        return [rows.unsqueeze(1)], torch.ones(len(rows), 1, device=rows.device)


def _first(counts: Tensor, length: int) -> Tensor:
    """Mask `[n, length]` of the first `counts` `[n]` steps."""
    return torch.arange(length, device=counts.device) < counts.unsqueeze(1)


def _adapt(
    model: Any, extractor: Any, checkpoint: Checkpoint, context: float | None
) -> _Wav2Vec | _Whisper | _Clap:
    """The network behind the one interface that `SpeechEncoder` uses."""
    kind = str(model.config.model_type)
    if context is not None and (kind != "whisper" or context < 0):
        problem = "must be 0 or more" if kind == "whisper" else "is an option of Whisper alone"
        raise UserError(problem, key="context", value=context, remedy="leave it out")
    if kind == "whisper":
        return _Whisper(model, extractor, context)
    if kind.startswith("clap"):
        return _Clap(model, extractor)
    if hasattr(model, "feature_extractor") and hasattr(model.config, "conv_kernel"):
        return _Wav2Vec(model, extractor)
    raise UserError(
        f"is a {type(model).__name__}, not one of {FAMILIES}",
        key="checkpoint",
        value=str(checkpoint),
    )


@register("speech")
class SpeechEncoder(AudioEncoder):
    """A `transformers` audio model as a frozen encoder of mono audio arrays at `sample_rate`.

    Args:
        checkpoint: hub name, local folder or `package:MODULE/FOLDER`.
        name: name in the store's manifest; the checkpoint's own by default.
        layer: layer whose frames are averaged: a number, -1, several `[6, 9, 12]` or `all`, see
            `encoders.layers`; CLAP has only -1.
        normalize: L2-normalise the rows.
        max_seconds: longer audio is cut; never more than Whisper's 30 s and CLAP's 10 s.
        context: seconds of silence that Whisper reads behind a sound; by default up to its 30 s. A
            short one is many times as fast, and changes the rows a little.
        batch_size: utterances per forward pass.
        revision: hub revision.
        trust_remote_code: run code that the checkpoint brings.
        device: torch device.

    Raises:
        UserError: a checkpoint that cannot be loaded or is of another kind, or a layer it does not
            have.

    Example::

        encoder = SpeechEncoder("facebook/hubert-base-ls960", layer=9)
        rows = encoder.encode([read_audio("7.wav", encoder.sample_rate)])  # [1, 768]
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        name: str | None = None,
        layer: Layer = -1,
        normalize: bool = False,
        max_seconds: float | None = 30.0,
        context: float | None = None,
        batch_size: int = 16,
        revision: str | None = None,
        trust_remote_code: bool = False,
        device: str = "cpu",
    ) -> None:
        from transformers import AutoFeatureExtractor

        given_name, checkpoint = str(checkpoint), checkpoint_folder(checkpoint)
        model: Any = load_model(checkpoint, revision=revision, trust_remote_code=trust_remote_code)
        extractor = load_or_explain(
            "its feature extractor",
            checkpoint,
            lambda: AutoFeatureExtractor.from_pretrained(
                checkpoint, revision=revision, trust_remote_code=trust_remote_code
            ),
        )
        self._network = _adapt(model, extractor, checkpoint, context)
        self.model = self._network.model.to(device)
        self.layers = Layers.of(layer, self._network.last)
        self.name = name or given_name
        self.revision = revision_of(checkpoint, model.config, revision)
        self.dim, self.sample_rate = self._network.dim, int(extractor.sampling_rate)
        limits = (max_seconds, self._network.max_seconds)
        self.max_seconds = min((limit for limit in limits if limit is not None), default=None)
        self.pooling = (
            "the network's own" if isinstance(self._network, _Clap) else "mean of the frames"
        )
        self.preprocessing = f"mono, {self._network.preprocessing}"
        self.normalize, self.batch_size = normalize, check_batch_size(batch_size)
        self.context = context

    def settings(self) -> Mapping[str, Any]:
        """The other settings that change the rows."""
        known = {} if self.context is None else {"context": self.context}
        return {**super().settings(), **known}

    def prepare(self, items: Sequence[np.ndarray]) -> Inputs:
        """Inputs of the network, from waves `[S]`."""
        return self._network.prepare(self.truncate(items))

    def pooled(self, inputs: Inputs) -> Tensor:
        """Rows `[n, dim]`, or `[n, L, dim]` of several layers."""
        return self.pool(*self._network.states(inputs, self.layers))
