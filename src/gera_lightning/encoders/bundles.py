"""The self-supervised bundles of torchaudio (wav2vec 2.0, HuBERT, WavLM) as audio encoders.

Legend: `n` utterances, `S` samples, `L` layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gera_lightning.encoders.base import Inputs, check_batch_size
from gera_lightning.encoders.layers import Layer, Layers
from gera_lightning.encoders.loading import guarded
from gera_lightning.encoders.waves import AudioEncoder, padded, receptive_field
from gera_lightning.utils.errors import UserError, did_you_mean
from gera_lightning.utils.instantiate import register


@register("torchaudio")
class TorchaudioEncoder(AudioEncoder):
    """A self-supervised bundle of `torchaudio.pipelines` as a frozen encoder of mono audio arrays
    at `sample_rate`.

    Args:
        bundle: its name, such as `HUBERT_BASE` or `WAVLM_BASE_PLUS`.
        layer: as of `speech.SpeechEncoder`, from 1; without the network's final norm.
        normalize: L2-normalise the rows.
        max_seconds: longer audio is cut.
        batch_size: utterances a forward pass.
        device: torch device.

    Raises:
        UserError: no such bundle, its weights cannot be had, or a layer it does not have.
    """

    def __init__(
        self,
        bundle: str,
        *,
        layer: Layer = -1,
        normalize: bool = False,
        max_seconds: float | None = 30.0,
        batch_size: int = 16,
        device: str = "cpu",
    ) -> None:
        from torchaudio import pipelines

        known = [
            name
            for name in dir(pipelines)
            if isinstance(getattr(pipelines, name), pipelines.Wav2Vec2Bundle)
        ]
        if bundle not in known:
            raise UserError(
                f"bundle={bundle!r} is not one of torchaudio.pipelines{did_you_mean(bundle, known)}"
            )
        found: Any = getattr(pipelines, bundle)
        model = guarded(
            "its weights",
            bundle,
            lambda: found.get_model(dl_kwargs={"weights_only": True, "progress": False}),
        )
        self._normalize_wave = bool(found._normalize_waveform)
        network: Any = (
            model.model if hasattr(model, "normalize_waveform") else model
        )  # its wrapper normalises over the whole batch
        self.layers = Layers.of(layer, int(found._params["encoder_num_layers"]), first=1)
        convolutions = network.feature_extractor.conv_layers
        self._shortest = receptive_field(
            [c.kernel_size for c in convolutions], [c.stride for c in convolutions]
        )
        self._alone = found._model_type == "WavLM"  # whose attention takes no mask
        self._grouped = found._params["extractor_mode"] == "group_norm"
        self.model = network.eval().to(device)
        self.name, self.revision = f"torchaudio/{bundle}", str(found._path)
        self.dim, self.sample_rate = int(found._params["encoder_embed_dim"]), int(found.sample_rate)
        self.pooling = "mean of the frames"
        self.preprocessing = (
            "mono, the utterance at zero mean and unit variance" if self._normalize_wave else "mono"
        )
        self.normalize, self.max_seconds, self.batch_size = (
            normalize,
            max_seconds,
            check_batch_size(batch_size),
        )

    def prepare(self, items: Sequence[np.ndarray]) -> Inputs:
        """Waves and their lengths."""
        waves = self.cut(items)
        if self._normalize_wave:
            waves = [
                nn.functional.layer_norm(torch.from_numpy(wave), wave.shape).numpy()
                for wave in waves
            ]
        return padded(waves, self._shortest)

    def pooled(self, inputs: Inputs) -> Tensor:
        """Rows `[n, dim]`, or `[n, L, dim]`, of prepared waves."""
        network: Any = self.model
        waves, lengths = inputs["waves"], inputs["lengths"]
        if self._alone:
            lone = [
                wave[None, :length] for wave, length in zip(waves, lengths.tolist(), strict=True)
            ]
            return torch.cat([self._pooled_alone(wave) for wave in lone])
        if self._grouped:
            parts = [
                network.feature_extractor(wave[None, :length], None)[0][0]
                for wave, length in zip(waves, lengths.tolist(), strict=True)
            ]
            frames = torch.tensor([len(part) for part in parts], device=waves.device)
            features = nn.utils.rnn.pad_sequence(parts, batch_first=True)
        else:
            features, frames = network.feature_extractor(waves, lengths)
        states = self._chosen(
            network.encoder.extract_features(features, frames, self.layers.chosen[-1])
        )
        return self.pool(
            states, torch.arange(states[0].shape[1], device=waves.device) < frames.unsqueeze(1)
        )

    def _pooled_alone(self, wave: Tensor) -> Tensor:
        """The row `[1, dim]`, or `[1, L, dim]`, of one unpadded wave `[1, S]`."""
        network: Any = self.model
        states = self._chosen(network.extract_features(wave, None, self.layers.chosen[-1])[0])
        return self.pool(states, torch.ones(states[0].shape[:2], device=wave.device))

    def _chosen(self, outputs: Sequence[Tensor]) -> list[Tensor]:
        """Of the outputs of layers 1, 2, ... those that make rows."""
        return [outputs[number - 1] for number in self.layers.chosen]
