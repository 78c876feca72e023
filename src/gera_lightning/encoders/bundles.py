"""Audio encoders of torchaudio: its self-supervised bundles (wav2vec 2.0, HuBERT, WavLM).

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
from gera_lightning.encoders.loading import load_or_explain
from gera_lightning.encoders.waves import AudioEncoder, pad_waves, receptive_field
from gera_lightning.utils.errors import UserError, did_you_mean
from gera_lightning.utils.instantiate import register


@register("torchaudio")
class TorchaudioEncoder(AudioEncoder):
    """A bundle of `torchaudio.pipelines` as a frozen encoder of mono audio arrays.

    Args:
        bundle: name of a self-supervised bundle, such as `HUBERT_BASE` or `WAVLM_BASE_PLUS`.
        layer: as in `speech.SpeechEncoder`, from 1; the last without the network's final norm.
        normalize: L2-normalise the rows.
        max_seconds: longer audio is cut.
        batch_size: utterances per forward pass.
        device: torch device.

    Raises:
        UserError: no such bundle, weights that cannot be loaded, or a layer it does not have.

    Example::

        encoder = TorchaudioEncoder("HUBERT_BASE", layer=9)
        rows = encoder.encode([read_audio("7.wav", encoder.sample_rate)])  # [1, 768]
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
                f"is not one of torchaudio.pipelines{did_you_mean(bundle, known)}",
                key="bundle",
                value=bundle,
            )
        found: Any = getattr(pipelines, bundle)
        model = load_or_explain(
            "its weights",
            bundle,
            lambda: found.get_model(dl_kwargs={"weights_only": True, "progress": False}),
            hub=False,
        )
        self._normalize_wave = bool(found._normalize_waveform)
        # the wrapper of some bundles normalises over the whole batch: use the network inside it
        network: Any = model.model if hasattr(model, "normalize_waveform") else model
        self.layers = Layers.of(layer, int(found._params["encoder_num_layers"]), first=1)
        convolutions = network.feature_extractor.conv_layers
        self._shortest = receptive_field(
            [c.kernel_size for c in convolutions], [c.stride for c in convolutions]
        )
        self._takes_no_mask = found._model_type == "WavLM"
        self._normalizes_over_time = found._params["extractor_mode"] == "group_norm"
        self.model = network.eval().to(device)
        self.name, self.revision = f"torchaudio/{bundle}", str(found._path)
        self.dim, self.sample_rate = int(found._params["encoder_embed_dim"]), int(found.sample_rate)
        self.pooling = "mean of the frames"
        self.preprocessing = (
            "mono, the utterance at zero mean and unit variance" if self._normalize_wave else "mono"
        )
        self.normalize, self.max_seconds = normalize, max_seconds
        self.batch_size = check_batch_size(batch_size)

    def prepare(self, items: Sequence[np.ndarray]) -> Inputs:
        """Waves and their lengths."""
        waves = self.truncate(items)
        if self._normalize_wave:
            waves = [
                nn.functional.layer_norm(torch.from_numpy(wave), wave.shape).numpy()
                for wave in waves
            ]
        return pad_waves(waves, self._shortest)

    def pooled(self, inputs: Inputs) -> Tensor:
        """Rows `[n, dim]`, or `[n, L, dim]` of several layers."""
        network: Any = self.model
        waves, lengths = inputs["waves"], inputs["lengths"]
        unpadded = [
            wave[None, :length] for wave, length in zip(waves, lengths.tolist(), strict=True)
        ]
        if self._takes_no_mask:
            return torch.cat([self._pooled_alone(wave) for wave in unpadded])
        if self._normalizes_over_time:  # padding would enter the statistics
            each = [network.feature_extractor(wave, None)[0][0] for wave in unpadded]
            frames = torch.tensor([len(features) for features in each], device=waves.device)
            features = nn.utils.rnn.pad_sequence(each, batch_first=True)
        else:
            features, frames = network.feature_extractor(waves, lengths)
        outputs = network.encoder.extract_features(features, frames, self.layers.chosen[-1])
        steps = torch.arange(outputs[0].shape[1], device=waves.device)
        return self.pool(self._chosen(outputs), steps < frames.unsqueeze(1))

    def _pooled_alone(self, wave: Tensor) -> Tensor:
        """The row `[1, dim]`, or `[1, L, dim]`, of one unpadded wave `[1, S]`."""
        network: Any = self.model
        states = self._chosen(network.extract_features(wave, None, self.layers.chosen[-1])[0])
        return self.pool(states, torch.ones(states[0].shape[:2], device=wave.device))

    def _chosen(self, outputs: Sequence[Tensor]) -> list[Tensor]:
        """The outputs of the chosen layers, from those of layers 1, 2, ..."""
        return [outputs[number - 1] for number in self.layers.chosen]
