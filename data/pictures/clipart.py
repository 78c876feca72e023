"""Drawings of the Open Clip Art Library, as Debian's `openclipart-svg` has them: what each is
called, who drew it, and how it looks.
"""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from ties import singular

from gera_lightning.encoders.efficientnet_lite import on_white
from gera_lightning.utils.errors import UserError
from gera_lightning.utils.files import atomic_write

ROOT = Path("/usr/share/openclipart/svg")  # where Debian's openclipart-svg puts it
WORDNET = Path("/usr/share/wordnet")  # where Debian's wordnet-base puts it
RENDERER = "rsvg-convert"
LEFT_OUT = (
    "buttons",
    "computer/buttons",
    "recreation/games/cards",
    "shapes/stars",
    "special/gradients",
)
"""Folders of one shape in many versions that have no words of their own."""
SHARED = 3
"""A title of so many drawings may be a collection's: see `name_of`."""
NOISE = """aiga clip clipart de etiquette fs gnome hash icon icons illustration mime miscellaneous
openclip openclipart openclipartlibrary stock svg symbol symbols theme unsorted various"""
"""Words of titles and file names that say nothing of what is drawn."""
NO_KEYWORDS = """action actions appicon application applications cliparts hash icon icons mapsym
special theme unsorted various"""
"""Keywords that name a folder or a collection of the library, and such of several words."""
NO_KEYWORDS_OF_WORDS = (
    "lemon theme icon",
    "map symbol",
    "signs and symbols",
    "united nations member",
)
SMALL_WORDS = """a an and at by for from in of on or the to with"""
"""Words that count neither way when a name is judged."""
KNOWN_SHARE, ENOUGH_KEYWORDS = 0.5, 2
"""Words are usable if this share of a name's is English (WordNet has them), or if there are so many
keywords beside a name of another kind ("Cavallo: horse, mammal").
"""
RENDERED, KEPT, MARGIN = 512, 260, 0.04
"""Pixels of the page when it is drawn, of the picture that is kept; white around the drawing."""
SECONDS = 20
"""The longest that one drawing may take."""


@dataclass(frozen=True)
class Drawing:
    """One drawing: its file without the suffix, its name, keywords, author and folder."""

    path: str
    name: str
    keywords: tuple[str, ...]
    author: str

    @property
    def folder(self) -> str:
        """The folders it is in."""
        return self.path.rpartition("/")[0]

    @property
    def category(self) -> str:
        """The first of them."""
        return self.path.partition("/")[0]


@dataclass(frozen=True)
class Metadata:
    """What a file says of itself, as it stands there."""

    path: str
    title: str
    author: str
    keywords: tuple[str, ...]
    licence: str


# ---- words ----


def missing_packages() -> list[str]:
    """Debian packages that have to be installed first."""
    needed = {
        "librsvg2-bin": shutil.which(RENDERER),
        "openclipart-svg": ROOT.is_dir(),
        "wordnet-base": (WORDNET / "index.noun").exists(),
    }
    return [package for package, there in needed.items() if not there]


def read_metadata(path: Path) -> Metadata | None:
    """Title, author, keywords and licence of a file; None where it is no XML."""
    try:
        root = ElementTree.parse(path).getroot()
    except ElementTree.ParseError:
        return None
    work = next((node for node in root.iter() if node.tag.endswith("}Work")), None)
    found = {} if work is None else {node.tag.rpartition("}")[2]: node for node in work}
    licence = found.get("license")
    bag = found.get("subject")
    return Metadata(
        path.relative_to(ROOT).with_suffix("").as_posix(),
        _text(found.get("title")),
        _text(found.get("creator")),
        tuple(_text(node) for node in ([] if bag is None else bag.iter()) if _is_entry(node)),
        "" if licence is None else " ".join(licence.attrib.values()),
    )


def _text(node: ElementTree.Element | None) -> str:
    return "" if node is None else " ".join("".join(node.itertext()).split())


def _is_entry(node: ElementTree.Element) -> bool:
    return node.tag.endswith("}li")


def words(text: str) -> list[str]:
    """The words of a title or a file name, in lower case, without numbers and single letters.

    >>> words("New_Zealand-flagOfNZ 02 (b&w)")
    ['new', 'zealand', 'flag', 'of', 'nz']
    """
    text = re.sub(r"\([^)]*\)", " ", text)
    text = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text)
    found = re.findall(r"[^\W\d_]+(?:[’'][a-z]+)?", text.lower())
    return [word for word in found if len(word) > 1]


@cache
def english() -> frozenset[str]:
    """Single words that WordNet lists."""
    listed = set()
    for kind in ("noun", "verb", "adj", "adv"):
        for line in (WORDNET / f"index.{kind}").read_text().splitlines():
            listed.update(line.partition(" ")[0].split("_"))
    return frozenset(listed)


def is_english(word: str) -> bool:
    """Whether WordNet knows it, or its singular."""
    return len(word) > 2 and not {word, singular(word)}.isdisjoint(english())


def split_compound(word: str, shortest: int = 4) -> list[str]:
    """A word, or the two English words that it is made of, as icons are named ("floppydisk")."""
    if not is_english(word):
        for cut in range(shortest, len(word) - shortest + 1):
            if is_english(word[:cut]) and is_english(word[cut:]):
                return [word[:cut], word[cut:]]
    return [word]


