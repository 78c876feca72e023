"""Cross-validation of closed-form presets inside a budget, on train rows alone.

Legend: `n` held-out pairs of a budget, all folds together. A pair's score is `-log rank` of its
partner, the mean of both directions.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.special import gammaln
from scipy.stats import ttest_1samp

from gera_lightning.config import Experiment
from gera_lightning.data.training_rows import load_rows
from gera_lightning.evaluation.statistics import holm
from gera_lightning.experiment.paired_stores import Stores
from gera_lightning.training.batch import HeldOutPairs
from gera_lightning.training.cross_validation import choose, fold_scores
from gera_lightning.training.filter_choice import choose_filters
from gera_lightning.training.method import Method
from gera_lightning.training.training_set import TrainingSet, on_accelerator
from gera_lightning.utils.progress import no_progress

LEVEL = 0.01


@dataclass(frozen=True)
class Evidence:
    """Held-out scores of presets at one budget, on the same folds.

    Attributes:
        budget: pairs.
        scores: preset to the score of each pair `[n]`.
        chance: mean score of a random order of each pair's gallery `[n]`.
    """

    budget: int
    scores: Mapping[str, np.ndarray]
    chance: np.ndarray

    @property
    def best(self) -> str:
        """The preset of the best mean score."""
        return max(self.scores, key=lambda name: float(self.scores[name].mean()))

    def rank(self, name: str) -> float:
        """Geometric mean of the partner's rank."""
        return float(np.exp(-self.scores[name].mean()))

    def above_chance(self, name: str) -> float:
        """One-sided p-value of "no better than a random order" (t-test over pairs)."""
        return float(ttest_1samp(self.scores[name] - self.chance, 0, alternative="greater").pvalue)

    def lead(self, name: str, other: str) -> tuple[float, float]:
        """By how much a preset's log rank is better than another's, and the standard error."""
        difference = self.scores[name] - self.scores[other]
        return float(difference.mean()), float(difference.std(ddof=1) / np.sqrt(len(difference)))

    def as_good(self, level: float = 0.05) -> list[str]:
        """Presets that these pairs cannot tell from the best: paired t-tests, Holm-corrected."""
        others = [name for name in self.scores if name != self.best]
        p = [_paired_p(self.scores[self.best], self.scores[name]) for name in others]
        return [name for name, value in zip(others, holm(p), strict=True) if value > level]


def _paired_p(x: np.ndarray, y: np.ndarray) -> float:
    return 1.0 if np.array_equal(x, y) else float(ttest_1samp(x - y, 0).pvalue)


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
    common, seed = experiment.common, experiment.common.seeds[0]
    rows = load_rows(
        stores.a, stores.b, stores.sample_pairs(common, budget, seed), center=common.data.center
    )
    with tempfile.TemporaryDirectory() as folder:
        tasks = {
            n: TrainingSet(
                Method.from_config(experiment.methods[n]),
                rows,
                stores.split.families,
                seed,
                Path(folder),
                no_progress,
            )
            for n in names
        }
        scores = {name: on_accelerator(task, held_out_scores) for name, task in tasks.items()}
        task = tasks[names[0]]
        parts = task.folds(np.arange(len(rows.items)))
        chance = [chance_scores(task.excluding(held).held_out(held)) for held in parts]
    return Evidence(budget, scores, np.concatenate(chance))


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
) -> Evidence | None:
    """The smallest of `budgets` (ascending) at which a preset is above chance; None if none is.

    Tested at level 0.01 over all of them (Bonferroni).
    """
    for budget in budgets:
        evidence = gather(experiment, stores, budget, [name])
        if evidence.above_chance(name) <= LEVEL / len(budgets):
            return evidence
    return None
