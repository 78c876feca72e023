"""A method on its rows: what it is fitted on, what comes out, and the closed forms.

A closed form is fitted for all its settings on each fold of the budget, the best one again on all pairs. Before that, where there are
several choices of feature filters, its first setting decides between them in the same way, modality by modality.

A fold is the real task in small: of the families that it holds out, pairs and pool rows are unseen, as those of the test items are.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from gera_lightning import tuning
from gera_lightning.aligners.base import ClosedForm, Maps, Samples, Setting
from gera_lightning.aligners.filters import Filter, fit_filters
from gera_lightning.aligners.space import SharedSpace
from gera_lightning.config import Config
from gera_lightning.data import splits
from gera_lightning.data.datamodule import Modality, TrainingRows
from gera_lightning.heads import Chain
from gera_lightning.parts import Part, build

CORRECTION_ROWS = 300
"""Pool rows that scores are corrected against while settings are compared: enough to rank settings, a fraction of the time."""
MOST_CORRECTION_ROWS = 20_000
"""Pool rows that a finished aligner corrects against at most: it keeps them, mapped."""
Progress = Callable[[str, int, int], None]
"""Called with (what is under way, done, of how many)."""


@dataclass(frozen=True)
class Task:
    """What a method is fitted on, and where it keeps its state.

    Attributes:
        config: the method's settings.
        rows: training rows of the budget.
        families: family of every item: folds keep them whole.
        seed: fixes folds, start and batches.
        folder: for checkpoints and TensorBoard events; an interrupted training in it goes on.
        progress: told of what is under way.
        memory: filtered pools that may be asked for again.
    """

    config: Config
    rows: TrainingRows
    families: pd.Series
    seed: int
    folder: Path
    progress: Progress
    memory: dict[tuple[str, int], FilteredModality] = field(default_factory=dict, repr=False, compare=False)

    def folds(self, positions: np.ndarray) -> list[np.ndarray]:
        """Parts of `positions` for cross-validation: all, or as many (two at least) as hold out `tuning.enough` pairs together."""
        parts = splits.folds(self.rows.items[positions], self.families, self.config.tuning.folds, self.seed)
        held = np.cumsum([len(part) for part in parts])
        return [positions[part] for part in parts[: max(2, int(np.searchsorted(held, self.config.tuning.enough)) + 1)]]

    def without(self, held: np.ndarray) -> Task:
        """The task of a fold: pools without rows of the families that the pairs at `held` are of."""
        families, sides = np.unique(self.families[self.rows.items[held]]), {}
        for side in "ab":
            modality = getattr(self.rows, side)
            kept = ~np.isin(self.families[modality.pool_items].to_numpy(), families)
            sides[side] = modality if kept.all() else modality.pool_subset(kept)
        return dataclasses.replace(self, rows=dataclasses.replace(self.rows, **sides))

    def samples(self, positions: np.ndarray) -> Samples:
        """Rows for a closed form, these pairs and all pool rows."""
        a, b = self.rows.a, self.rows.b
        return Samples(a.pairs[positions], b.pairs[positions], a.pool, b.pool)

    def held_out(self, positions: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        """Rows of a, rows of b and item numbers of held-out pairs."""
        return self.rows.a.pairs[positions], self.rows.b.pairs[positions], self.rows.item_numbers[positions]

    def distractors(self) -> tuple[Tensor, Tensor]:
        """The first rows of each pool; pools are shuffled, and no pool row has its partner in the other gallery."""
        count = self.config.tuning.distractors
        return self.rows.a.pool[:count], self.rows.b.pool[:count]

    def choices(self, side: str) -> Sequence[Sequence[Part]]:
        """The choices of filters of modality `side`; none is one choice, to leave the features as they are."""
        return self.config.filters.get(side) or [[]]

    def filtered(self, side: str, number: int) -> FilteredModality:
        """Modality `side` as choice `number` of its filters passes it on."""
        parts, modality = self.choices(side)[number], getattr(self.rows, side)
        if not parts:
            return FilteredModality(modality, None)
        key = {**modality.key, "filters": json.dumps(parts, sort_keys=True)}
        known = self.memory.get((side, number))
        if known is None or known.modality.key != key:  # folds that leave the pool whole share it; of others one at a time is kept
            mapping, pool = fit_filters(build_filters(parts, side, number), modality.pool)
            with torch.no_grad():
                pairs = mapping(modality.pairs)
            known = FilteredModality(dataclasses.replace(modality, pairs=pairs, pool=pool, key=key), mapping)
            self.memory[side, number] = known
        return known

    def through(self, numbers: Mapping[str, int]) -> Filtered:
        """The task on features that choice `numbers[side]` of each modality's filters passes on."""
        return self.on(*(self.filtered(side, numbers[side]) for side in "ab"))

    def on(self, a: FilteredModality, b: FilteredModality) -> Filtered:
        """The task on filtered features."""
        return Filtered(dataclasses.replace(self, rows=dataclasses.replace(self.rows, a=a.modality, b=b.modality)), (a.mapping, b.mapping))


