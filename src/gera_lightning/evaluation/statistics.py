"""Statistics of repeated runs: bootstrap draws of recall, intervals, p-values, Holm's correction,
the pairs that a baseline needs.

Legend: `B` draws, `I` test items, `G` budgets. Index 0 of an axis of `B + 1` draws is the sample
itself, unresampled, so a value and its draws come from one formula. `comparisons` puts these
together over finished runs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import norm
from sklearn.isotonic import isotonic_regression

from gera_lightning.utils.errors import UserError


def summary(results: pd.DataFrame, measures: Iterable[str]) -> pd.DataFrame:
    """Mean and standard deviation (of the sample, n - 1) over seeds.

    Args:
        results: one row a run: `budget`, `method` and measures; a measure that is not there is left
            out.
        measures: names of columns.

    Returns:
        one row a budget and method, in the order of budgets and of the first rows: `seeds`, and
        `<measure>` and `<measure>/sd`, NaN where there is none, the deviation of one seed also.
    """
    groups = results.groupby(["budget", "method"], sort=False)
    out: dict[str, pd.Series] = {"seeds": groups["seed"].nunique()}
    for name in measures:
        if name in results:
            out |= {name: groups[name].mean(), f"{name}/sd": groups[name].std(ddof=1)}
    return pd.DataFrame(out).reset_index().sort_values("budget", kind="stable", ignore_index=True)


# ---- the bootstrap ----


def resampling_weights(count: int, draws: int, rng: np.random.Generator) -> np.ndarray:
    """How often each of `count` units is drawn, with replacement, `[draws + 1, count]` float32; the
    first row is all ones.
    """
    drawn = rng.multinomial(count, np.full(count, 1 / count), size=draws)
    return np.concatenate([np.ones((1, count)), drawn]).astype(np.float32)


def resampled_recall(hits: np.ndarray, rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean of both directions' recall under weights of the items: `mean_d sum_i w_i hits_di / sum_i
    w_i rows_di`.

    Args:
        hits: `[..., 2, I]`.
        rows: `[2, I]`; a direction without rows does not count.
        weights: `[B, I]`.

    Returns:
        `[B, ...]`; NaN where a draw holds no row of a direction.
    """
    asked = [d for d in range(2) if rows[d].any()]
    mean = np.zeros((len(weights), math.prod(hits.shape[:-2])))
    for d in asked:
        of_way = hits[..., d, :].reshape(-1, hits.shape[-1]).T.astype(np.float32)
        # sums of whole numbers far below 2^24: exact in float32
        with np.errstate(invalid="ignore", divide="ignore"):
            mean += (weights @ of_way) / (weights @ (rows[d] * len(asked)))[:, None]
    return mean.reshape(len(weights), *hits.shape[:-2])


@dataclass(frozen=True)
class Estimate:
    """A value and its interval."""

    value: float
    low: float
    high: float


def interval(draws: np.ndarray, level: float = 0.05) -> tuple[float, float]:
    """Percentile interval `[B] -> (low, high)`: the k-th least and the k-th largest draw, `k =
    floor(level (B + 1) / 2)`.

    It holds 0 exactly when `p_value` is above the level.

    Raises:
        UserError: too few draws for the level.
    """
    draws = draws[~np.isnan(draws)]
    k = math.floor(level * (len(draws) + 1) / 2 + 1e-9)
    if k < 1:
        raise UserError(
            f"draws={len(draws)} are too few for an interval at level {level:.2g}: draw at least"
            f" {math.ceil(2 / level) - 1}"
        )
    ends = (k - 1, len(draws) - k)
    draws = np.partition(draws, ends)
    return float(draws[ends[0]]), float(draws[ends[1]])


def estimate(draws: np.ndarray, level: float = 0.05) -> Estimate:
    """Value and interval of `[B + 1]` draws, the first the sample's own."""
    return Estimate(float(draws[0]), *interval(draws[1:], level))


def p_value(draws: np.ndarray) -> float:
    """Two-sided p-value of "no difference" from `[B + 1]` draws of a difference, the first the
    sample's own (not counted).

    `2 min(1 + #{d <= 0}, 1 + #{d >= 0}) / (B + 1)`, at most 1: the least level at which the
    percentile interval leaves 0 out.

    Source:
        Davison & Hinkley, Bootstrap Methods and their Application, 1997, chapter 4: the one added.
    """
    drawn = draws[1:][~np.isnan(draws[1:])]
    tail = 1 + min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    return min(1.0, 2 * tail / (len(drawn) + 1))


# ---- several comparisons ----


def holm(p: Sequence[float]) -> np.ndarray:
    """Adjusted p-values: `max_(j <= i) (m - j + 1) p_(j)` in ascending order, at most 1; in the
    order given.

    Source:
        Holm, A simple sequentially rejective multiple test procedure, Scandinavian Journal of
        Statistics 1979.
    """
    values = np.asarray(p, dtype=float)
    order = np.argsort(values, kind="stable")
    stepped = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1)).clip(max=1.0)
    out = np.empty_like(stepped)
    out[order] = stepped
    return out


def holm_levels(p: Sequence[float], level: float = 0.05) -> np.ndarray:
    """The level at which Holm's procedure decides on each hypothesis, for intervals that agree with
    it.

    The j-th least p-value is compared with `level / (m - j + 1)`; from the first that is not
    rejected on, all stand at its level. So an interval at these levels leaves 0 out exactly when
    the adjusted p-value is at most `level` (the choice of levels is ours).
    """
    values = np.asarray(p, dtype=float)
    order = np.argsort(values, kind="stable")
    steps = level / np.arange(len(values), 0, -1)
    kept = np.flatnonzero(values[order] > steps)
    if len(kept):
        steps[kept[0] :] = steps[kept[0]]
    out = np.empty_like(steps)
    out[order] = steps
    return out


def detectable(error: float, level: float = 0.05, power: float = 0.8) -> float:
    """Smallest true difference that a two-sided test at `level` finds with probability `power`:
    `(z_(1 - level/2) + z_power) error`.

    Args:
        error: standard error of the difference.
    """
    return float((norm.ppf(1 - level / 2) + norm.ppf(power)) * error)


# ---- label multipliers ----


def rising_curve(curve: np.ndarray) -> np.ndarray:
    """Isotonic regression of each row, of recall at ascending budgets: the nearest non-decreasing
    curve by squares, `[B, G] -> [B, G]`.
    """
    out = curve.copy()
    for row in np.flatnonzero(
        (np.diff(curve, axis=1) < 0).any(1)
    ):  # the others are their own regression
        out[row] = isotonic_regression(curve[row])
    return out


def pairs_needed(budgets: Sequence[int], curve: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Least number of pairs at which a curve reaches a recall, linear in log n between budgets;
    never extrapolated.

    Args:
        budgets: ascending, `[G]`.
        curve: recall at the budgets, rows non-decreasing, `[B, G]`.
        target: recall to reach `[B]`.

    Returns:
        `[B]`: pairs; `-inf` where the target lies below the curve, `inf` where it lies above.
    """
    x = np.log(np.asarray(budgets, dtype=float))
    slack = 1e-12  # sums of the same numbers in another order are equal
    reached = curve >= target[:, None] - slack
    first = reached.argmax(1)
    row, before = np.arange(len(target)), np.maximum(first - 1, 0)
    low, high = curve[row, before], curve[row, first]
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.where(first > 0, (target - low) / (high - low), 0.0).clip(0, 1)
    needed = np.exp(x[before] + share * (x[first] - x[before]))
    return np.where(target < curve[:, 0] - slack, -np.inf, np.where(reached.any(1), needed, np.inf))
