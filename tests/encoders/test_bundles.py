"""Bundles of torchaudio with small random networks: every row against the network itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from gera_lightning.encoders.bundles import TorchaudioEncoder
from gera_lightning.utils.errors import UserError

BUNDLES = ("HUBERT_BASE", "WAV2VEC2_LARGE_LV60K", "WAVLM_BASE")


def noises(*lengths: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    scales = rng.uniform(0.02, 0.3, len(lengths))
    return [
        rng.normal(scale=scale, size=length).astype(np.float32)
        for scale, length in zip(scales, lengths, strict=True)
    ]


@pytest.mark.parametrize("layer", [1, 3])
@pytest.mark.parametrize("name", BUNDLES)
def test_a_bundles_rows_are_its_own(bundles: dict[str, Path], name: str, layer: int):
    from torchaudio import pipelines

    encoder = TorchaudioEncoder(name, layer=layer)
    assert (encoder.dim, encoder.sample_rate) == (16, 16_000)
    assert encoder.name == f"torchaudio/{name}"
    model = getattr(pipelines, name).get_model().eval()
    for waves in (noises(1600, 4000, 900, 2577, 4000), noises(2400, 2400, 2400)):
        for wave, row in zip(waves, encoder.encode(waves), strict=True):
            with torch.inference_mode():
                states = model.extract_features(torch.from_numpy(wave)[None])[0][layer - 1]
            np.testing.assert_allclose(row, states[0].numpy().mean(0), atol=1e-5)


def test_a_bundles_pickle_may_hold_weights_only(bundles: dict[str, Path]):
    weights = bundles["HUBERT_BASE"]
    whole = weights.read_bytes()
    torch.save({"weight": Path("anything")}, weights)
    try:
        with pytest.raises(UserError) as caught:
            TorchaudioEncoder("HUBERT_BASE")
    finally:
        weights.write_bytes(whole)
    assert "safetensors" in caught.value.remedy


def test_an_unknown_bundle_or_layer_is_named(bundles: dict[str, Path]):
    with pytest.raises(UserError, match="'HUBERT_BASE'") as caught:
        TorchaudioEncoder("HUBERT_BAES")
    assert (caught.value.key, caught.value.value) == ("bundle", "HUBERT_BAES")
    with pytest.raises(UserError) as caught:
        TorchaudioEncoder("HUBERT_BASE", layer=0)  # the first transformer layer is 1
    assert (caught.value.key, caught.value.value) == ("layer", 0)
