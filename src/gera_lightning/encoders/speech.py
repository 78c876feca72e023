"""Audio encoders of `transformers`: wav2vec 2.0, HuBERT, WavLM and their kin, Whisper, CLAP.

Legend: `n` utterances, `S` samples, `C` channels, `T` frames, `L` layers. Rows are means over an
    utterance's own frames of a layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gera_lightning.encoders.base import Inputs, check_batch_size
from gera_lightning.encoders.layers import Layer, Layers
from gera_lightning.encoders.loading import Checkpoint, guarded, load_model, located, revision_of
from gera_lightning.encoders.waves import AudioEncoder, frames_of, padded, receptive_field
from gera_lightning.utils.errors import UserError
from gera_lightning.utils.instantiate import register

FAMILIES = "wav2vec 2.0, HuBERT, WavLM, Whisper or CLAP"


class UnpaddedFront(nn.Module):
    """Runs a convolutional front end on each utterance's own samples, then pads its frames.

    Needed where the front end normalises over time (`group` norm): padding would enter the
    statistics.

    Args:
        front: `[1, S] -> [1, C, T]`.
    """

    def __init__(self, front: nn.Module) -> None:
        super().__init__()
        self.front = front
        self.lengths: list[int] = []

    def forward(self, waves: Tensor) -> Tensor:
        """`[n, S] -> [n, C, T]`; `lengths` holds each utterance's samples."""
        frames = [
            self.front(wave[None, :length])[0].T
            for wave, length in zip(waves, self.lengths, strict=True)
        ]
        return nn.utils.rnn.pad_sequence(frames, batch_first=True).transpose(1, 2)


class _Waves:
    """wav2vec 2.0 and its kin: samples in, convolutions, transformer."""

    words = "the utterance at zero mean and unit variance where the checkpoint asks for it"

    def __init__(self, model: Any, extractor: Any) -> None:
        self.model, self.extractor, config = model, extractor, model.config
        self.dim, self.last = int(config.hidden_size), int(config.num_hidden_layers)
        self.shortest = receptive_field(config.conv_kernel, config.conv_stride)
        self.max_seconds: float | None = None
        model.adapter = (
            None  # some speech-recognition checkpoints shorten the last layer's frames by one
        )
        self.front: UnpaddedFront | None = None
        if getattr(config, "feat_extract_norm", "group") == "group":
            self.front = model.feature_extractor = UnpaddedFront(model.feature_extractor)

    def prepare(self, waves: Sequence[np.ndarray]) -> Inputs:
        rate = self.extractor.sampling_rate
        values = [
            np.asarray(
                self.extractor(wave, sampling_rate=rate)["input_values"][0], dtype=np.float32
            )
            for wave in waves
        ]
        return padded(values, self.shortest)

    def states(self, inputs: Inputs, layers: Layers) -> tuple[list[Tensor], Tensor]:
        waves, lengths = inputs["waves"], inputs["lengths"]
        if self.front is not None:
            self.front.lengths = lengths.tolist()
        mask = (torch.arange(waves.shape[1], device=waves.device) < lengths.unsqueeze(1)).long()
        out = self.model(waves, attention_mask=mask, output_hidden_states=layers.inner)
        states = layers.states(out)
        frames = frames_of(lengths, self.model.config.conv_kernel, self.model.config.conv_stride)
        return states, torch.arange(states[0].shape[1], device=waves.device) < frames.unsqueeze(1)


class _Whisper:
    """Whisper's encoder: log-mel frames of 30 s, whatever the utterance's length; only its own
    frames are pooled.
    """

    words = "log-mel, padded to 30 s"

    def __init__(self, model: Any, extractor: Any) -> None:
        self.model, self.extractor = model.get_encoder(), extractor
        self.dim, self.last = int(model.config.d_model), int(model.config.encoder_layers)
        self.max_seconds: float | None = extractor.n_samples / extractor.sampling_rate

    def prepare(self, waves: Sequence[np.ndarray]) -> Inputs:
        rate = self.extractor.sampling_rate
        mels = self.extractor(list(waves), sampling_rate=rate, return_tensors="pt")[
            "input_features"
        ]
        return {"mels": mels, "lengths": torch.tensor([len(wave) for wave in waves])}

    def states(self, inputs: Inputs, layers: Layers) -> tuple[list[Tensor], Tensor]:
        out = self.model(inputs["mels"], output_hidden_states=layers.inner)
        states = layers.states(out)
        hop = 2 * self.extractor.hop_length  # the second convolution halves the rate
        frames = torch.div(inputs["lengths"] + hop - 1, hop, rounding_mode="floor").clamp(min=1)
        return states, torch.arange(states[0].shape[1], device=frames.device) < frames.unsqueeze(1)


