"""Cross-validation of closed-form presets inside a budget, on train rows alone.

Legend: `n` held-out pairs of a budget, all folds together. A pair's score is `-log rank` of its
partner, the mean of both directions.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from scipy.special import gammaln
from scipy.stats import t as student

from gera_lightning.config import Experiment
from gera_lightning.data.training_rows import TrainingRows, load_rows
from gera_lightning.evaluation.statistics import holm
from gera_lightning.experiment.paired_stores import Stores
from gera_lightning.training.batch import HeldOutPairs
from gera_lightning.training.cross_validation import choose, fold_scores
from gera_lightning.training.filter_choice import choose_filters
from gera_lightning.training.method import Method
from gera_lightning.training.training_set import TrainingSet, on_accelerator
from gera_lightning.utils.progress import no_progress

LEVEL = 0.01
PERMUTATIONS = 24
"""Shuffled pairings that the true one is compared with: at best p = 1/25."""
QUICK_TRIALS = 4
"""Settings that each of them chooses from; held-out partners alone are the gallery."""


@dataclass(frozen=True)
class Evidence:
    """Held-out scores of presets at one budget, on the same folds.

    Attributes:
        budget: pairs.
        scores: preset to the score of each pair `[n]`.
        chance: mean score of a random order of each pair's gallery `[n]`.
        folds: of the pairs.
    """

    budget: int
    scores: Mapping[str, np.ndarray]
    chance: np.ndarray
    folds: int = 5

    @property
    def best(self) -> str:
        """The preset of the best mean score."""
        return max(self.scores, key=lambda name: float(self.scores[name].mean()))

    def rank(self, name: str) -> float:
        """Geometric mean of the partner's rank."""
        return float(np.exp(-self.scores[name].mean()))

    def above_chance(self, name: str) -> float:
        """One-sided p-value of "no better than a random order"."""
        gain, error = self._mean(self.scores[name] - self.chance)
        return float(student.sf(gain / error, len(self.chance) - 1))

    def lead(self, name: str, other: str) -> tuple[float, float]:
        """By how much a preset's log rank is better than another's, and the standard error."""
        return self._mean(self.scores[name] - self.scores[other])

    def as_good(self, level: float = 0.05) -> list[str]:
        """Presets that these pairs cannot tell from the best: paired t-tests, Holm-corrected."""
        others = [name for name in self.scores if name != self.best]
        p = [self._worse(name) for name in others]
        return [name for name, value in zip(others, holm(p), strict=True) if value > level]

    def _worse(self, name: str) -> float:
        if np.array_equal(self.scores[self.best], self.scores[name]):
            return 1.0
        lead, error = self.lead(self.best, name)
        return float(2 * student.sf(abs(lead) / error, len(self.chance) - 1))

    def _mean(self, difference: np.ndarray) -> tuple[float, float]:
        """Mean over held-out pairs, and its standard error: `sd / sqrt(n) * sqrt(1 + J / (J - 1))`
        of J folds. The root is what it costs that folds share their training pairs.

        Source:
            Nadeau and Bengio, Inference for the generalization error, Machine Learning 2003.
        """
        shared = np.sqrt(1 + self.folds / (self.folds - 1))
        error = difference.std(ddof=1) / np.sqrt(len(difference)) * shared
        return float(difference.mean()), float(error)


def chance_score(gallery: int, positives: int = 1) -> float:
    """Expected `-log rank`, in a random order, of the best of some positives among the other rows.

    The best has rank 1 + k or worse where `k` negatives come first of all, with the chance
    `C(gallery - k, positives) / C(gallery, positives)`.

    >>> round(chance_score(3), 4)  # -log(3!) / 3
    -0.5973
    """
    k = np.arange(1, gallery - positives + 1)
    log_chance = _log_choose(gallery - k, positives) - _log_choose(gallery, positives)
    return float(-(np.exp(log_chance) * np.log1p(1 / k)).sum())


def _log_choose(n: np.ndarray | int, k: int) -> np.ndarray:
    found: np.ndarray = gammaln(n + 1) - gammaln(k + 1) - gammaln(np.subtract(n, k) + 1)
    return found


def chance_scores(held: HeldOutPairs) -> np.ndarray:
    """Mean over both directions of the expected `-log rank` of each held-out pair's partner."""
    ways = []
    for gallery in held.galleries.values():
        positives = (held.item.unsqueeze(1) == gallery.unsqueeze(0)).sum(1).tolist()
        known = {count: chance_score(len(gallery), count) for count in set(positives)}
        ways.append([known[count] for count in positives])
    mean: np.ndarray = np.mean(ways, axis=0)
    return mean


