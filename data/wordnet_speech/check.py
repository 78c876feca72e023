"""What the stores retrieve: ridge regression from speech to text, with a control that must be at
chance. Reads the stores only.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from gera_lightning.aligners.base import FitData
from gera_lightning.aligners.ridge import Ridge
from gera_lightning.data.store import EmbeddingStore
from gera_lightning.evaluation.retrieval import retrieval
from gera_lightning.models.maps import normalized
from gera_lightning.models.preprocessing import Preprocessing

BUDGETS = ((1_000, 5, 3.0), (10_000, 1, 0.3))
"""Pairs, how many disjoint draws of them are averaged, and the relative penalty: the best on an
inner split of training items.
"""


def report(speech: EmbeddingStore, text: EmbeddingStore, unseen: list[str]) -> None:
    """Print R@10 of every test utterance among all test sentences, by seen and unseen voices, for
    true and for shuffled pairs.
    """
    rows = speech.rows
    number = {item: i for i, item in enumerate(text.rows["item"])}
    partner = np.array([number[item] for item in rows["item"]])
    train, test = (np.flatnonzero(rows["split"] == split) for split in ("train", "test"))
    gallery = np.unique(partner[test])
    new_voice = rows["group"].iloc[test].isin(unseen).to_numpy(copy=True)
    asked = {
        "all voices": np.full(len(test), True),
        "seen voices": ~new_voice,
        "unseen voices": new_voice,
    }
    x, y = torch.from_numpy(speech.read()), torch.from_numpy(text.read())
    fit_a, fit_b = Preprocessing.fit(x[train]), Preprocessing.fit(y[partner[train]])
    print(
        f"R@10 of spoken test items among {len(gallery):,} sentences; chance"
        f" {10 / len(gallery):.3f}"
    )
    for pairs, draws, penalty in BUDGETS:
        for control in (False, True):
            found: dict[str, list[float]] = {kind: [] for kind in asked}
            for draw in range(draws):
                chosen = train[draw * pairs : (draw + 1) * pairs]
                other = np.random.default_rng(draw).permutation(chosen) if control else chosen
                map_a, map_b = _ridge(fit_a(x[chosen]), fit_b(y[partner[other]]), penalty)
                with torch.inference_mode():
                    z_a, z_b = (
                        normalized(map_a(fit_a(x[test]))),
                        normalized(map_b(fit_b(y[gallery]))),
                    )
                for kind, which in asked.items():
                    scores = retrieval(
                        z_a[which],
                        z_b,
                        torch.from_numpy(partner[test][which]),
                        torch.from_numpy(gallery),
                    )
                    found[kind].append(scores["r@10"])
            values = "  ".join(f"{kind} {np.mean(each):.3f}" for kind, each in found.items())
            print(f"{pairs:6,} {'shuffled pairs' if control else 'pairs':14} {values}")


def _ridge(x: Tensor, y: Tensor, penalty: float) -> tuple[torch.nn.Module, torch.nn.Module]:
    """The maps of a ridge regression from speech to text."""
    [maps] = Ridge("a_to_b").candidates(FitData(x, y, x[:0], y[:0]), [{"penalty": penalty}])
    return maps
