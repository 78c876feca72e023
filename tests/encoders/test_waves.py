from __future__ import annotations

import numpy as np
import pytest
import torch

from gera_lightning.encoders.waves import frame_counts, receptive_field


@pytest.mark.parametrize(
    ("kernels", "strides"),
    [((10, 8, 4), (5, 4, 4)), ((10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2))],
)
def test_receptive_field_is_the_shortest_audio_with_a_frame(kernels, strides):
    field = receptive_field(kernels, strides)
    lengths = torch.tensor([field - 1, field, field + int(np.prod(strides))])
    assert frame_counts(lengths, kernels, strides).tolist() == [0, 1, 2]
    stack = torch.nn.Sequential(
        *(torch.nn.Conv1d(1, 1, k, s) for k, s in zip(kernels, strides, strict=True))
    )
    assert [stack(torch.zeros(1, 1, int(n))).shape[2] for n in lengths[1:]] == [1, 2]
