"""What filters of the features are worth: coupled ridge behind each of them, on many splits of the
train items.

    python benchmarks/filters.py image_text 25,50,100,200,400

One dev split holds few families, and what helps on it may not help on the next one. So the train
items are split again by the hash of their family, in `SPLITS` ways, one draw of pairs each; the
sealed test items are never read. Prints R@10, the mean of both directions, without a filter, and
for each filter the mean difference to that with its standard error over the splits.
"""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import torch

from gera_lightning.aligners.base import FitData
from gera_lightning.aligners.coupled_ridge import CoupledRidge
from gera_lightning.config import load
from gera_lightning.data import splits
from gera_lightning.data.held_out import HeldOutItems
from gera_lightning.data.training_rows import TrainingRows, load_rows
from gera_lightning.evaluation.retrieval import rank_positives
from gera_lightning.experiment.paired_stores import Stores
from gera_lightning.filters.base import Filter, fit_filters
from gera_lightning.filters.beside import Beside
from gera_lightning.filters.diffusion import GraphDiffusion
from gera_lightning.filters.local_centering import LocalCentering
from gera_lightning.models.shared_space import CSLS, SharedSpace

SPLITS, SHARE = 10, 0.2
SETTING = {"eps": 1.0, "penalty": 0.3}
DIFFUSION = GraphDiffusion(k=50, factor=0.5, strength=0.8)
FILTERS: dict[str, tuple[list[Filter], list[Filter]]] = {
    "none": ([], []),
    "diffusion": ([GraphDiffusion()], [GraphDiffusion()]),
    "diffusion beside": ([Beside(DIFFUSION)], [Beside(DIFFUSION)]),
    "diffusion beside, a": ([Beside(DIFFUSION)], []),
    "diffusion beside, b": ([], [Beside(DIFFUSION)]),
    "local centering": ([LocalCentering()], [LocalCentering()]),
    "local centering, a": ([LocalCentering()], []),
    "local centering, b": ([], [LocalCentering()]),
    "local centering, a, 4 clusters": ([LocalCentering(clusters=4)], []),
    "local centering, a, 64 clusters": ([LocalCentering(clusters=64)], []),
}


def split_again(stores: Stores, number: int) -> Stores:
    """The train items alone, a share of their families held out."""
    split = stores.split
    held = {f for f in split.families.unique() if splits.unit_hash(f"filters{number}:{f}") < SHARE}
    parts = {}
    for side, store in (("a", stores.a), ("b", stores.b)):
        train = getattr(split, f"train_{side}")
        out = split.families[store.rows["item"].to_numpy(dtype=str)[train]].isin(held).to_numpy()
        parts |= {f"train_{side}": train[~out], f"test_{side}": train[out]}
    return replace(stores, split=replace(split, **parts))


def recall(
    rows: TrainingRows, held_out: HeldOutItems, filters: tuple[list[Filter], list[Filter]]
) -> float:
    """R@10, mean of both directions, of coupled ridge behind these filters, with half of CSLS."""
    (first_a, pool_a), (first_b, pool_b) = (
        fit_filters(parts, side.pool) for parts, side in zip(filters, (rows.a, rows.b), strict=True)
    )
    samples = FitData(first_a(rows.a.pairs), first_b(rows.b.pairs), pool_a, pool_b)
    [(map_a, map_b)] = CoupledRidge().candidates(samples, [SETTING])
    space = SharedSpace(map_a, map_b)
    space.correction = CSLS(
        weight=0.5, pool_a=space.embed("a", pool_a), pool_b=space.embed("b", pool_b)
    )
    z_a = space.embed("a", first_a(rows.a.preprocess(held_out.a.x)))
    z_b = space.embed("b", first_b(rows.b.preprocess(held_out.b.x)))
    there = rank_positives(
        space.queries(z_a), space.gallery("b", z_b), held_out.item_a, held_out.item_b
    ).best
    back = rank_positives(
        space.queries(z_b), space.gallery("a", z_a), held_out.item_b, held_out.item_a
    ).best
    return float(((there <= 10).float().mean() + (back <= 10).float().mean()) / 2)


@torch.inference_mode()
def main(experiment: str, budgets: list[int]) -> None:
    """Print a table per budget."""
    config = load(experiment).common
    stores = Stores.open(config)
    found: dict[int, dict[str, list[float]]] = {
        budget: {name: [] for name in FILTERS} for budget in budgets
    }
    for number in range(SPLITS):
        again = split_again(stores, number)
        for budget in budgets:
            rows = load_rows(again.a, again.b, again.sample_pairs(config, budget, number))
            for name, filters in FILTERS.items():
                found[budget][name].append(recall(rows, again.held_out, filters))
    for budget in budgets:
        base = np.array(found[budget]["none"])
        print(f"\n{experiment}, {budget} pairs: R@10 {base.mean():.3f} without a filter")
        for name, values in list(found[budget].items())[1:]:
            difference = np.array(values) - base
            print(
                f"  {name:<32} {difference.mean():+.3f} +-"
                f" {difference.std(ddof=1) / len(difference) ** 0.5:.3f}"
            )


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(sys.argv[1], [int(budget) for budget in sys.argv[2].split(",")])
