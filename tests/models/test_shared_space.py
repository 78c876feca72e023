import numpy as np
import pytest
import torch

from gera_lightning.models.maps import Linear, normalized
from gera_lightning.models.shared_space import CSLS, SharedSpace
from gera_lightning.utils.errors import UserError


def cloud(n, d, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def space(k=3, n_a=20, n_b=15, corrected=True):
    maps = Linear(6, 4, weight=cloud(6, 4, 1)), Linear(5, 4, weight=cloud(5, 4, 2))
    out = SharedSpace(*maps)
    if corrected:
        with torch.no_grad():
            out.correction = CSLS(
                k, pool_a=out.embed("a", cloud(n_a, 6, 3)), pool_b=out.embed("b", cloud(n_b, 5, 4))
            )
    return out.requires_grad_(False)


def scores(s, z_a, z_b):
    return s.queries(z_a) @ s.gallery("b", z_b).T + s.offset("a", z_a)


def slow_csls(z_a, z_b, pool_a, pool_b, k):
    """`cos - (r_B(z_a) + r_A(z_b)) / 2`, one pair after the other."""
    out = np.zeros((len(z_a), len(z_b)))
    for i, u in enumerate(z_a):
        r_b = np.mean(sorted((float(u @ p) for p in pool_b), reverse=True)[:k])
        for j, v in enumerate(z_b):
            r_a = np.mean(sorted((float(v @ p) for p in pool_a), reverse=True)[:k])
            out[i, j] = u @ v - (r_b + r_a) / 2
    return out


@pytest.mark.parametrize("k", [1, 3, 15, 1000])
def test_corrected_scores_equal_slow_loops_both_ways(k):
    s = space(k)
    z_a, z_b = s.embed("a", cloud(7, 6, 5)), s.embed("b", cloud(8, 5, 6))
    slow = slow_csls(
        z_a.numpy(), z_b.numpy(), s.correction.pool_a.numpy(), s.correction.pool_b.numpy(), k
    )
    np.testing.assert_allclose(scores(s, z_a, z_b), slow, atol=1e-6)
    np.testing.assert_allclose(
        s.queries(z_b) @ s.gallery("a", z_a).T + s.offset("b", z_b), slow.T, atol=1e-6
    )


def test_without_correction_scores_are_cosines():
    s = space(corrected=False)
    x_a, x_b = cloud(7, 6, 5), cloud(8, 5, 6)
    z_a, z_b = s.embed("a", x_a), s.embed("b", x_b)
    expected = torch.nn.functional.cosine_similarity(
        (x_a @ s.map_a.weight).unsqueeze(1), (x_b @ s.map_b.weight).unsqueeze(0), dim=2
    )
    torch.testing.assert_close(scores(s, z_a, z_b), expected)
    torch.testing.assert_close(z_a, normalized(z_a))


def test_a_score_does_not_depend_on_other_queries_or_on_the_gallery():
    s = space()
    z_a, z_b = s.embed("a", cloud(7, 6, 5)), s.embed("b", cloud(8, 5, 6))
    torch.testing.assert_close(scores(s, z_a[2:4], z_b[5:6]), scores(s, z_a, z_b)[2:4, 5:6])


def test_a_hub_is_marked_down():
    """Row 0 of b is nearest to every query by cosine, being near to all of the pool; corrected, the
    true partner wins.
    """
    angle = torch.linspace(-0.6, 0.6, 13)
    pool_a = torch.stack([angle.cos(), angle.sin(), torch.zeros(13)], 1)
    hub, partner = torch.tensor([[1.0, 0.0, 0.0]]), normalized(torch.tensor([[0.5, 0.6, 1.0]]))
    query = normalized(torch.tensor([[0.9, 0.5, 0.3]]))
    s = SharedSpace(torch.nn.Identity(), torch.nn.Identity(), CSLS(5, pool_a=pool_a, pool_b=pool_a))
    gallery = torch.cat([hub, partner])
    assert int((query @ gallery.T).argmax()) == 0
    assert int(scores(s, query, gallery).argmax()) == 1


def test_rows_are_taken_in_parts_without_a_trace():
    s = space()
    z = normalized(cloud(4100, 4, 9))
    torch.testing.assert_close(
        s.correction.nearness(z, "a")[-5:], s.correction.nearness(z[-5:], "a")
    )


def test_empty_pools_correct_nothing():
    s = space(n_a=0, n_b=0)
    z_a, z_b = s.embed("a", cloud(7, 6, 5)), s.embed("b", cloud(8, 5, 6))
    torch.testing.assert_close(scores(s, z_a, z_b), z_a @ z_b.T)


@pytest.mark.parametrize(("key", "value"), [("k", 0), ("weight", -1.0)])
def test_an_impossible_correction_is_refused(key, value):
    with pytest.raises(UserError) as error:
        CSLS(**{key: value}, pool_a=torch.zeros(1, 2), pool_b=torch.zeros(1, 2))
    assert (error.value.key, error.value.value) == (key, value)
