"""How often `gera doctor` calls noise alignable: stores of independent Gaussian rows, whose pairs
say nothing.

    python benchmarks/doctor_false_alarms.py [PANELS]

Printed: of how many panels it said that alignment will work, and of how many it called a method
significantly better than another.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from gera_lightning.commands.doctor import doctor, verdict
from gera_lightning.data.store import EmbeddingStore, write_store

ITEMS, PAIRS = 800, 200


def store(folder: Path, name: str, width: int, seed: int) -> EmbeddingStore:
    """Gaussian rows; the first items are pairs, the others are unpaired."""
    x = np.random.default_rng(seed).normal(size=(ITEMS, width)).astype(np.float32)
    paired = [f"item{n}" if n < PAIRS * 2 else f"{name}{n}" for n in range(ITEMS)]
    rows = pd.DataFrame({"row": [f"{name}-{n}" for n in range(ITEMS)], "item": paired})
    return write_store(folder / name, x, rows, encoder={"name": "noise"}, source={"name": "noise"})


def main() -> None:
    """Examine panels of noise."""
    panels = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    works = differs = 0
    for panel in range(panels):
        with tempfile.TemporaryDirectory() as folder:
            a, b = (
                store(Path(folder), name, width, 2 * panel + number)
                for number, (name, width) in enumerate((("a", 64), ("b", 48)))
            )
            found = list(doctor(a.path, b.path, budget=PAIRS, seed=panel))
        works += "will work" in verdict(found)
        differs += any("worse" in one.text and not _all_as_good(one.text) for one in found)
    print(f"{panels} panels of noise, {PAIRS} pairs each:")
    print(f"  alignment will work: {works} ({works / panels:.1%})")
    print(f"  a method is significantly behind: {differs} ({differs / panels:.1%})")


def _all_as_good(text: str) -> bool:
    return all(line.endswith("not significantly") for line in text.splitlines()[1:])


if __name__ == "__main__":
    main()
