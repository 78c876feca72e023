from __future__ import annotations

import numpy as np
import pytest
import torch

from gera_lightning.evaluation import similarity
from gera_lightning.evaluation.similarity import debiased_cka


def rows(n, width, seed, dtype=torch.float32):
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def unbiased_hsic(k_x, k_y):
    """Equation 5 of Song et al., matrices without diagonals."""
    n, one = len(k_x), np.ones(len(k_x))
    k_x, k_y = (k - np.diag(np.diag(k)) for k in (k_x, k_y))
    product = (one @ k_x @ one) * (one @ k_y @ one) / ((n - 1) * (n - 2))
    return (np.trace(k_x @ k_y) + product - 2 / (n - 2) * one @ k_x @ k_y @ one) / (n * (n - 3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [4, 7, 40])
def test_it_is_the_unbiased_estimate_of_the_paper(n, dtype):
    x = rows(n, 5, 0, dtype)
    y = torch.cat([x[:, :3], rows(n, 2, 1, dtype)], dim=1)
    k_x, k_y = (
        unit @ unit.T
        for unit in (
            t.double().numpy() / t.double().norm(dim=1, keepdim=True).numpy() for t in (x, y)
        )
    )
    expected = unbiased_hsic(k_x, k_y) / np.sqrt(unbiased_hsic(k_x, k_x) * unbiased_hsic(k_y, k_y))
    assert debiased_cka(x, y) == pytest.approx(expected, rel=1e-5)


def test_rotations_lengths_and_the_order_of_pairs_change_nothing():
    x, y = rows(30, 6, 0), rows(30, 4, 1) + rows(30, 6, 0)[:, :4]
    rotation, _ = torch.linalg.qr(rows(6, 6, 2))
    found = debiased_cka(x, y)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(3))
    assert debiased_cka(x @ rotation * rows(30, 1, 4).abs(), 3 * y) == pytest.approx(
        found, abs=1e-6
    )
    assert debiased_cka(x[order], y[order]) == pytest.approx(found, abs=1e-6)
    assert debiased_cka(y, x) == pytest.approx(found, abs=1e-6)


def test_the_same_similarities_agree_fully_and_unrelated_ones_not_at_all_on_average():
    """Without the correction ten unrelated pairs of wide rows agree by .9."""
    x = rows(10, 200, 0)
    assert debiased_cka(x, x) == pytest.approx(1)
    chance = [debiased_cka(rows(10, 200, 2 * n), rows(10, 200, 2 * n + 1)) for n in range(300)]
    assert abs(np.mean(chance)) < 3 * np.std(chance) / np.sqrt(len(chance))


@pytest.mark.parametrize("n", [0, 1, 3])
def test_fewer_than_four_pairs_say_nothing(n):
    assert debiased_cka(rows(n, 3, 0), rows(n, 3, 1)) == 0


def test_rows_that_are_all_alike_agree_with_nothing():
    assert debiased_cka(torch.ones(8, 3), rows(8, 3, 0)) == 0


def test_of_many_pairs_the_first_are_taken(monkeypatch):
    monkeypatch.setattr(similarity, "MAX_PAIRS", 20)
    x, y = rows(50, 6, 0), rows(50, 4, 1)
    assert debiased_cka(x, y) == debiased_cka(x[:20], y[:20])
