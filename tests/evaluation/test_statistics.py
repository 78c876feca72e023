from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom, norm

from gera_lightning.evaluation import statistics
from gera_lightning.utils.errors import UserError


def normal(n, mean=0.0, sd=1.0, seed=0):
    return np.random.default_rng(seed).normal(mean, sd, n)


# ---- mean and deviation ----


def test_summary_is_mean_and_sample_deviation_in_order_of_budgets_and_first_rows():
    rows = [
        {
            "budget": budget,
            "method": method,
            "seed": seed,
            "r": budget + seed**2,
            **({"new": 1.0 * seed} if seed else {}),
        }
        for budget in (300, 100)
        for method in ("zeta", "alpha")
        for seed in range(3 if method == "zeta" else 1)
    ]
    found = statistics.summary(pd.DataFrame(rows), ["r", "new", "nowhere"])
    assert list(zip(found["budget"], found["method"], found["seeds"], strict=True)) == [
        (100, "zeta", 3),
        (100, "alpha", 1),
        (300, "zeta", 3),
        (300, "alpha", 1),
    ]
    assert found["r"].tolist() == pytest.approx([100 + 5 / 3, 100, 300 + 5 / 3, 300])
    assert found["r/sd"][0] == pytest.approx(np.std([0, 1, 4], ddof=1))
    assert np.isnan(found["r/sd"][1])  # one seed has no deviation
    assert found["new"][0] == 1.5  # an older row lacks it
    assert np.isnan(found["new"][1])
    assert not [name for name in found if "nowhere" in name]


# ---- draws ----


def test_weights_are_counts_of_a_draw_with_replacement_after_the_sample_itself():
    weights = statistics.resampling_weights(6, 4000, np.random.default_rng(0))
    assert weights.shape == (4001, 6)
    assert weights[0].tolist() == [1.0] * 6
    assert set(weights.sum(1)) == {6.0}
    seen = np.bincount(weights[1:, 0].astype(int), minlength=7)[:7] / 4000
    np.testing.assert_allclose(seen, binom.pmf(range(7), 6, 1 / 6), atol=0.02)
    assert statistics.resampling_weights(1, 5, np.random.default_rng(0)).tolist() == [[1.0]] * 6


def test_resampled_recall_equals_a_slow_loop_over_the_drawn_rows():
    """Items have several query rows, and some none in a direction."""
    rng = np.random.default_rng(0)
    rows = np.array([[2, 1, 0, 3, 1], [1, 1, 1, 0, 2]])
    hits = rng.integers(0, rows + 1, size=(3, 2, *rows.shape)).astype(float)
    weights = statistics.resampling_weights(5, 8, rng)
    found = statistics.resampled_recall(hits, rows, weights)
    assert found.shape == (9, 3, 2)
    for b, weight in enumerate(weights.astype(int)):
        drawn = [item for item in range(5) for _ in range(weight[item])]
        for m in range(3):
            for s in range(2):
                ways = [
                    sum(hits[m, s, d, i] for i in drawn) / sum(rows[d, i] for i in drawn)
                    for d in range(2)
                ]
                assert found[b, m, s] == pytest.approx(np.mean(ways))


def test_a_missing_run_is_missing_alone_and_an_unasked_direction_does_not_count():
    rows = np.array([[1, 1, 1], [0, 0, 0]])
    hits = np.array([[[1.0, 0, 1], [0, 0, 0]], np.full((2, 3), np.nan)])
    found = statistics.resampled_recall(hits, rows, np.ones((1, 3)))
    assert found[0, 0] == pytest.approx(2 / 3)
    assert np.isnan(found[0, 1])


# ---- intervals and p-values ----


@pytest.mark.parametrize(("draws", "level"), [(999, 0.05), (2000, 0.05), (2000, 0.05 / 9)])
def test_the_interval_of_normal_draws_is_the_normal_interval(draws, level):
    low, high = statistics.interval(normal(draws, 3, 2), level)
    z = norm.ppf(1 - level / 2)
    assert [low, high] == pytest.approx([3 - 2 * z, 3 + 2 * z], abs=0.7)


@pytest.mark.parametrize("level", [0.05, 0.02, 0.1])
@pytest.mark.parametrize("mean", [-2.2, -1.9, 0.0, 1.6, 1.95, 2.0, 2.3, 2.6])
def test_the_interval_holds_zero_exactly_when_the_p_value_is_above_the_level(mean, level):
    for seed in range(20):
        draws = np.concatenate([[mean], normal(300, mean, seed=seed)])
        low, high = statistics.interval(draws[1:], level)
        assert (low <= 0 <= high) == (statistics.p_value(draws) > level)


