"""Items of both sources: their words, their pictures, families and split, as tables of rows."""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from itertools import chain
from pathlib import Path

import clipart
import numpy as np
import pandas as pd
from emoji import RENDERERS, TEXT_PACKAGE, read_emoji, read_images, tarball
from families import base_family, merged, named_family
from PIL import Image
from ties import near_duplicates, same_name, series, thing

from gera_lightning.data.splits import unit_hash
from gera_lightning.data.store import EmbeddingStore
from gera_lightning.embedding.corpus import shuffled

MOST = 4
"""Drawings of the same words that are kept."""
TEST_SHARE, LARGE = 0.24, 30
"""A family whose hash is below is test, unless it has more items: few large families would be half
of the test.
"""


def sentence(name: str, keywords: tuple[str, ...]) -> str:
    """What the text encoder reads of an item.

    >>> sentence("zebra", ("animal", "stripe"))
    'zebra: animal, stripe'
    """
    return f"{name}: {', '.join(keywords)}" if keywords else name


def emoji_rows(work: Path) -> tuple[pd.DataFrame, dict[str, bytes]]:
    """One row per emoji and renderer, those of the shortest codes first, and the pictures by row.

    So "family" comes before "family: man, woman, boy", and keeps a picture that both have.
    """
    emoji = sorted(
        read_emoji(tarball(TEXT_PACKAGE, work)), key=lambda e: (e.code.count("-"), e.code)
    )
    codes = {e.code for e in emoji}
    drawn = {r: read_images(tarball(f"emoji-datasource-{r}", work), r, codes) for r in RENDERERS}
    rows = pd.DataFrame(
        {
            "row": f"emoji-{e.code}-{renderer}",
            "item": f"emoji-{e.code}",
            "group": renderer,
            "name": e.name,
            "sentence": sentence(e.name, e.keywords),
            "label": e.group,
            "family": base_family(e.code, e.name, e.topic),
            "author": "",
            "folder": "",
        }
        for e in emoji
        for renderer in RENDERERS
        if e.code in drawn[renderer]
    )
    pictures = (drawn[row.group][row.item.removeprefix("emoji-")] for row in rows.itertuples())
    return rows, dict(zip(rows["row"], pictures, strict=True))


def clipart_rows(work: Path) -> tuple[pd.DataFrame, dict[str, bytes], Counter[str]]:
    """One row per drawing, the pictures by row, and how many are left out, by reason.

    Drawings of the same words are rows of one item.
    """
    drawings, out = clipart.read_drawings()
    pictures = clipart.pictures(drawings, work / "clipart")
    out["cannot be drawn, or nothing can be seen"] = len(drawings) - len(pictures)
    rows = pd.DataFrame(
        {
            "row": f"clipart-{d.path}",
            "item": f"clipart-{hashlib.sha256(text.encode()).hexdigest()[:12]}",
            "group": "openclipart",
            "name": d.name,
            "sentence": text,
            "label": d.category,
            "family": named_family(thing(d.name)),
            "author": d.author,
            "folder": d.folder,
        }
        for d in drawings
        if d.path in pictures
        for text in [sentence(d.name, d.keywords)]
    )
    return rows, {f"clipart-{path}": png for path, png in pictures.items()}, out


def pixel_hash(png: bytes) -> str:
    """Hash of the decoded pixels: equal for pictures that look the same, however they are
    compressed.
    """
    image = Image.open(io.BytesIO(png)).convert("RGBA")
    return hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest()


def read(work: Path) -> tuple[pd.DataFrame, dict[str, bytes]]:
    """All pictures of both sources by row, and their table; prints what is left out.

    Of pictures equal to the pixel the first is kept, and of drawings of the same words `MOST`. The
    column `kept` says which; an item left without any is dropped.
    """
    emoji, emoji_pictures = emoji_rows(work)
    drawings, drawn, out = clipart_rows(work)
    pictures = emoji_pictures | drawn
    rows = pd.concat([emoji, drawings], ignore_index=True)
    rows["item"] = rows.groupby("sentence")["item"].transform("first")  # same words, same item
    rows["pixels"] = rows["row"].map(lambda row: pixel_hash(pictures[row]))
    once = rows[~rows["pixels"].duplicated()]
    kept = once.groupby("item", sort=False).head(MOST)
    rows["kept"] = rows.index.isin(kept.index)
    out["equal to the pixel to another"] = len(drawings) - sum(once["group"] == "openclipart")
    out[f"beyond {MOST} drawings of the same words"] = len(once) - len(kept)
    print("drawings left out: ", end="")
    print("; ".join(f"{count:,} {reason}" for reason, count in out.most_common()))
    return rows, pictures


def image_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """What is known of the rows of the image store before families are."""
    kept = rows[rows["kept"]]
    label = kept.drop_duplicates("item").set_index("item")["label"]  # one per item
    kept = kept.assign(text=kept["name"], label=kept["item"].map(label))
    return shuffled(kept, "image")[["row", "item", "text", "group", "label"]]


def text_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """The same of the text store: one row per item."""
    items = rows[rows["kept"]].drop_duplicates("item")
    items = items.assign(row=items["item"] + "-text", text=items["sentence"])
    return shuffled(items, "text")[["row", "item", "text", "label"]]


def families(rows: pd.DataFrame, frozen: dict[str, EmbeddingStore]) -> dict[str, str]:
    """Family of every item: the rules of families.py and ties.py.

    Args:
        rows: the table of `read`.
        frozen: stores of the rows that are kept.
    """
    first = rows.drop_duplicates("item").set_index("item")["family"]
    twins = rows.groupby("pixels")["item"].unique()
    near = (near_duplicates(store.rows["item"], store.read()) for store in frozen.values())
    ties = chain(map(tuple, twins), same_name(rows), series(rows), *near)
    return merged(first.to_dict(), ties)


def with_split(rows: pd.DataFrame, family: dict[str, str]) -> pd.DataFrame:
    """Rows of a store with family and split: size and a hash of the family's name decide.

    Args:
        rows: of a store that holds every item.
        family: of every item.
    """
    of_row = rows["item"].map(family)
    items = rows.groupby(of_row)["item"].nunique()
    chosen = [name for name in items.index if unit_hash(f"pictures:{name}") < TEST_SHARE]
    in_test = of_row.isin(items[chosen].index[items[chosen] <= LARGE])
    return rows.assign(family=of_row, split=np.where(in_test, "test", "train"))
