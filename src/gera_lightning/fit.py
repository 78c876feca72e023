"""A method on its rows: what it is fitted on, what comes out, and the closed forms.

A closed form is fitted for all its settings on each fold of the budget, the best one again on all pairs. Before that, where there are
several choices of feature filters, its first setting decides between them in the same way.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
from gera_lightning.data.datamodule import TrainingRows
from gera_lightning.heads import Chain
from gera_lightning.parts import Part, build

CORRECTION_ROWS = 1000
"""Pool rows that scores are corrected against while settings are compared: enough to rank settings, a fraction of the time."""
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
    """

    config: Config
    rows: TrainingRows
    families: pd.Series
    seed: int
    folder: Path
    progress: Progress

    def folds(self, positions: np.ndarray) -> list[np.ndarray]:
        """Parts of `positions` for cross-validation."""
        return [positions[part] for part in splits.folds(self.rows.items[positions], self.families, self.config.tuning.folds, self.seed)]

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

    def filtered(self, choice: Mapping[str, Sequence[Part]], number: int) -> Filtered:
        """The task on features that a choice of filters has passed over, and the filters' maps."""
        maps, sides = [], {}
        for side in "ab":
            modality = getattr(self.rows, side)
            mapping, pool = fit_filters(build_filters(choice, number, side), modality.pool)
            key = {**modality.key, "filters": json.dumps(choice[side], sort_keys=True)} if choice.get(side) else modality.key
            maps.append(mapping)
            with torch.no_grad():
                sides[side] = dataclasses.replace(modality, pairs=mapping(modality.pairs), pool=pool, key=key)
        return Filtered(dataclasses.replace(self, rows=dataclasses.replace(self.rows, **sides)), (maps[0], maps[1]), bool(choice))


@dataclass(frozen=True)
class Filtered:
    """A task on filtered features.

    Attributes:
        task: its rows are the filters' images.
        maps: the filters of both modalities.
        active: False where the choice was to leave features as they are.
    """

    task: Task
    maps: Maps
    active: bool

    def behind(self, map_a: nn.Module, map_b: nn.Module) -> Maps:
        """Maps of frozen rows: the filters, then the given maps."""
        return (Chain(self.maps[0], map_a), Chain(self.maps[1], map_b)) if self.active else (map_a, map_b)


@dataclass(frozen=True)
class Fitted:
    """A shared space and how it came about.

    Attributes:
        space: maps and score.
        steps: optimizer steps of the last training.
        settings: settings that tuning evaluated.
        chosen: the setting it chose.
    """

    space: SharedSpace
    steps: int
    settings: int
    chosen: dict[str, float]


def build_filters(choice: Mapping[str, Sequence[Part]], number: int, side: str) -> list[Filter]:
    """The filters of one modality in choice `number` of the config's `filters`.

    Raises:
        UserError: naming the part that is refused.
    """
    return [build(part, f"filters[{number}].{side}[{i}]") for i, part in enumerate(choice.get(side) or ())]


@torch.inference_mode()
def shared_space(task: Task, map_a: nn.Module, map_b: nn.Module, rows: int | None = None) -> SharedSpace:
    """Maps as they stand with the score correction that the config asks for, against `rows` of each pool (all by default)."""
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
    choice = choose_filter(task, method, everything)
    filtered, count = choice.filtered, task.config.tuning.settings - choice.tried
    maps, settings, setting = cross_validated(filtered.task, method, everything, count, choice.scores)
    space = shared_space(filtered.task, *maps)
    space.map_a, space.map_b = filtered.behind(*maps)
    return Fitted(space, 0, choice.tried + settings, {**choice.chosen, **setting})


@dataclass(frozen=True)
class FilterChoice:
    """The filters that were chosen, and what the choice took.

    Attributes:
        filtered: the task on filtered features.
        tried: choices that were compared; 0 where there was but one.
        chosen: the chosen one's number, for the result row.
        scores: its held-out pairs' scores under the method's first setting, `[1, n]`; None where nothing was compared.
    """

    filtered: Filtered
    tried: int
    chosen: dict[str, float]
    scores: np.ndarray | None


def choose_filter(task: Task, method: ClosedForm, positions: np.ndarray) -> FilterChoice:
    """The choice of filters under which a closed form's first setting scores best on folds of these pairs."""
    choices = [task.filtered(choice, number) for number, choice in enumerate(task.config.filters or [{}])]
    if len(choices) == 1:
        return FilterChoice(choices[0], 0, {}, None)
    first = method.settings(1, len(positions))
    scores = [_fold_scores(choice.task, method, first, positions) for choice in choices]
    best = tuning.choose(np.concatenate(scores))
    return FilterChoice(choices[best], len(choices), {"filter": float(best)}, scores[best])


def cross_validated(
    task: Task, method: ClosedForm, positions: np.ndarray, count: int, first_scores: np.ndarray | None = None
) -> tuple[Maps, int, dict[str, float]]:
    """Maps fitted on these pairs, how many settings (`count` at most) were tried on folds of them, and the chosen one.

    Args:
        task, method, positions: what is fitted on which pairs.
        count: settings to try.
        first_scores: scores of `method.settings(1)` on the same folds, where they are known already.
    """
    settings = method.settings(max(count, 1), len(positions))
    chosen = 0
    if len(settings) > 1:
        known = first_scores is not None and settings[0] == method.settings(1, len(positions))[0]
        scores = _fold_scores(task, method, settings[1:] if known else settings, positions)
        chosen = tuning.choose(np.concatenate([first_scores, scores]) if known and first_scores is not None else scores)
    [maps] = method.candidates(task.samples(positions), [settings[chosen]])
    return maps, len(settings), dict(settings[chosen])


def _fold_scores(task: Task, method: ClosedForm, settings: Sequence[Setting], positions: np.ndarray) -> np.ndarray:
    """Scores of every held-out pair under every setting, `[settings, n]`."""
    scores, parts = [], task.folds(positions)
    for number, held in enumerate(parts):
        task.progress("tuning fold", number, len(parts))
        spaces = (
            shared_space(task, *maps, rows=CORRECTION_ROWS)
            for maps in method.candidates(task.samples(np.setdiff1d(positions, held)), settings)
        )
        scores.append(torch.stack([tuning.held_out_score(space, *task.held_out(held), *task.distractors()) for space in spaces]))
    return torch.cat(scores, dim=1).numpy()
