"""What ridge regression finds on train items alone, beside controls that say why it finds it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from torch import Tensor

from gera_lightning.aligners.ridge import Ridge
from gera_lightning.data.splits import split_items
from gera_lightning.data.store import EmbeddingStore
from gera_lightning.evaluation.retrieval import rank_positives, retrieval
from gera_lightning.models.preprocessing import Preprocessing

BUDGETS = (300, 1_000)
PENALTY = 1.0
WORDS = 4_096
"""Words that tf-idf counts."""


def report(speech: EmbeddingStore, text: EmbeddingStore) -> None:
    """Print R@10 from speech to text, by what stands for the speech."""
    split = split_items(speech.rows, text.rows, dev=True)
    number_of = pd.Series(range(len(text)), index=text.rows["item"])
    partner = number_of[speech.rows["item"]].to_numpy()
    x, y = torch.from_numpy(speech.read()), torch.from_numpy(text.read())
    words = TfidfVectorizer(max_features=WORDS, sublinear_tf=True).fit(text.rows["text"])
    voices = pd.get_dummies(speech.rows["group"]).to_numpy("float32", copy=True)
    stands_for = {
        "speech": x,
        "speech, shuffled pairs": x,
        "voice alone": torch.from_numpy(voices),
        "seconds alone": _of_seconds(speech.rows["seconds"].to_numpy("float32")),
        "true words (tf-idf)": torch.from_numpy(
            words.transform(speech.rows["text"]).toarray().astype("float32")
        ),
    }
    chance = 10 / len(split.test_b)
    print(f"R@10 of {len(split.test_a):,} spoken train items held out", end="")
    print(f" among {len(split.test_b):,} sentences; chance {chance:.3f}")
    for pairs in BUDGETS:
        train = split.train_a[:pairs]
        for name, rows in stands_for.items():
            shuffled = np.random.default_rng(0).permutation(train)
            other = partner[shuffled if "shuffled" in name else train]
            found = _recall(rows, y, (train, other), (split.test_a, partner), split.test_b)
            print(f"{pairs:6,} pairs  {name:24} {found:.3f}")


def _of_seconds(seconds: np.ndarray) -> Tensor:
    """Powers of the standardised logarithm of a length."""
    z = np.log(seconds)
    z = (z - z.mean()) / z.std()
    return torch.from_numpy(np.stack([z, z**2, z**3], axis=1))


def _recall(
    x: Tensor,
    y: Tensor,
    pairs: tuple[np.ndarray, np.ndarray],
    asked: tuple[np.ndarray, np.ndarray],
    gallery: np.ndarray,
) -> float:
    """R@10 of ridge regression; `pairs` are rows of x and of y, `asked` rows of x and the partner
    of every row of x.
    """
    rows, partner = asked
    fit_a, fit_b = Preprocessing.fit(x[pairs[0]]), Preprocessing.fit(y[pairs[1]])
    form = Ridge("a_to_b").fit(fit_a(x[pairs[0]]), fit_b(y[pairs[1]]), penalty=PENALTY)
    z_a, z_b = form.encode_a(fit_a(x[rows])), form.encode_b(fit_b(y[gallery]))
    item_q, item_g = torch.from_numpy(partner[rows]), torch.from_numpy(gallery)
    return retrieval(rank_positives(z_a, z_b, item_q, item_g), item_q, item_g)["r@10"]