class _Clap:
    """CLAP's audio tower: 10 s of log-mel, repeated where the sound is shorter; the network pools
    by itself.
    """

    words = "log-mel, repeated and padded to the network's length"

    def __init__(self, model: Any, extractor: Any) -> None:
        self.model, self.extractor = getattr(model, "audio_model", model), extractor
        self.dim, self.last = int(self.model.config.hidden_size), 0
        # longer sounds would be cropped at random, so they are cut before
        self.max_seconds: float | None = extractor.nb_max_samples / extractor.sampling_rate

    def prepare(self, waves: Sequence[np.ndarray]) -> Inputs:
        rate = self.extractor.sampling_rate
        return {
            "mels": (
                self.extractor(list(waves), sampling_rate=rate, return_tensors="pt")[
                    "input_features"
                ].float()
            )
        }

    def states(self, inputs: Inputs, layers: Layers) -> tuple[list[Tensor], Tensor]:  # noqa: ARG002
        mels = inputs[
            "mels"
        ]  # `is_longer` of the extractor marks one sound at random where none is longer: not used
        longer = torch.zeros(len(mels), 1, dtype=torch.bool, device=mels.device)
        rows = self.model(input_features=mels, is_longer=longer).pooler_output
        return [rows.unsqueeze(1)], torch.ones(len(rows), 1, device=rows.device)


def _family(model: Any, extractor: Any, checkpoint: Checkpoint) -> _Waves | _Whisper | _Clap:
    kind = str(model.config.model_type)
    if kind == "whisper":
        return _Whisper(model, extractor)
    if kind.startswith("clap"):
        return _Clap(model, extractor)
    if hasattr(model, "feature_extractor") and hasattr(model.config, "conv_kernel"):
        return _Waves(model, extractor)
    raise UserError(
        f"checkpoint={str(checkpoint)!r} is a {type(model).__name__}, not of the kind of {FAMILIES}"
    )


@register("speech")
class SpeechEncoder(AudioEncoder):
    """A `transformers` audio model as a frozen encoder of mono audio arrays at `sample_rate`.

    Args:
        checkpoint: hub name, local folder or `package:MODULE/FOLDER`.
        name: how the store's manifest names it; the checkpoint's own name by default.
        layer: whose frames are averaged: a number, -1, several `[6, 9, 12]` or `all`, see
            `encoders.layers`; CLAP has only -1.
        normalize: L2-normalise the rows.
        max_seconds: longer audio is cut; Whisper (30 s) and CLAP (10 s) cut it themselves.
        batch_size: utterances a forward pass.
        revision: hub revision.
        trust_remote_code: run code that the checkpoint brings.
        device: torch device.

    Raises:
        UserError: a checkpoint that cannot be loaded or is of another kind, or a layer it does not
            have.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        name: str | None = None,
        layer: Layer = -1,
        normalize: bool = False,
        max_seconds: float | None = 30.0,
        batch_size: int = 16,
        revision: str | None = None,
        trust_remote_code: bool = False,
        device: str = "cpu",
    ) -> None:
        from transformers import AutoFeatureExtractor

        named, checkpoint = str(checkpoint), located(checkpoint)
        model: Any = load_model(checkpoint, revision=revision, trust_remote_code=trust_remote_code)
        extractor = guarded(
            "its feature extractor",
            checkpoint,
            lambda: AutoFeatureExtractor.from_pretrained(
                checkpoint, revision=revision, trust_remote_code=trust_remote_code
            ),
        )
        self._network = _family(model, extractor, checkpoint)
        self.model = self._network.model.to(device)
        self.layers = Layers.of(layer, self._network.last)
        self.name = name or named
        self.revision = revision_of(checkpoint, model.config, revision)
        self.dim, self.sample_rate = self._network.dim, int(extractor.sampling_rate)
        limits = [limit for limit in (max_seconds, self._network.max_seconds) if limit is not None]
        self.max_seconds = min(limits) if limits else None
        self.pooling = (
            "the network's own" if isinstance(self._network, _Clap) else "mean of the frames"
        )
        self.preprocessing = f"mono, {self._network.words}"
        self.normalize, self.batch_size = normalize, check_batch_size(batch_size)

    def prepare(self, items: Sequence[np.ndarray]) -> Inputs:
        """The network's inputs of waves `[S]` each."""
        return self._network.prepare(self.cut(items))

    def pooled(self, inputs: Inputs) -> Tensor:
        """Rows `[n, dim]`, or `[n, L, dim]`, of prepared waves."""
        return self.pool(*self._network.states(inputs, self.layers))
