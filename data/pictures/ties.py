"""What makes two items one family, besides the rules for emoji in families.py.

1. **Same name** in another version: equal after taking out colour, size, side, number and plural
   ("folder red", "big folders 2"), among emoji and drawings alike.
2. **Series**: drawings of one author in one folder whose names begin or end with the same word
   ("ninja tux", "baby tux").
3. **Near-duplicates**: pictures, or words, whose frozen vectors have a cosine above 0.95.

`families.merged` joins all that is tied, also over several steps.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import pandas as pd

ALIKE = 0.95
"""Rows of a higher cosine are near-duplicates."""
VERSION_WORDS = """
black blue bright brown bw color colored colour coloured cyan dark gold golden gray green grey light
magenta orange pink purple red silver violet white yellow
big huge large little medium mini small tiny
back bottom down front left right side top up
alt alternative another basic contour cute drawing filled flag new old outline outlined plain
sign silhouette simple sketch style stylized symbol version
a an and at by for in of on or the to with
"""
"""Words that tell versions of one thing apart, or nothing."""


def singular(word: str) -> str:
    """A noun without the ending of the plural.

    >>> [singular(word) for word in ("berries", "boxes", "cats", "bus", "glass")]
    ['berry', 'box', 'cat', 'bus', 'glass']
    """
    if word.endswith("ies") and len(word) > 4:
        return f"{word[:-3]}y"
    if word.endswith(("ches", "shes", "xes", "sses")):
        return word[:-2]
    return word[:-1] if word.endswith("s") and not word.endswith(("ss", "us", "is")) else word


def thing(name: str) -> str:
    """A name without what tells versions apart; the whole name if nothing else is left.

    >>> thing("Two big red folders (2)"), thing("red")
    ('two folder', 'red')
    """
    words = [singular(word) for word in re.findall(r"[^\W\d_]+", name.lower())]
    return " ".join(word for word in words if word not in VERSION_WORDS.split()) or name.lower()


def same_name(rows: pd.DataFrame) -> Iterator[tuple[str, ...]]:
    """Items that are versions of one thing by their names."""
    return _groups(rows["item"], rows["name"].map(thing))


def series(rows: pd.DataFrame) -> Iterator[tuple[str, ...]]:
    """Items that an author drew as a series: rows with an author, by author, folder and word."""
    drawn = rows[rows["author"] != ""]
    words = drawn["name"].map(lambda name: thing(name).split())
    for position in (0, -1):
        yield from _groups(drawn["item"], drawn["author"], drawn["folder"], words.str[position])


def _groups(items: pd.Series, *keys: pd.Series) -> Iterator[tuple[str, ...]]:
    for _, members in items.groupby([key.to_numpy() for key in keys]):
        if members.nunique() > 1:
            yield tuple(members.unique())


def near_duplicates(
    items: pd.Series, x: np.ndarray, block: int = 1024
) -> Iterator[tuple[str, ...]]:
    """Pairs of items with rows `x` of a cosine above `ALIKE`."""
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    names = items.to_numpy()
    for start in range(0, len(x), block):
        cosine = x[start : start + block] @ x[start:].T
        for i, j in np.argwhere(np.triu(cosine > ALIKE, 1)):
            if names[start + i] != names[start + j]:
                yield names[start + i], names[start + j]
