import numpy as np
import pytest
import torch
from scipy import stats

from gera_lightning.losses.contrastive import positives_of
from gera_lightning.training.mixup import FuseMix, mix, mixed_items
from gera_lightning.utils.errors import UserError

B = 8


def rows(d, seed):
    return torch.randn(B, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_mixing_equals_a_slow_loop():
    x, partner = rows(3, 0), torch.tensor([1, 0, 2, 7, 6, 5, 4, 3])
    for i, row in enumerate(mix(x, partner, 0.3)):
        expected = [
            0.3 * u + 0.7 * v
            for u, v in zip(x[i].tolist(), x[int(partner[i])].tolist(), strict=True)
        ]
        assert row.tolist() == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(5))
def test_mixing_identical_rows_changes_nothing(seed):
    x_a, x_b = rows(3, 0)[:1].expand(B, 3), rows(2, 1)[:1].expand(B, 2)
    m_a, m_b, _ = FuseMix()(x_a, x_b, torch.zeros(B, dtype=torch.long), seed, 0)
    assert torch.equal(m_a, x_a)
    assert torch.equal(m_b, x_b)


@pytest.mark.parametrize("step", range(4))
def test_one_lambda_and_one_permutation_mix_both_modalities(step):
    """With unit vectors as rows a mixed row shows who was mixed and how: what it shows must be the
    same in both.
    """
    m_a, m_b, items = FuseMix()(torch.eye(B), 2 * torch.eye(B), torch.arange(B), 0, step)
    torch.testing.assert_close(m_b, 2 * m_a)
    torch.testing.assert_close(m_a.sum(1), torch.ones(B))
    shares = m_a.diagonal()
    mixed = shares < 1 - 1e-6  # a row may be its own partner
    assert mixed.sum() >= 2
    torch.testing.assert_close(shares[mixed], shares[mixed][:1].expand(int(mixed.sum())))
    torch.testing.assert_close(m_a.sum(0), torch.ones(B))  # each row is a partner once
    assert len(items.unique()) == B


def test_the_draw_depends_on_seed_and_step_alone():
    batch = rows(3, 0), rows(2, 1), torch.arange(B)
    first = FuseMix()(*batch, 3, 5)
    torch.manual_seed(99)
    for one, other in zip(first, FuseMix()(*batch, 3, 5), strict=True):
        assert torch.equal(one, other)
    for seed, step in ((3, 6), (4, 5)):
        assert not torch.allclose(first[0], FuseMix()(*batch, seed, step)[0])


@pytest.mark.parametrize("alpha", [1.0, 0.4])
def test_lambda_is_beta_distributed(alpha):
    shares = [
        FuseMix(alpha)(torch.eye(2), torch.eye(2), torch.arange(2), 0, step)[0][0, 0].item()
        for step in range(4000)
    ]
    mixed = [
        share for share in shares if share < 1
    ]  # half of the permutations of two rows leave them
    assert 1800 < len(mixed) < 2200
    assert stats.kstest(mixed, stats.beta(alpha, alpha).cdf).pvalue > 1e-3


def test_mixtures_of_the_same_items_stay_positives():
    item, partner = torch.tensor([5, 5, 7, 9, 7]), torch.tensor([2, 4, 0, 3, 1])
    both = [(int(item[i]), int(item[partner[i]])) for i in range(5)]
    found = mixed_items(item, partner)
    assert positives_of(found, found).tolist() == [[one == other for other in both] for one in both]
    assert np.unique(found.numpy()).size == len(set(both)) < 5


def test_a_mistake_names_key_value_and_remedy():
    with pytest.raises(UserError, match="alpha=0 must be above 0"):
        FuseMix(0)