def test_p_values_of_known_draws():
    assert statistics.p_value(np.array([0.1, *[0.1] * 97, -0.1, -0.2])) == pytest.approx(
        2 * 3 / 100
    )
    assert statistics.p_value(np.array([0.1, *[0.1] * 99])) == pytest.approx(2 / 100)  # never 0
    assert statistics.p_value(np.zeros(100)) == 1.0
    np.testing.assert_allclose(
        statistics.p_value(np.concatenate([[2.0], normal(200_000, 2.0)])),
        2 * norm.sf(2.0),
        rtol=0.05,
    )


def test_too_few_draws_for_a_level_are_refused():
    assert statistics.interval(np.arange(39.0), 0.05) == (0.0, 38.0)
    with pytest.raises(UserError, match=r"draws=38 are too few .* at least 39"):
        statistics.interval(np.arange(38.0), 0.05)


def test_the_bootstraps_error_is_that_of_the_mean():
    """Items alone: the standard error of a share is sqrt(p (1 - p) / n)."""
    hits = (np.arange(400) < 120).astype(float)[None, None].repeat(2, 1)
    weights = statistics.resampling_weights(400, 4000, np.random.default_rng(1))
    found = statistics.resampled_recall(hits, np.ones((2, 400)), weights)[:, 0]
    assert found[0] == pytest.approx(0.3)
    assert found[1:].std() == pytest.approx(np.sqrt(0.3 * 0.7 / 400), rel=0.05)


# ---- Holm ----


def test_holm_equals_a_worked_example():
    """Four hypotheses, 0.01, 0.04, 0.03, 0.005: times 4, 3, 2, 1 in ascending order, then never
    falling.
    """
    np.testing.assert_allclose(statistics.holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(statistics.holm([0.5, 0.6]), [1.0, 1.0])
    assert statistics.holm([]).shape == (0,)


def slow_holm(p, level):
    """Which are rejected: step down, stop at the first that is not."""
    rejected = set()
    for number, index in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        if p[index] > level / (len(p) - number):
            break
        rejected.add(index)
    return rejected


@pytest.mark.parametrize("seed", range(30))
def test_adjusted_values_and_levels_reject_what_the_step_down_rejects(seed):
    p = np.random.default_rng(seed).beta(0.3, 4, size=7)
    expected = slow_holm(p.tolist(), 0.05)
    assert set(np.flatnonzero(statistics.holm(p) <= 0.05)) == expected
    levels = statistics.holm_levels(p, 0.05)
    assert set(np.flatnonzero(p <= levels)) == expected
    assert levels.min() >= 0.05 / 7
    assert statistics.holm_levels([0.001], 0.05).tolist() == [0.05]


def test_a_detectable_difference_is_detected_with_the_power_asked():
    error, level = 0.02, 0.05 / 3
    difference = statistics.detectable(error, level, 0.8)
    found = np.abs(normal(100_000, difference, error)) > norm.ppf(1 - level / 2) * error
    assert found.mean() == pytest.approx(0.8, abs=0.005)


# ---- pairs needed ----


def slow_isotonic(y):
    """Pool adjacent violators."""
    blocks = [[value, 1] for value in y]
    i = 0
    while i + 1 < len(blocks):
        if blocks[i][0] > blocks[i + 1][0]:
            (a, m), (b, n) = blocks[i], blocks.pop(i + 1)
            blocks[i] = [(a * m + b * n) / (m + n), m + n]
            i = max(i - 1, 0)
        else:
            i += 1
    return [value for value, count in blocks for _ in range(count)]


def test_rising_curves_equal_a_slow_pool_of_adjacent_violators():
    curve = np.random.default_rng(0).random((50, 5))
    curve[0] = np.arange(5)
    found = statistics.rising_curve(curve)
    np.testing.assert_allclose(found, [slow_isotonic(row) for row in curve.tolist()])
    assert found[0].tolist() == [0, 1, 2, 3, 4]


def test_pairs_are_read_off_between_budgets_in_log_n():
    curve = np.array([[0.1, 0.2, 0.4]])
    for target, pairs in (
        (0.1, 10),
        (0.15, 10**1.5),
        (0.2, 100),
        (0.3, 10**2.5),
        (0.4, 1000),
        (0.0999, -np.inf),
        (0.4001, np.inf),
    ):
        assert statistics.pairs_needed([10, 100, 1000], curve, np.array([target]))[
            0
        ] == pytest.approx(pairs)


def test_a_flat_stretch_needs_its_least_pairs_and_one_budget_is_censored():
    curve = np.array([[0.2, 0.2, 0.4], [0.1, 0.3, 0.3]])
    np.testing.assert_allclose(
        statistics.pairs_needed([10, 100, 1000], curve, np.array([0.2, 0.3])), [10, 100]
    )
    found = statistics.pairs_needed([10], np.array([[0.2]] * 3), np.array([0.1, 0.2, 0.3]))
    np.testing.assert_allclose(found, [-np.inf, 10, np.inf])