@dataclass(frozen=True)
class FilteredModality:
    """A modality's training rows behind its filters.

    Attributes:
        modality: the filters' images.
        mapping: the filters' map; None where they leave features as they are.
    """

    modality: Modality
    mapping: nn.Module | None


@dataclass(frozen=True)
class Filtered:
    """A task on filtered features.

    Attributes:
        task: its rows are the filters' images.
        maps: the filters of both modalities; None where features are left as they are.
    """

    task: Task
    maps: tuple[nn.Module | None, nn.Module | None]

    def behind(self, map_a: nn.Module, map_b: nn.Module) -> Maps:
        """Maps of frozen rows: the filters, then the given maps."""
        a, b = (inner if first is None else Chain(first, inner) for first, inner in zip(self.maps, (map_a, map_b), strict=True))
        return a, b


@dataclass(frozen=True)
class Fitted:
    """A shared space and how it came about.

    Attributes:
        space: maps and score.
        steps: optimizer steps of the last training.
        settings: settings that tuning evaluated.
        chosen: the setting it chose.
        plateau: whether training had come to rest at its last step (`tuning.at_rest`); None for a closed form.
    """

    space: SharedSpace
    steps: int
    settings: int
    chosen: dict[str, float]
    plateau: bool | None = None


def build_filters(parts: Sequence[Part], side: str, number: int) -> list[Filter]:
    """The filters of one choice, number `number` of modality `side` in the config's `filters`.

    Raises:
        UserError: naming the part that is refused.
    """
    return [build(part, f"filters.{side}[{number}][{i}]") for i, part in enumerate(parts)]


@torch.inference_mode()
def shared_space(task: Task, map_a: nn.Module, map_b: nn.Module, rows: int | None = None) -> SharedSpace:
    """Maps as they stand with the score correction that the config asks for, against the first `rows` of each pool.

    Pools are shuffled, so the first rows are a random part of them.
    """
    rows = MOST_CORRECTION_ROWS if rows is None else rows
    space = SharedSpace(map_a, map_b)
    if task.config.correction is not None:
        device = next((p.device for p in map_a.parameters()), torch.device("cpu"))
        pools = {f"pool_{s}": space.embed(s, getattr(task.rows, s).pool[:rows].to(device)) for s in "ab"}
        space.correction = build(task.config.correction, "correction", **pools)
    return space


def fit_closed_form(task: Task) -> Fitted:
    """Fit a closed form, its setting chosen by cross-validation."""
    assert task.config.closed_form is not None
    method: ClosedForm = build(task.config.closed_form, "closed_form")
    everything = np.arange(len(task.rows.items))
    choice = choose_filters(task, method, everything)
    filtered, count = task.through(choice.numbers), choice.left(task.config.tuning.settings)
    maps, settings, setting = cross_validated(task, method, everything, count, choice.scores, choice.numbers)
    space = shared_space(filtered.task, *maps)
    space.map_a, space.map_b = filtered.behind(*maps)
    return Fitted(space, 0, choice.tried + settings - (choice.scores is not None), {**choice.chosen, **setting})


