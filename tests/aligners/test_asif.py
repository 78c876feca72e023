import numpy as np
import pytest
import torch

from gera_lightning.aligners.asif import ASIF, RelativeMap
from gera_lightning.aligners.base import FitData
from gera_lightning.models.shared_space import SharedSpace


def cloud(n, d, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def slow_relative(x, anchors, kept, power):
    out = np.zeros((len(x), len(anchors)))
    for i, row in enumerate(x):
        cosines = [
            max(0.0, float(row @ a / np.linalg.norm(row) / np.linalg.norm(a))) for a in anchors
        ]
        for j in sorted(range(len(anchors)), key=lambda j: -cosines[j])[:kept]:
            out[i, j] = cosines[j] ** power
    return out


@pytest.mark.parametrize("power", [1.0, 8.0])
@pytest.mark.parametrize("share", [1.0, 0.25])
def test_scores_equal_slow_loops(share, power):
    x_a, x_b = cloud(12, 5), cloud(12, 4, 1)
    [(map_a, map_b)] = ASIF().candidates(
        FitData(x_a, x_b, x_a, x_b), [{"share": share, "power": power}]
    )
    space = SharedSpace(map_a, map_b)
    new_a, new_b = cloud(6, 5, 2), cloud(7, 4, 3)
    kept = round(12 * share)
    r_a, r_b = (
        slow_relative(new_a.numpy(), x_a.numpy(), kept, power),
        slow_relative(new_b.numpy(), x_b.numpy(), kept, power),
    )
    np.testing.assert_allclose(map_a(new_a), r_a, atol=1e-6)
    norm = np.outer(np.linalg.norm(r_a, axis=1), np.linalg.norm(r_b, axis=1))
    np.testing.assert_allclose(
        space.embed("a", new_a) @ space.embed("b", new_b).T, r_a @ r_b.T / norm, atol=1e-5
    )


def test_a_row_that_is_like_no_anchor_becomes_zero_not_nan():
    anchors = torch.tensor([[1.0, 0.0], [0.8, 0.6]])
    space = SharedSpace(RelativeMap(anchors, 2), RelativeMap(anchors, 2))
    assert torch.equal(space.embed("a", torch.tensor([[-1.0, 0.0]])), torch.zeros(1, 2))


def test_at_least_one_entry_is_kept_and_never_more_than_there_are():
    x_a, x_b = cloud(3, 5), cloud(3, 4, 1)
    [(map_a, _)] = ASIF().candidates(FitData(x_a, x_b, x_a, x_b), [{"share": 0.01, "power": 1.0}])
    assert map_a.kept == 1
    assert RelativeMap(x_a, 50).kept == 3


def test_settings_are_the_grid_smallest_power_first():
    settings = ASIF(shares=(1.0, 0.25), powers=(1.0, 2.0, 4.0, 8.0)).settings(8, 100)
    assert [(s["power"], s["share"]) for s in settings] == [
        (p, s) for p in (1, 2, 4, 8) for s in (1, 0.25)
    ]
    assert len(ASIF().settings(3, 100)) == 3