def gather(experiment: Experiment, stores: Stores, budget: int, names: Sequence[str]) -> Evidence:
    """Cross-validate presets inside one budget.

    Args:
        experiment: `methods` holds the presets, all closed forms.
        stores: the data.
        budget: pairs.
        names: which of the presets.
    """
    rows = _training_rows(experiment, stores, budget)
    with tempfile.TemporaryDirectory() as folder:
        tasks = {n: _training_set(experiment, stores, rows, n, folder) for n in names}
        scores = {name: on_accelerator(task, held_out_scores) for name, task in tasks.items()}
        task = tasks[names[0]]
        parts = task.folds(np.arange(len(rows.items)))
        chance = [chance_scores(task.excluding(held).held_out(held)) for held in parts]
    return Evidence(budget, scores, np.concatenate(chance), len(parts))


def pairing_p_value(experiment: Experiment, stores: Stores, budget: int, name: str) -> float:
    """p-value of "it makes no difference which rows are paired", by permutation.

    The rows of `a` are shuffled among the pairs, and the preset is cross-validated anew, its
    setting chosen anew too. The value is `(1 + r) / (1 + m)`, where r of m shuffled pairings score
    at least as well as the true one. It ends at the first that does: the value is then above .05.

    Args:
        experiment, stores, budget: as of `gather`.
        name: a closed-form preset.

    Source:
        Phipson and Smyth, Permutation p-values should never be zero, 2010.
    """
    config = experiment.methods[name]
    quick = replace(config.tuning, distractors=0, max_trials=QUICK_TRIALS)
    experiment = replace(experiment, methods={name: replace(config, tuning=quick)})
    rows = _training_rows(experiment, stores, budget)
    rng = np.random.default_rng([experiment.common.seeds[0], budget])
    with tempfile.TemporaryDirectory() as folder:

        def score(rows: TrainingRows) -> float:
            task = _training_set(experiment, stores, rows, name, folder)
            return float(on_accelerator(task, held_out_scores).mean())

        found = score(rows)
        for number in range(PERMUTATIONS):
            order = torch.from_numpy(rng.permutation(len(rows.items)))
            shuffled = replace(rows.a, pairs=rows.a.pairs[order])
            if score(replace(rows, a=shuffled)) >= found:
                return 2 / (number + 2)
    return 1 / (PERMUTATIONS + 1)


def _training_rows(experiment: Experiment, stores: Stores, budget: int) -> TrainingRows:
    common = experiment.common
    sample = stores.sample_pairs(common, budget, common.seeds[0])
    center, residency = common.data.center, common.data.residency
    return load_rows(stores.a, stores.b, sample, center=center, residency=residency)


def _training_set(
    experiment: Experiment, stores: Stores, rows: TrainingRows, name: str, folder: str
) -> TrainingSet:
    method, seed = Method.from_config(experiment.methods[name]), experiment.common.seeds[0]
    return TrainingSet(method, rows, stores.split.families, seed, Path(folder), no_progress)


def held_out_scores(task: TrainingSet) -> np.ndarray:
    """Score of every held-out pair `[n]`, under the setting that the other folds' pairs choose.

    No pair influences the setting that it is scored under, so presets do not gain by having many
    settings. Filters are chosen by all pairs, as in a run: a preset that chooses among filters
    looks a little too good.
    """
    method = task.method.closed_form
    assert method is not None
    everything = np.arange(len(task.rows.items))
    choice = choose_filters(task, method, everything)
    settings = method.settings(
        choice.remaining_trials(task.config.tuning.max_trials), len(everything)
    )
    scores = fold_scores(task, method, settings, everything, choice.numbers)
    fold = np.concatenate(
        [np.full(len(held), number) for number, held in enumerate(task.folds(everything))]
    )
    chosen = {number: choose(scores[:, fold != number]) for number in np.unique(fold)}
    return scores[[chosen[number] for number in fold], np.arange(len(fold))]


def smallest_budget(
    experiment: Experiment, stores: Stores, budgets: Sequence[int], name: str
) -> Evidence:
    """The smallest of `budgets` (ascending) at which a preset is above chance, or the largest.

    Tested at level 0.01 over all of them (Bonferroni).
    """
    for budget in budgets[:-1]:
        evidence = gather(experiment, stores, budget, [name])
        if evidence.above_chance(name) <= LEVEL / len(budgets):
            return evidence
    return gather(experiment, stores, budgets[-1], [name])
