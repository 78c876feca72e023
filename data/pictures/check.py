"""What can be trusted in the stores, measured on train items alone: the image weights, what a ridge
regression retrieves, with controls, and what is alike across an inner split.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from gera_lightning.aligners.base import FitData
from gera_lightning.aligners.ridge import Ridge
from gera_lightning.data.splits import ItemSplit, Sample, sample_pairs, split_items
from gera_lightning.data.store import EmbeddingStore
from gera_lightning.encoders.efficientnet_lite import EfficientNetLiteEncoder
from gera_lightning.evaluation.retrieval import rank_positives, retrieval
from gera_lightning.models.maps import normalized
from gera_lightning.models.preprocessing import Preprocessing

BUDGETS, DRAWS = (100, 400, 1000), 5
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
"""Emoji with an obvious class, and its numbers in ImageNet-1k; those of train items are asked."""


def report(image: EmbeddingStore, text: EmbeddingStore) -> None:
    """Print all checks."""
    for name, store in (("image", image), ("text", text)):
        counts(name, store)
    classify(image)
    ridge(image, text)
    for name, store, side in (("image", image, "a"), ("text", text, "b")):
        split = split_items(image.rows, text.rows, dev=True)
        alike(name, store, getattr(split, f"train_{side}"), getattr(split, f"test_{side}"))


def counts(name: str, store: EmbeddingStore) -> None:
    """Rows, items and families by split; the largest families; families cut must be none."""
    rows = store.rows
    for split, part in rows.groupby("split"):
        print(
            f"{name} {split}: {len(part):,} rows, {part['item'].nunique():,} items,"
            f" {part['family'].nunique():,} families"
        )
    cut = int((rows.groupby("family")["split"].nunique() > 1).sum())
    sizes = rows.groupby("family")["item"].nunique().sort_values(ascending=False).head(12)
    largest = ", ".join(f"{family} {size}" for family, size in sizes.items())
    print(f"{name}: {cut} families cut by the split; the largest, in items: {largest}")


def classify(image: EmbeddingStore) -> None:
    """Top-1 and top-5 of the ImageNet classifier on emoji with an obvious class: broken weights or
    pixels would be at chance.
    """
    encoder = EfficientNetLiteEncoder(image.encoder["name"].removeprefix("efficientnet-"))
    rows = image.rows
    known = (rows["split"] == "train") & rows["text"].isin(IMAGENET)
    for group in ("google", "twitter"):
        chosen = np.flatnonzero(known & (rows["group"] == group))
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
    """R@10 of a ridge regression from image to text on the inner split's test items, mean of random
    draws of pairs.

    Two controls: shuffled pairs, and pictures of which only the renderer is left (its mean vector).
    """
    split = split_items(image.rows, text.rows, dev=True)
    x, y = torch.from_numpy(image.read()), torch.from_numpy(text.read())
    means = group_means(image, x, split.train_a)
    number = {item: code for code, item in enumerate(text.rows["item"])}
    items = tuple(
        torch.tensor([number[item] for item in store.rows["item"].iloc[rows]])
        for store, rows in ((image, split.test_a), (text, split.test_b))
    )
    controls = {"ridge": x, "shuffled pairs": x, "renderer alone": means}
    for budget in BUDGETS:
        samples = [
            sample_pairs(
                image.rows, text.rows, split, budget=budget, reserved_pairs=budget, seed=seed
            )
            for seed in range(DRAWS)
        ]
        for name, features in controls.items():
            found = [
                searched(features, y, split, sample, items, shuffle=name == "shuffled pairs")
                for sample in samples
            ]
            recall = [each["r@10"] for each in found]
            print(
                f"{budget:5,} pairs, {name:14} image to text R@10 {np.mean(recall):.3f} +-"
                f" {np.std(recall):.3f}  chance {found[0]['chance@10']:.3f}"
            )


def searched(
    x: Tensor,
    y: Tensor,
    split: ItemSplit,
    sample: Sample,
    items: tuple[Tensor, Tensor],
    *,
    shuffle: bool,
) -> dict[str, float]:
    """Retrieval of a ridge regression that is fitted on these pairs."""
    partner = np.random.default_rng(0).permutation(sample.pairs_b) if shuffle else sample.pairs_b
    fit_a, fit_b = Preprocessing.fit(x[split.train_a]), Preprocessing.fit(y[split.train_b])
    data = FitData(fit_a(x[sample.pairs_a]), fit_b(y[partner]), x[:0], y[:0])
    [(map_a, map_b)] = Ridge("a_to_b").candidates(data, [{"penalty": 1.0}])
    with torch.inference_mode():
        z_a = normalized(map_a(fit_a(x[split.test_a])))
        z_b = normalized(map_b(fit_b(y[split.test_b])))
        return retrieval(rank_positives(z_a, z_b, *items), *items)


def group_means(image: EmbeddingStore, x: Tensor, train: np.ndarray) -> Tensor:
    """Every picture replaced by the mean of its renderer's train rows."""
    groups = image.rows["group"].to_numpy()
    means = torch.empty_like(x)
    for group in np.unique(groups):
        of_group = groups == group
        means[of_group] = x[train][of_group[train]].mean(0)
    return means


def alike(
    name: str, store: EmbeddingStore, train: np.ndarray, test: np.ndarray, shown: int = 12
) -> None:
    """The pairs of rows most alike across the inner split: what a family rule may have missed."""
    rows, x = store.rows, store.read()
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    cosine = x[test] @ x[train].T
    print(f"{name}: the rows most alike across the inner split:")
    for flat in np.argsort(-cosine, axis=None)[:shown]:
        i, j = np.unravel_index(flat, cosine.shape)
        here, there = (f"{rows['row'][k]} {rows['text'][k]!r}" for k in (test[i], train[j]))
        print(f"  {cosine[i, j]:.3f}  {here}  |  {there}")