def is_usable(name: list[str], keywords: tuple[str, ...]) -> bool:
    """Whether the words tell an English reader what is drawn."""
    told = [word for word in name if word not in SMALL_WORDS.split()]
    known = sum(map(is_english, told))
    english_name = known > 0 and known >= KNOWN_SHARE * len(told)
    return english_name or (bool(told) and len(keywords) >= ENOUGH_KEYWORDS)


def file_words(entry: Metadata) -> list[str]:
    """The words of a file's name, without the author's that many end in, often cut short."""
    author, found = words(entry.author), words(entry.path.rpartition("/")[2])
    while found and any(part.startswith(found[-1]) for part in author):
        found.pop()
    return found


def name_of(entry: Metadata, times: int) -> list[str]:
    """What a drawing is called, in words: its title, or its file's name.

    A collection's title ("Lemon SVG theme") stands in all its files and tells nothing of each. So
    the file's name takes the place of a title that is shared and has no word in common with it.

    Args:
        entry: the file.
        times: how many files have its title.
    """
    title = words(re.sub(r"^Clipart by [^-]+ - ", "", entry.title))
    file = file_words(entry)
    common = {singular(word) for word in title} & {singular(word) for word in file}
    named_after_collection = times >= SHARED and not common - set(NOISE.split())
    chosen = file if not title or named_after_collection else title
    return [part for word in chosen if word not in NOISE.split() for part in split_compound(word)]


def read_drawings() -> tuple[list[Drawing], Counter[str]]:
    """Every drawing with usable words, sorted by path, and how many are left out, by reason."""
    found, out = list[Metadata](), Counter[str]()
    for path in sorted(ROOT.rglob("*.svg")):
        if path.is_symlink():
            out["a link to another"] += 1
        elif path.relative_to(ROOT).as_posix().startswith(tuple(f"{name}/" for name in LEFT_OUT)):
            out["folder left out"] += 1
        elif (entry := read_metadata(path)) is None:
            out["no XML"] += 1
        elif "publicdomain" not in entry.licence.lower().replace(" ", ""):
            out["not declared public domain"] += 1
        else:
            found.append(entry)
    times = Counter(entry.title for entry in found)
    drawings = []
    for entry in found:
        name, keywords = name_of(entry, times[entry.title]), keywords_of(entry)
        if is_usable(name, keywords):
            drawings.append(Drawing(entry.path, " ".join(name), keywords, entry.author))
        else:
            out["no usable words"] += 1
    return drawings, out


def keywords_of(entry: Metadata) -> tuple[str, ...]:
    """Keywords of a file that tell what is drawn, in the order of the alphabet."""
    author = set(words(entry.author))
    told = {" ".join(words(keyword)): words(keyword) for keyword in entry.keywords}
    return tuple(
        sorted(
            keyword
            for keyword, parts in told.items()
            if keyword not in (*NO_KEYWORDS.split(), *NO_KEYWORDS_OF_WORDS)
            and any(map(is_english, parts))
            and author.isdisjoint(parts)
        )
    )


# ---- pictures ----


def render(path: str) -> bytes | None:
    """A drawing as PNG: what it shows, cut from its page, in the middle of a white square.

    Returns:
        None where it cannot be drawn within the time, or nothing can be seen.
    """
    size = str(RENDERED)
    command = [RENDERER, "--keep-aspect-ratio", "-w", size, "-h", size, f"{ROOT / path}.svg"]
    try:
        done = subprocess.run(command, capture_output=True, timeout=SECONDS, check=True)
        page = Image.open(io.BytesIO(done.stdout)).convert("RGBA")
    except (subprocess.SubprocessError, OSError):
        return None
    box = page.getchannel("A").getbbox()
    return None if box is None else _squared(on_white(page.crop(box)))


def _squared(picture: Image.Image) -> bytes | None:
    darkest = min(low for low, _ in picture.getextrema())
    if darkest > 250:
        return None  # white on white
    side = round(max(picture.size) * (1 + 2 * MARGIN))
    square = Image.new("RGB", (side, side), "white")
    square.paste(picture, tuple((side - length) // 2 for length in picture.size))
    file = io.BytesIO()
    square.resize((KEPT, KEPT), Image.Resampling.LANCZOS).save(file, "PNG")
    return file.getvalue()


def pictures(drawings: list[Drawing], folder: Path) -> dict[str, bytes]:
    """The picture of each drawing that can be drawn, by its path; those in `folder` are taken."""
    folder.mkdir(parents=True, exist_ok=True)
    columns = (
        TextColumn("drawing"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    found = {}
    with Progress(*columns) as bar:
        for drawing in bar.track(drawings):
            file = folder / f"{drawing.path.replace('/', '~')}.png"
            if not file.exists():
                with atomic_write(file) as scratch:
                    scratch.write_bytes(render(drawing.path) or b"")
            if png := file.read_bytes():  # an empty file: it was tried, and cannot be drawn
                found[drawing.path] = png
    return found


def check_packages() -> None:
    """All that is needed is there.

    Raises:
        UserError: one line naming the packages that are missing.
    """
    if missing := missing_packages():
        raise UserError(f"packages are missing: apt-get install {' '.join(missing)}")
