"""Sentences of WordNet 3.0 and the voices that speak them: what is in the data set, before any
model sees it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from gera_lightning.data.splits import unit_hash
from gera_lightning.embedding.corpus import shuffled

COUNT = 12_000
WORDS = range(4, 13)
TEST_SHARE = 0.1
PLAIN = re.compile(r"[A-Za-z]+(?:['-][A-Za-z]+)*(?:,? [A-Za-z]+(?:['-][A-Za-z]+)*)*")

# lexicographer files of WordNet 3.0 (lexnames.5WN): the number in a data line, the class it stands
# for
LEXNAMES = """
    adj.all adj.pert adv.all noun.Tops noun.act noun.animal noun.artifact noun.attribute noun.body
    noun.cognition noun.communication noun.event noun.feeling noun.food noun.group noun.location
    noun.motive noun.object noun.person noun.phenomenon noun.plant noun.possession noun.process
    noun.quantity noun.relation noun.shape noun.state noun.substance noun.time verb.body
    verb.change verb.cognition verb.communication verb.competition verb.consumption verb.contact
    verb.creation verb.emotion verb.motion verb.perception verb.possession verb.social
    verb.stative verb.weather adj.ppl
""".split()  # noqa: SIM905


@dataclass(frozen=True)
class Voice:
    """One voice: an engine with its arguments."""

    name: str
    engine: str
    arguments: tuple[str, ...]


def _espeak(accent: str, variant: str, pitch: int, speed: int) -> Voice:
    name = f"espeak-{accent}+{variant}-p{pitch}-s{speed}"
    return Voice(
        name, "espeak-ng", ("-v", f"{accent}+{variant}", "-p", str(pitch), "-s", str(speed))
    )


def _flite(voice: str) -> Voice:
    return Voice(f"flite-{voice}", "flite", ("-voice", voice))


SEEN = [
    _espeak(
        "en", "m1", 45, 165
    ),  # `en` is the British accent; espeak-ng drops every variant of `en-gb`, silently
    _espeak("en-us", "f2", 60, 160),
    _espeak("en-gb-scotland", "m3", 35, 150),
    _espeak("en-gb-x-rp", "f4", 70, 175),
    _espeak("en-us-nyc", "m7", 50, 185),
    _espeak("en-029", "f1", 55, 155),
    _espeak("en-gb-x-gbclan", "m4", 30, 170),
    _espeak("en-gb-x-gbcwmd", "f3", 65, 145),
    _espeak("en-us", "klatt", 40, 160),
    _espeak("en", "klatt4", 50, 180),
    _flite("kal16"),
    _flite("awb"),
    _flite("rms"),
]
"""Voices of train items, and of one row of every test item."""
UNSEEN = [_espeak("en-us", "f5", 48, 168), _flite("slt")]
"""Voices that speak test items only."""
FLITE_SHARE = 0.4
"""Share of rows spoken by flite's three seen voices; espeak-ng's ten share the rest."""


def _glosses(folder: Path) -> Iterator[tuple[str, str, str]]:
    """(synset, lexicographer file, gloss) of every synset."""
    for part in ("noun", "verb", "adj", "adv"):
        with open(folder / f"data.{part}", encoding="latin-1") as lines:
            for line in lines:
                if line.startswith("  "):  # the licence
                    continue
                fields, _, gloss = line.partition(" | ")
                offset, lexfile, kind = fields.split(" ", 3)[:3]
                yield (
                    f"{'a' if kind == 's' else kind}{offset}",
                    LEXNAMES[int(lexfile)],
                    gloss.strip(),
                )


def _sentences(gloss: str) -> Iterator[str]:
    """The definitions and the quoted examples of a gloss."""
    for example in re.findall(r'"([^"]+)"', gloss):
        yield example.strip().rstrip(".!?")
    for definition in re.sub(r'"[^"]*"', "", gloss).split(";"):
        yield definition.strip().rstrip(",:")


def choose_sentences(folder: Path, count: int = COUNT) -> pd.DataFrame:
    """The sentences: item, text, family (synset), label (lexicographer file) and split, all
    fixed by hashes.
    """
    kept: dict[str, tuple[str, str, str]] = {}
    for synset, lexname, gloss in _glosses(folder):
        for text in _sentences(gloss):
            if len(text.split()) in WORDS and PLAIN.fullmatch(text) and text.lower() not in kept:
                kept[text.lower()] = (text, synset, lexname)
    table = pd.DataFrame(kept.values(), columns=["text", "family", "label"])
    table["item"] = "wn-" + table["text"].str.lower().map(
        lambda t: hashlib.sha256(t.encode()).hexdigest()[:12]
    )
    table["family"] = "wn-" + table["family"]
    table = (
        table.sort_values("item").head(count).reset_index(drop=True)
    )  # the item's name is a hash: its order is a random choice
    table["split"] = [
        "test" if unit_hash(f"wordnet_speech:{f}") < TEST_SHARE else "train"
        for f in table["family"]
    ]
    return table[["item", "text", "family", "label", "split"]]


def choose_voices(sentences: pd.DataFrame) -> pd.DataFrame:
    """One row an utterance: each item by a seen voice, each test item by an unseen one too; in an
    order that tells nothing.
    """
    flite = [v for v in SEEN if v.engine == "flite"]
    espeak = [v for v in SEEN if v.engine == "espeak-ng"]

    def pick(item: str, voices: list[Voice], salt: str) -> str:
        return voices[int(unit_hash(f"{salt}:{item}") * len(voices))].name

    seen = sentences.copy()
    seen["group"] = [
        pick(i, flite if unit_hash(f"engine:{i}") < FLITE_SHARE else espeak, "voice")
        for i in seen["item"]
    ]
    unseen = sentences[sentences["split"] == "test"].copy()
    unseen["group"] = [pick(i, UNSEEN, "unseen") for i in unseen["item"]]
    rows = pd.concat([seen, unseen], ignore_index=True)
    rows["row"] = rows["item"] + "-" + rows["group"]
    return shuffled(rows, "speech")[["row", "item", "text", "group", "family", "label", "split"]]
