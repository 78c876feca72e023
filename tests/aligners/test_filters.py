import numpy as np
import pytest
import torch

from gera_lightning.aligners.filters import Whitening, fit_filters
from gera_lightning.errors import UserError
from gera_lightning.geometry.diffusion import GraphDiffusion
from gera_lightning.heads import normalized


def pool(n=200, d=6, seed=0):
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x * torch.tensor([5.0, 3.0, 2.0, 1.0, 0.5, 0.2], dtype=torch.float64)


def test_full_whitening_leaves_no_preferred_direction():
    x = pool()
    z = Whitening(power=1.0, floor=1e-9).fit(x)(x)
    c = z.T @ z / len(z)
    torch.testing.assert_close(c / c[0, 0], torch.eye(6, dtype=torch.float64), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("power", "floor"), [(0.5, 1.0), (0.3, 0.1), (-0.4, 1.0)])
def test_whitening_equals_a_slow_matrix_power(power, floor):
    x = pool()
    c = x.numpy().T @ x.numpy() / len(x)
    values, vectors = np.linalg.eigh(c)
    lifted = values + floor * values.mean()
    expected = x.numpy() @ (vectors * (lifted / lifted.max()) ** (-power / 2)) @ vectors.T
    np.testing.assert_allclose(Whitening(power, floor).fit(x)(x).detach(), expected, rtol=1e-6)


def test_power_zero_changes_nothing():
    torch.testing.assert_close(Whitening(power=0.0).fit(pool())(pool()), pool())


def test_filters_follow_each_other_each_on_the_last_ones_pool():
    x = normalized(pool())
    mapping, filtered = fit_filters([Whitening(), GraphDiffusion(k=5)], x)
    white = normalized(Whitening().fit(x)(x))
    torch.testing.assert_close(filtered, normalized(GraphDiffusion(k=5).fit(white)(white)))
    torch.testing.assert_close(mapping(x), filtered)
    new = normalized(pool(9, seed=1))
    torch.testing.assert_close(mapping(new), normalized(GraphDiffusion(k=5).fit(white)(normalized(Whitening().fit(x)(new)))))


def test_no_filter_is_the_identity():
    mapping, filtered = fit_filters([], pool())
    assert filtered is not None
    torch.testing.assert_close(filtered, pool())
    torch.testing.assert_close(mapping(pool(3, seed=2)), pool(3, seed=2))


def test_a_floor_of_nothing_is_refused():
    with pytest.raises(UserError, match="floor=0"):
        Whitening(floor=0.0)
