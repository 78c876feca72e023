"""What can be trusted in the stores: the image weights, what a ridge regression retrieves, and what
is alike across the split.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch

from gera_lightning.aligners.base import FitData
from gera_lightning.aligners.ridge import Ridge
from gera_lightning.data.store import EmbeddingStore
from gera_lightning.encoders.efficientnet_lite import EfficientNetLiteEncoder
from gera_lightning.evaluation.retrieval import retrieval
from gera_lightning.models.maps import normalized
from gera_lightning.models.preprocessing import Preprocessing

DRAWS = 5
ALIKE = 0.97
IMAGENET = {
    "zebra": {340},
    "tiger": {292},
    "lion": {291},
    "panda": {388},
    "koala": {105},
    "gorilla": {366},
    "orangutan": {365},
    "leopard": {288},
    "fox": {277},
    "penguin": {145},
    "peacock": {84},
    "flamingo": {130},
    "snail": {113},
    "scorpion": {71},
    "lady beetle": {301},
    "honeybee": {309},
    "lobster": {122, 123},
    "shark": {2, 3, 4},
    "blossom": {985},
    "mushroom": {947},
    "broccoli": {937},
    "bell pepper": {945},
    "banana": {954},
    "pineapple": {953},
    "strawberry": {949},
    "tangerine": {950},
    "lemon": {951},
    "pizza": {963},
    "hamburger": {933},
    "hot dog": {934},
    "pretzel": {932},
    "bagel": {931},
    "ambulance": {407},
    "bus": {779, 654, 874},
    "guitar": {402, 546},
    "violin": {889},
    "saxophone": {776},
    "accordion": {401},
    "umbrella with rain drops": {879},
    "basketball": {430},
    "tennis": {852},
    "soccer ball": {805},
    "baseball": {429},
    "volleyball": {890},
    "balloon": {417},
    "hammer": {587},
    "screwdriver": {784},
    "laptop": {620, 681},
}
"""Emoji with an obvious class, and its numbers in ImageNet-1k."""


def report(image: EmbeddingStore, text: EmbeddingStore) -> None:
    """Print all checks."""
    counts(image, text)
    classify(image)
    ridge(image, text)
    for name, store in (("image", image), ("text", text)):
        leak(name, store)


def counts(image: EmbeddingStore, text: EmbeddingStore) -> None:
    """Rows, items and families by split; families cut by the split must be none."""
    for name, store in (("image", image), ("text", text)):
        rows = store.rows
        cut = int((rows.groupby("family")["split"].nunique() > 1).sum())
        for split, part in rows.groupby("split"):
            print(
                f"{name} {split}: {len(part):,} rows, {part['item'].nunique():,} items,"
                f" {part['family'].nunique()} families"
            )
        print(f"{name}: {cut} families cut by the split")


def classify(image: EmbeddingStore) -> None:
    """Top-1 and top-5 of the ImageNet classifier on emoji with an obvious class: broken weights or
    pixels would be at chance.
    """
    encoder = EfficientNetLiteEncoder()
    rows = image.rows
    for group in sorted(rows["group"].unique()):
        chosen = np.flatnonzero((rows["group"] == group) & rows["text"].isin(IMAGENET))
        best = np.argsort(-encoder.logits(image.read(chosen)), axis=1)[:, :5]
        right = np.array(
            [
                [number in IMAGENET[name] for number in row]
                for name, row in zip(rows["text"].iloc[chosen], best, strict=True)
            ]
        )
        top1, top5 = right[:, 0].mean(), right.any(1).mean()
        print(
            f"ImageNet classes, {group:8} {len(chosen)} emoji: top-1 {top1:.2f}  top-5 {top5:.2f} "
            " (chance 0.001, 0.005)"
        )


def ridge(image: EmbeddingStore, text: EmbeddingStore) -> None:
    """R@10 of a ridge regression from image to text on the test items, mean of random draws of
    pairs; shuffled pairs as control.
    """
    rows = image.rows
    partner = rows["item"].map({item: i for i, item in enumerate(text.rows["item"])}).to_numpy()
    x, y = torch.from_numpy(image.read()), torch.from_numpy(text.read()[partner])
    train, test = (np.flatnonzero(rows["split"] == split) for split in ("train", "test"))
    gallery = np.unique(partner[test])
    fit_a, fit_b = Preprocessing.fit(x[train]), Preprocessing.fit(y[train])
    z_g, asked, ids = (
        fit_b(torch.from_numpy(text.read(gallery))),
        torch.from_numpy(partner[test]),
        torch.from_numpy(gallery),
    )
    for pairs in (100, 400):
        for name in ("ridge", "shuffled pairs"):
            found = []
            for seed in range(DRAWS):
                draw = np.random.default_rng(seed)
                mixed = draw.permutation(
                    train
                )  # the first row of an item in a random order: a random renderer
                chosen = mixed[~pd.Series(partner[mixed]).duplicated().to_numpy()][:pairs]
                order = draw.permutation(pairs) if name != "ridge" else np.arange(pairs)
                [(map_a, map_b)] = Ridge("a_to_b").candidates(
                    FitData(fit_a(x[chosen]), fit_b(y[chosen])[order], x[:0], y[:0]),
                    [{"penalty": 1.0}],
                )
                with torch.inference_mode():
                    found.append(
                        retrieval(
                            normalized(map_a(fit_a(x[test]))), normalized(map_b(z_g)), asked, ids
                        )
                    )
            mean, spread = np.mean([f["r@10"] for f in found]), np.std([f["r@10"] for f in found])
            print(
                f"{pairs:4} pairs, {name:14} image to text R@10 {mean:.3f} +- {spread:.3f}  chance"
                f" {found[0]['chance@10']:.3f}"
            )


def leak(name: str, store: EmbeddingStore, shown: int = 12) -> None:
    """The pairs of a training and a test row that are most alike: what a family rule may have
    missed.
    """
    rows, x = store.rows, store.read()
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    train, test = (np.flatnonzero(rows["split"] == split) for split in ("train", "test"))
    cosine = x[test] @ x[train].T
    print(
        f"{name}: {int((cosine.max(1) > ALIKE).sum())} of {len(test)} test rows have a training row"
        f" of cosine > {ALIKE}; the nearest:"
    )
    for flat in np.argsort(-cosine, axis=None)[:shown]:
        i, j = np.unravel_index(flat, cosine.shape)
        here, there = (f"{rows['row'][k]} {rows['text'][k]!r}" for k in (test[i], train[j]))
        print(f"  {cosine[i, j]:.3f}  {here}  |  {there}")
