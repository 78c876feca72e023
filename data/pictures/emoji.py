"""Emoji of three npm packages: which there are, what they are called and how two renderers draw
them.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

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
LEFT_OUT = {"component"}
"""Groups of no interest here: skin tones and hair are no pictures of their own."""


@dataclass(frozen=True)
class Emoji:
    """One emoji: `code` in lower-case hexadecimal without variation selectors, its name, keywords,
    group and subgroup.
    """

    code: str
    name: str
    keywords: tuple[str, ...]
    group: str
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
    """Every emoji of `emojibase-data` in English, without components; skin tones are no
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
                    group,
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
