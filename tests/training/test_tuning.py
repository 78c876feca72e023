import numpy as np
import pytest
import torch

from gera_lightning.models.maps import Identity, Linear, normalized
from gera_lightning.models.shared_space import CSLS, SharedSpace
from gera_lightning.training import cross_validation
from gera_lightning.training.batch import HeldOutPairs


def cloud(n, d, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def space(k=None):
    out = SharedSpace(
        Linear(5, 4, weight=cloud(5, 4, 8)), Linear(6, 4, weight=cloud(6, 4, 9))
    ).requires_grad_(False)
    if k is not None:
        out.correction = CSLS(
            k, pool_a=out.embed("a", cloud(20, 5, 2)), pool_b=out.embed("b", cloud(15, 6, 3))
        )
    return out


def pairs_of(x_a, x_b, item, pool_a, pool_b):
    """Held-out pairs beside pools that name nothing."""
    return HeldOutPairs(x_a, x_b, item, pool_a, pool_b, torch.full((len(pool_b),), -1))


def slow_score(scores_ab, n, items):
    """`-log rank` of the best partner among held-out rows and pool, mean of both directions."""
    out = np.zeros(n)
    for table in (scores_ab[:n], scores_ab.T[:n]):
        for i in range(n):
            own = max(table[i, j] for j in range(n) if items[j] == items[i])
            others = [table[i, j] for j in range(table.shape[1]) if j >= n or items[j] != items[i]]
            out[i] -= (
                np.log(1 + sum(s > own for s in others) + sum(s == own for s in others) / 2) / 2
            )
    return out


@pytest.mark.parametrize("k", [None, 3])
@pytest.mark.parametrize("items", [[0, 1, 2, 3, 4, 5], [4, 4, 1, 0, 1, 7]])
def test_held_out_score_equals_slow_loops(items, k):
    s = space(k)
    held_a, held_b, pool_a, pool_b = cloud(6, 5), cloud(6, 6, 1), cloud(20, 5, 2), cloud(15, 6, 3)
    z_a, z_b = s.embed("a", torch.cat([held_a, pool_a])), s.embed("b", torch.cat([held_b, pool_b]))
    table = (s.queries(z_a) @ s.gallery("b", z_b).T + s.offset("a", z_a)).numpy()
    held = pairs_of(held_a, held_b, torch.tensor(items), pool_a, pool_b)
    found = cross_validation.held_out_score(s, held)
    np.testing.assert_allclose(found, slow_score(table, 6, items), atol=1e-6)
    assert float(found.max()) <= 0


def test_a_perfect_space_scores_0_and_copies_in_the_pool_take_from_it():
    s = SharedSpace(Identity(4), Identity(4))
    x = normalized(cloud(5, 4))
    nothing = x[:0]
    items = torch.arange(5)
    alone = pairs_of(x, x, items, nothing, nothing)
    assert cross_validation.held_out_score(s, alone).tolist() == [0.0] * 5
    # three exact copies of row 2 join the gallery of b: it comes at the mean of places 1 to 4, one
    # direction of two
    copies = pairs_of(x, x, items, nothing, x[2:3].repeat(3, 1))
    score = cross_validation.held_out_score(s, copies)
    assert score[2].item() == pytest.approx(-np.log(2.5) / 2)
    assert score[[0, 1, 3, 4]].tolist() == [0.0] * 4


def test_a_collapsed_space_scores_as_guessing_does():
    s = SharedSpace(Linear(5, 3, weight=torch.zeros(5, 3)), Linear(6, 3, weight=torch.zeros(6, 3)))
    held = pairs_of(cloud(4, 5), cloud(4, 6, 1), torch.arange(4), cloud(20, 5, 2), cloud(16, 6, 3))
    score = cross_validation.held_out_score(s, held)
    expected = -(np.log((4 + 16 + 1) / 2) + np.log((4 + 20 + 1) / 2)) / 2
    assert score.tolist() == pytest.approx([expected] * 4)


@pytest.mark.parametrize(
    ("scores", "chosen"),
    [
        (
            [[-1.0, -3.0], [-1.0, -1.0], [-5.0, 0.0]],
            1,
        ),  # by the mean over pairs, not by the best pair
        ([[-2.0, -1.0], [-1.0, -2.0], [-1.5, -1.5]], 0),  # of equals the first, the simplest
        ([[-2.0, -2.0], [-1.0, -2.0], [-2.0, -1.0]], 1),
        ([[-4.0, -4.0]], 0),
    ],
)
def test_the_best_mean_wins_and_of_equals_the_simplest(scores, chosen):
    assert cross_validation.choose(np.array(scores)) == chosen


@pytest.mark.parametrize(
    ("gains", "chosen", "rested"),
    [
        ([0.5, 0.4, 0.6, 0.5], 2, False),  # every pair still gains, and the last step is the best
        ([0.5, 0.4, 0.6, 0.5], 1, True),  # the best step lies before the last
        ([0.5, -0.4, 0.6, -0.5], 2, True),  # within twice its standard error
        ([0.011, 0.01, 0.012, 0.011], 2, True),  # sure, but too small to be worth more steps
        ([-0.5, -0.4, -0.6, -0.5], 2, True),
    ],
)
def test_training_is_at_rest_unless_the_last_step_gained_and_is_the_best(gains, chosen, rested):
    last = np.array([-1.0, -2.0, -0.5, -3.0])
    scores = np.stack([last - 9, last - np.array(gains), last])
    assert cross_validation.converged(scores, chosen) is rested


def test_the_bound_is_twice_the_standard_error_of_the_paired_gain():
    gains = np.array([0.3, 0.1, 0.4, -0.1, 0.2])
    error = np.sqrt(sum((g - gains.mean()) ** 2 for g in gains) / 4) / np.sqrt(5)
    for factor, rested in ((1.99, True), (2.01, False)):
        moved = gains - gains.mean() + factor * error
        shared = np.array(
            [-5.0, -1.0, -9.0, -2.0, -4.0]
        )  # how hard a pair is says nothing of the gain
        assert cross_validation.converged(np.stack([shared, shared + moved]), 1) is rested


def test_one_step_or_one_pair_say_nothing_of_rest():
    assert cross_validation.converged(np.zeros((1, 5)), 0) is None
    assert cross_validation.converged(np.array([[-3.0], [-1.0]]), 1) is None


def test_a_curve_is_mean_and_standard_error():
    scores = np.array([[-1.0, -2.0, -4.0], [-1.0, -1.0, -1.0]])
    found = cross_validation.curve(scores)
    assert found["scores"] == [round(-7 / 3, 4), -1.0]
    assert found["errors"] == [round(float(np.sqrt((16 / 9 + 1 / 9 + 25 / 9) / 2 / 3)), 4), 0.0]
    assert cross_validation.curve(np.array([[-1.0]])) == {"scores": [-1.0], "errors": [0.0]}
