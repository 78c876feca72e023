"""Bundles of torchaudio with small random networks; every row against the network itself run on one
unpadded utterance.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gera_lightning.encoders.bundles import TorchaudioEncoder
from gera_lightning.utils.errors import UserError

RATE = 16_000


def noises(lengths: tuple[int, ...]) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [
        rng.normal(scale=rng.uniform(0.02, 0.3), size=length).astype(np.float32)
        for length in lengths
    ]


PADDED, UNPADDED = noises((1600, 4000, 900, 2577, 4000)), noises((2400, 2400, 2400))
BUNDLES = ("HUBERT_BASE", "WAV2VEC2_LARGE_LV60K", "WAVLM_BASE")


@pytest.fixture(params=BUNDLES)
def bundle(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A bundle of torchaudio with a small network, its weights already where torch.hub would put
    them.
    """
    from torchaudio import pipelines
    from torchaudio.pipelines._wav2vec2 import utils

    real = getattr(pipelines, request.param)
    params = {
        **real._params,
        "extractor_conv_layer_config": [(8, 10, 5), (8, 8, 4), (8, 4, 4)],
        "encoder_embed_dim": 16,
        "encoder_num_layers": 3,
        "encoder_num_heads": 2,
        "encoder_ff_interm_features": 32,
        "encoder_pos_conv_kernel": 8,
        "encoder_pos_conv_groups": 2,
    }
    small = dataclasses.replace(real, _params=params)
    monkeypatch.setattr(pipelines, request.param, small)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    torch.manual_seed(0)
    network = utils._get_model(small._model_type, params)
    weights = tmp_path / "hub" / "checkpoints" / Path(small._path).name
    weights.parent.mkdir(parents=True)
    torch.save(network.state_dict(), weights)
    return request.param, small, weights


@pytest.mark.parametrize("layer", [1, 3])
def test_a_bundles_rows_are_its_own_in_any_company(bundle, layer: int):
    name, found, _ = bundle
    encoder = TorchaudioEncoder(name, layer=layer)
    assert (encoder.dim, encoder.sample_rate, encoder.name) == (16, RATE, f"torchaudio/{name}")
    model = found.get_model().eval()
    for waves in (PADDED, UNPADDED):
        rows = encoder.encode(waves)
        for wave, row in zip(waves, rows, strict=True):
            with torch.inference_mode():
                states = model.extract_features(torch.from_numpy(wave)[None])[0][layer - 1][
                    0
                ].numpy()
            np.testing.assert_allclose(row, states.mean(0), atol=1e-5)
            np.testing.assert_allclose(row, encoder.encode([wave])[0], atol=1e-5)


def test_a_bundles_layers_are_had_in_one_pass(bundle):
    rows = TorchaudioEncoder(bundle[0], layer="all").encode(PADDED)
    assert rows.shape == (5, 3, 16)
    for layer in (1, 2, 3):
        np.testing.assert_allclose(
            rows[:, layer - 1], TorchaudioEncoder(bundle[0], layer=layer).encode(PADDED), atol=1e-6
        )


def test_a_bundles_pickle_may_hold_weights_only(bundle):
    name, _, weights = bundle
    torch.save({"weight": Path("anything")}, weights)
    with pytest.raises(UserError, match="more than weights"):
        TorchaudioEncoder(name)


def test_an_unknown_bundle_or_layer_is_named(bundle):
    with pytest.raises(UserError, match="did you mean 'HUBERT_BASE'"):
        TorchaudioEncoder("HUBERT_BAES")
    with pytest.raises(UserError, match="layer=0 is not one of 1 to 3"):
        TorchaudioEncoder(bundle[0], layer=0)