@dataclass(frozen=True)
class FilterChoice:
    """The filters that were chosen, and what the choice took.

    Attributes:
        numbers: the chosen one's number, by modality.
        tried: combinations that were compared; 0 where there was but one.
        chosen: the numbers of the modalities that had a choice, for the result row.
        scores: held-out pairs' scores `[1, n]` of the chosen combination under the method's first setting; None where it was not tried.
    """

    numbers: dict[str, int]
    tried: int
    chosen: dict[str, float]
    scores: np.ndarray | None

    def left(self, settings: int) -> int:
        """Settings of the closed form that may be compared under these filters, of `settings` evaluations in all."""
        return max(settings - self.tried + (self.scores is not None), 1)


def choose_filters(task: Task, method: ClosedForm, positions: np.ndarray) -> FilterChoice:
    """The filters under which a closed form's first setting scores best on folds of these pairs.

    Each modality takes its own: its choices are compared with the other's first.
    """
    trials = [{"a": 0, "b": 0}]
    for side in "ab":
        trials += [{**trials[0], side: number} for number in range(1, len(task.choices(side)))]
    if len(trials) == 1:
        return FilterChoice(trials[0], 0, {}, None)
    first = method.settings(1, len(positions))
    scores = [fold_scores(task, method, first, positions, trial) for trial in trials]
    best = {}
    for side, other in ("ab", "ba"):
        mine = [number for number, trial in enumerate(trials) if trial[other] == 0]
        best[side] = trials[mine[tuning.choose(np.concatenate([scores[number] for number in mine]))]][side]
    chosen = {f"filter_{side}": float(best[side]) for side in "ab" if len(task.choices(side)) > 1}
    return FilterChoice(best, len(trials), chosen, scores[trials.index(best)] if best in trials else None)


def cross_validated(
    task: Task,
    method: ClosedForm,
    positions: np.ndarray,
    count: int,
    first_scores: np.ndarray | None = None,
    numbers: Mapping[str, int] | None = None,
) -> tuple[Maps, int, dict[str, float]]:
    """Maps fitted on these pairs, how many settings (`count` at most) were tried on folds of them, and the chosen one.

    Args:
        task, method, positions: what is fitted on which pairs.
        count: settings to try.
        first_scores: scores of `method.settings(1)` on the same folds, where they are known already.
        numbers: choice of each modality's filters; the maps are of what they pass on. None takes the rows as they are.
    """
    settings = method.settings(count, len(positions))
    chosen = 0
    if len(settings) > 1:
        known = first_scores is not None and settings[0] == method.settings(1, len(positions))[0]
        scores = fold_scores(task, method, settings[1:] if known else settings, positions, numbers)
        chosen = tuning.choose(np.concatenate([first_scores, scores]) if known and first_scores is not None else scores)
    whole = task if numbers is None else task.through(numbers).task
    [maps] = method.candidates(whole.samples(positions), [settings[chosen]])
    return maps, len(settings), dict(settings[chosen])


def fold_scores(
    task: Task, method: ClosedForm, settings: Sequence[Setting], positions: np.ndarray, numbers: Mapping[str, int] | None = None
) -> np.ndarray:
    """Scores of every held-out pair under every setting, `[settings, n]`; `numbers` as in `cross_validated`."""
    scores, parts = [], task.folds(positions)
    for number, held in enumerate(parts):
        task.progress("tuning fold", number, len(parts))
        fold = task.without(held)
        if numbers is not None:
            fold = fold.through(numbers).task
        spaces = (
            shared_space(fold, *maps, rows=CORRECTION_ROWS)
            for maps in method.candidates(fold.samples(np.setdiff1d(positions, held)), settings)
        )
        scores.append(torch.stack([tuning.held_out_score(space, *fold.held_out(held), *fold.distractors()) for space in spaces]))
    return torch.cat(scores, dim=1).numpy()
