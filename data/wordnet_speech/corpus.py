"""Sentences of WordNet 3.0, chosen by hashes."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from gera_lightning.data.splits import unit_hash

COUNT = 20_000
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
