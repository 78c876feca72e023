"""Classification by names: each row's class is that of the best class name.

Legend: `n` queries, `N` gallery rows, `D` width.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from gera_lightning.evaluation.retrieval import chance, rank_positives


def classification(
    z_q: Tensor, z_g: Tensor, queries: pd.DataFrame, gallery: pd.DataFrame, *, chunk: int = 4096
) -> dict[str, float]:
    """Accuracy of the queries whose class has a name in the gallery.

    Names are gallery rows whose `split` is `both`. They name their item where queries are of that
    item, else their `label`. Rows that are names themselves are no queries.

    Args:
        z_q, z_g: rows whose dot product is the score `[n, D]`, `[N, D]`.
        queries, gallery: their tables.
        chunk: queries scored at once.

    Returns:
        `accuracy`, the share of queries whose best name is right; `accuracy@5`, that of queries
        with a right one among the best five; `balanced_accuracy`, the mean over classes of each
        one's accuracy; `accuracy_chance`, that of a random order of the names. `classes`, how many
        are asked for, where items are the classes and the gallery holds nothing but their names, so
        that the queries' ranks are those of classification. Empty where there are no such queries.

    >>> names = pd.DataFrame({"item": ["yes", "no"], "split": "both"})
    >>> spoken = pd.DataFrame({"item": ["yes", "no", "no"], "split": "test"})
    >>> z = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
    >>> found = classification(z, torch.eye(2), spoken, names)
    >>> round(found["accuracy"], 3), found["balanced_accuracy"], found["accuracy_chance"]
    (0.667, 0.75, 0.5)
    """
    if "split" not in gallery:
        return {}
    is_name = (gallery["split"] == "both").to_numpy(copy=True)
    column = "item" if queries["item"].isin(gallery["item"][is_name]).any() else "label"
    if column not in gallery or column not in queries:
        return {}
    is_name &= gallery[column].notna().to_numpy()
    asked = queries[column].isin(gallery[column][is_name]).to_numpy(copy=True)
    if "split" in queries:
        asked &= (queries["split"] != "both").to_numpy()
    if not asked.any():
        return {}
    names = pd.concat([queries[column][asked], gallery[column][is_name]])
    numbers = pd.factorize(names)[0].astype(np.int64)
    class_q, class_g = numbers[: asked.sum()], numbers[asked.sum() :]
    rank = rank_positives(
        z_q[torch.from_numpy(asked)],
        z_g[torch.from_numpy(is_name)],
        torch.from_numpy(class_q),
        torch.from_numpy(class_g),
        chunk=chunk,
    ).best.numpy()
    found = {
        "accuracy": float(np.mean(rank <= 1)),
        "accuracy@5": float(np.mean(rank <= 5)),
        "balanced_accuracy": float(pd.Series(rank <= 1).groupby(class_q).mean().mean()),
        "accuracy_chance": chance(class_q, class_g, 1),
    }
    if column == "item" and is_name.all():
        found["classes"] = float(len(np.unique(class_q)))
    return found
