"""Choosing a method's free settings inside the budget: cross-validation over the budget's own
pairs.

Each fold's held-out pairs are queries both ways; the gallery is the held-out partners plus rows of
the target's unpaired pool as distractors (a small gallery alone would be too easy to tell settings
apart). Names of classes are searched all of them, without distractors among the rows they name.

The criterion is the logarithm of the partner's rank, averaged over pairs and directions. The
reciprocal rank would be nearer to what is reported, but few pairs decide it: on dev items its
    choices varied from seed to seed, and within one standard error of the best lay every setting.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from gera_lightning.aligners.alternatives import ALTERNATIVE
from gera_lightning.aligners.base import ClosedForm, Maps, Setting
from gera_lightning.evaluation.retrieval import rank_positives
from gera_lightning.models.shared_space import SharedSpace
from gera_lightning.training.batch import HeldOutPairs
from gera_lightning.training.training_set import TrainingSet, shared_space


@torch.inference_mode()
def held_out_ranks(space: SharedSpace, held: HeldOutPairs) -> Tensor:
    """Rank of each held-out pair's partner in its gallery, both ways, `[2, n]`.

    Args:
        space: maps and score.
        held: preprocessed rows of held-out pairs, and those that join the galleries.
    """
    count = len(held.item)
    z_a = space.embed("a", torch.cat([held.x_a, held.more_a]))
    z_b = space.embed("b", torch.cat([held.x_b, held.more_b]))
    queries = {"a": space.queries(z_a[:count]), "b": space.queries(z_b[:count])}
    searched = {
        "a": space.gallery("a", z_a),
        "b": space.gallery("b", torch.cat([z_b[:count][held.unnamed], z_b[count:]])),
    }
    return torch.stack(
        [
            rank_positives(queries[q], searched[t], held.item, held.galleries[t]).best
            for q, t in ("ab", "ba")
        ]
    )


def held_out_score(space: SharedSpace, held: HeldOutPairs) -> Tensor:
    """`-log rank` of each held-out pair's partner, the mean of both directions, `[n]`; arguments as
    of `held_out_ranks`.
    """
    a_to_b, b_to_a = -held_out_ranks(space, held).log()
    return (a_to_b + b_to_a) / 2


def choose(scores: np.ndarray) -> int:
    """The setting of the best mean score; of equals the first.

    Args:
        scores: `[settings, n]` scores of the same n held-out pairs under each setting, the one to
            prefer first.
    """
    return int(scores.mean(1).argmax())


GAIN = 0.02
"""A gain of the mean `-log rank` that is worth more training: ranks 2 % better."""


def converged(scores: np.ndarray, chosen: int) -> bool | None:
    """Whether a training had come to rest: its held-out curve was not still rising at its last
    stopping step.

    It was still rising where the last step is the chosen one, and the gain from the last step but
    one, pair by pair, is above `GAIN` and above twice its standard error. The learning rate falls
    to 0 by then, which flattens a curve, and improves the maps by itself: a training that is called
    unfinished may end where one of twice the steps does. `max_steps` is a preset's to choose, this
    tells where to try more.

    Args:
        scores: `[steps, n]` scores of the same n held-out pairs at each stopping step.
        chosen: number of the chosen step.

    Returns:
        None where there is but one step, or one pair, to judge by.
    """
    if min(scores.shape) < 2:
        return None
    gain = scores[-1] - scores[-2]
    error = gain.std(ddof=1) / np.sqrt(len(gain))
    return not (chosen == len(scores) - 1 and gain.mean() > max(GAIN, 2 * error))


def curve(scores: np.ndarray) -> dict[str, list[float]]:
    """Mean and standard error over pairs of each stopping step's scores `[steps, n]`, rounded."""
    errors = (
        scores.std(1, ddof=1) / np.sqrt(scores.shape[1])
        if scores.shape[1] > 1
        else np.full(len(scores), np.nan)
    )
    return {
        "scores": [round(float(m), 4) for m in scores.mean(1)],
        "errors": [round(float(e), 4) for e in np.nan_to_num(errors)],
    }


CORRECTION_ROWS = 300
"""Pool rows that scores are corrected against while settings are compared: enough to rank settings,
a fraction of the time.
"""
FIRST = {"a": 0, "b": 0}
"""The first choice of each modality's filters, where there are several mostly none."""


def filters_before(setting: Setting, numbers: Mapping[str, int]) -> Mapping[str, int]:
    """The filters that a setting stands behind: the chosen ones; an alternative, which had no say
    in the choice, behind the first.
    """
    return FIRST if ALTERNATIVE in setting else numbers


def cross_validated(
    task: TrainingSet,
    method: ClosedForm,
    positions: np.ndarray,
    count: int,
    first_scores: np.ndarray | None = None,
    numbers: Mapping[str, int] | None = None,
) -> tuple[Maps, int, dict[str, float]]:
    """Maps fitted on these pairs, how many settings (`count` at most) were tried on folds of them,
    and the chosen one.

    Args:
        task, method, positions: what is fitted on which pairs.
        count: settings to try.
        first_scores: scores of `method.settings(1)` on the same folds, where they are known
            already.
        numbers: choice of each modality's filters; the maps are of what those that stand before the
            chosen setting (`filters_before`) pass on. None takes the rows as they are.
    """
    settings = method.settings(count, len(positions))
    chosen = 0
    # of one family, as a fold may be, no part can be held out
    foldable = task.families[task.rows.units[positions]].nunique() > 1
    if len(settings) > 1 and foldable:
        known = first_scores is not None and settings[0] == method.settings(1, len(positions))[0]
        scores = fold_scores(task, method, settings[1:] if known else settings, positions, numbers)
        chosen = choose(
            np.concatenate([first_scores, scores]) if known and first_scores is not None else scores
        )
    whole = (
        task if numbers is None else task.filtered(filters_before(settings[chosen], numbers)).task
    )
    [maps] = method.candidates(whole.samples(positions), [settings[chosen]])
    return maps, len(settings), dict(settings[chosen])


def fold_scores(
    task: TrainingSet,
    method: ClosedForm,
    settings: Sequence[Setting],
    positions: np.ndarray,
    numbers: Mapping[str, int] | None = None,
) -> np.ndarray:
    """Scores of every held-out pair under every setting, `[settings, n]`; `numbers` as in
    `cross_validated`.
    """
    scores, parts = [], task.folds(positions)
    for number, held in enumerate(parts):
        task.progress("tuning fold", number, len(parts))
        fold, rest, found = task.excluding(held), np.setdiff1d(positions, held), []
        for _, group in groupby(settings, key=lambda setting: ALTERNATIVE in setting):
            mine = list(group)
            seen = fold if numbers is None else fold.filtered(filters_before(mine[0], numbers)).task
            for maps in method.candidates(seen.samples(rest), mine):
                space = shared_space(seen, *maps, rows=CORRECTION_ROWS)
                found.append(held_out_score(space, seen.held_out(held)))
        scores.append(torch.stack(found))
    return torch.cat(scores, dim=1).cpu().numpy()
