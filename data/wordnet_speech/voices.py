"""Who speaks which sentence: one row an utterance."""

from __future__ import annotations

import gzip
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from gera_lightning.data.splits import unit_hash
from gera_lightning.embedding.corpus import shuffled

SPOKEN_SHARE = {"train": 0.7, "test": 0.533}
"""Share of the sentences that are spoken; the others are text alone, unpaired by nature."""


@dataclass(frozen=True)
class Voice:
    """A voice of a program, with its arguments."""

    name: str
    engine: str
    arguments: tuple[str, ...]


UNSEEN = ("af_bella", "am_michael", "bf_emma", "bm_george")
"""Voices that speak test items only, one of each accent and sex."""
SEEN = (
    *("af_alloy", "af_aoede", "af_heart", "af_jessica", "af_kore", "af_nicole", "af_nova"),
    *("af_river", "af_sarah", "af_sky", "am_adam", "am_echo", "am_eric", "am_fenrir", "am_liam"),
    *("am_onyx", "am_puck", "am_santa", "bf_alice", "bf_isabella", "bf_lily"),
    *("bm_daniel", "bm_fable", "bm_lewis"),
)
"""Voices of train items, and of one row of every test item."""
ROBOTS = (
    Voice("robot-espeak-f5", "espeak-ng", ("-v", "en-us+f5", "-p", "48", "-s", "168")),
    Voice("robot-espeak-m3", "espeak-ng", ("-v", "en-gb-scotland+m3", "-p", "35", "-s", "150")),
    Voice("robot-flite-slt", "flite", ("-voice", "slt")),
    Voice("robot-flite-rms", "flite", ("-voice", "rms")),
)
"""Synthesisers of another kind, which speak test items only."""
HUMAN = "human"
"""Group and condition of the prompts that a person recorded."""
PROMPTS = Path("/usr/share/asterisk/sounds/en_US_f_Allison")
TRANSCRIPTS = Path("/usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz")
COLUMNS = ["row", "item", "text", "group", "family", "label", "split", "condition"]


def human_prompts() -> pd.DataFrame:
    """The recorded prompts of three words or more, one row each; `path` is the sound.

    Prompts of equal words are one item.
    """
    rows: list[dict[str, str]] = []
    with gzip.open(TRANSCRIPTS, "rt", encoding="utf-8") as file:
        lines = file.read().splitlines()
    for line in lines:
        name, colon, text = (part.strip() for part in line.partition(": "))
        path = PROMPTS / f"{name}.wav"
        if not colon or text.startswith("[") or len(text.split()) < 3 or not path.is_file():
            continue
        plain = " ".join(re.findall(r"[a-z0-9']+", text.lower()))
        item = f"human-{hashlib.sha256(plain.encode()).hexdigest()[:12]}"
        rows.append({"row": f"human-{name.replace('/', '-')}", "item": item, "text": text})
        rows[-1]["path"] = str(path)
    table = pd.DataFrame(rows)
    return table.assign(
        group=HUMAN, family=table["item"], label="prompt", split="test", condition=HUMAN
    )


def turn(item: str) -> float:
    """Where in (0, 1) an item stands among those to speak."""
    return unit_hash(f"spoken:{item}")


def utterances(sentences: pd.DataFrame) -> pd.DataFrame:
    """One row an utterance of a sentence, in an order that tells nothing: a share of the items by a
    voice of `SEEN`, of them the test items by one of `UNSEEN` and one of `ROBOTS` too.
    """

    def spoken(rows: pd.DataFrame, names: list[str], salt: str) -> pd.DataFrame:
        chosen = [names[int(unit_hash(f"{salt}:{i}") * len(names))] for i in rows["item"]]
        return rows.assign(group=chosen)

    share = sentences["split"].map(SPOKEN_SHARE)
    sentences = sentences[sentences["item"].map(turn) < share]
    test = sentences[sentences["split"] == "test"]
    rows = pd.concat(
        [
            spoken(sentences, list(SEEN), "voice"),
            spoken(test, list(UNSEEN), "unseen"),
            spoken(test, [voice.name for voice in ROBOTS], "robot"),
        ],
        ignore_index=True,
    )
    rows["row"] = rows["item"] + "-" + rows["group"]
    rows["condition"] = rows["group"].map(lambda name: "robot" if "robot" in name else None)
    return shuffled(rows, "speech")[COLUMNS]
