"""The default on data that nothing was tuned on: halves of handwritten digits, words against
sentence embeddings, the made views.

    python benchmarks/untuned.py            # or some of: digits words synthetic linear table noisy

Makes the stores in `.cache/untuned`, sweeps `coupled_ridge`, its twin `coupled_ridge_off`, `ridge`
and `contrastive` over five seeds, and prints their recall and whether `coupled_ridge` is anywhere
significantly worse. The digits are scikit-learn's, 1,797 of 8 x 8 pixels, the left half one
modality and the right half the other. The words are the shipped WordNet sentences, as the leading
directions of their tf-idf, which is fitted on training rows. Three more run when they are named,
for they were tuned on: that `coupled_ridge` has CCA and a strong penalty among its settings is for
them. `linear` is two linear views of twenty factors, those that are strong in the one weak in the
other; `table` is scikit-learn's breast cancer data, 15 measurements of a tumour against the other
15; `noisy` is two views of clusters with as much noise as signal.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from rich.console import Console
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer

from gera_lightning import config
from gera_lightning.config.loading import SHIPPED
from gera_lightning.data.store import EmbeddingStore, write_store
from gera_lightning.experiment.runner import run_sweep
from gera_lightning.report.outcome import summarize
from gera_lightning.report.write import write_report

FOLDER = Path(".cache") / "untuned"
SENTENCES = Path("data") / "wordnet_speech" / "text"
METHODS = ["coupled_ridge", "coupled_ridge_off", "ridge", "contrastive"]


def _store(name: str, x: np.ndarray, rows: pd.DataFrame, encoder: str, source: str) -> None:
    """Write a store in place of an earlier one."""
    shutil.rmtree(FOLDER / name, ignore_errors=True)
    write_store(
        FOLDER / name, x, rows, encoder={"name": encoder}, source={"name": source}, dtype="float32"
    )


def _view(
    name: str, x: np.ndarray, items: list[str], encoder: str, source: str, **columns: np.ndarray
) -> None:
    """Write one modality's vectors, row i of item i."""
    rows = pd.DataFrame({"row": [f"{item}-{name}" for item in items], "item": items, **columns})
    _store(name, x.astype(np.float32), rows, encoder, source)


def make_digits() -> dict[str, object]:
    """Left halves against right halves."""
    digits = load_digits()
    items = [f"digit{number:04d}" for number in range(len(digits.target))]
    for name, pixels in (("left", digits.images[:, :, :4]), ("right", digits.images[:, :, 4:])):
        _view(
            name,
            pixels.reshape(len(items), -1),
            items,
            "pixels",
            "sklearn digits",
            label=digits.target.astype(str),
        )
    return {
        "data": {"a": str(FOLDER / "left"), "b": str(FOLDER / "right")},
        "budgets": [25, 50, 100, 200, 400],
    }


def make_words() -> dict[str, object]:
    """Bags of words against sentence embeddings."""
    store = EmbeddingStore(SENTENCES)
    rows, train = store.rows, (store.rows["split"] == "train").to_numpy()
    tfidf, svd = TfidfVectorizer(sublinear_tf=True, min_df=2), TruncatedSVD(384, random_state=0)
    counts = tfidf.fit(rows["text"][train]).transform(rows["text"])
    x = svd.fit(counts[train]).transform(counts).astype(np.float32)
    rows = rows.assign(row=rows["row"] + "-words")
    _store("words", x, rows, "tf-idf", str(SENTENCES))
    return {"data": {"a": str(FOLDER / "words"), "b": str(SENTENCES)}, "budgets": [100, 300, 1000]}


def make_synthetic() -> dict[str, object]:
    """The experiment `synthetic`."""
    return dict(yaml.safe_load((SHIPPED / "experiments" / "synthetic.yaml").read_text()))


def make_linear() -> dict[str, object]:
    """`a = (u s) R_a`, `b = (u s reversed) R_b` with `u` standard normal, `s = .8^k`, and noise of
    3 % of either's deviation.
    """
    rng, count, factors = np.random.default_rng(0), 2500, 20
    u, strength = rng.normal(size=(count, factors)), 0.8 ** np.arange(factors)
    items = [f"point{number:04d}" for number in range(count)]
    for side, width, weight in (("linear-a", 64, strength), ("linear-b", 48, strength[::-1])):
        x = (u * weight) @ rng.normal(size=(factors, width))
        x += 0.03 * x.std() * rng.normal(size=x.shape)
        _view(side, x, items, side, "made")
    return {
        "data": {"a": str(FOLDER / "linear-a"), "b": str(FOLDER / "linear-b")},
        "budgets": [30, 100, 200],
    }


def make_table() -> dict[str, object]:
    """Half of the columns against the other half, both drawn at random."""
    table = load_breast_cancer().data
    columns, scaled = (
        np.random.default_rng(0).permutation(30),
        (table - table.mean(0)) / table.std(0),
    )
    items = [f"tumour{number:03d}" for number in range(len(table))]
    for side, half in (("table-a", columns[:15]), ("table-b", columns[15:])):
        _view(side, scaled[:, half], items, side, "sklearn breast cancer")
    return {
        "data": {"a": str(FOLDER / "table-a"), "b": str(FOLDER / "table-b")},
        "budgets": [25, 50, 100],
    }


def make_noisy() -> dict[str, object]:
    """`tanh(z P_a) Q_a` scaled to unit deviation, plus standard normal noise, and so `b`, with `z`
    around one of 20 centres in 12 dimensions.
    """
    rng, count, factors = np.random.default_rng(0), 3000, 12
    z = rng.normal(size=(20, factors))[rng.integers(0, 20, count)] + 0.6 * rng.normal(
        size=(count, factors)
    )
    items = [f"point{number:04d}" for number in range(count)]
    for side, width in (("noisy-a", 96), ("noisy-b", 64)):
        x = np.tanh(z @ rng.normal(size=(factors, 128)) / factors**0.5) @ rng.normal(
            size=(128, width)
        )
        x = x / x.std() + rng.normal(size=x.shape)
        _view(side, x, items, side, "made")
    return {
        "data": {"a": str(FOLDER / "noisy-a"), "b": str(FOLDER / "noisy-b")},
        "budgets": [30, 100, 300],
    }


UNTUNED = {"digits": make_digits, "words": make_words, "synthetic": make_synthetic}
ALL = {**UNTUNED, "linear": make_linear, "table": make_table, "noisy": make_noisy}


def main(names: list[str]) -> None:
    """Make, sweep and report each."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in names:
        path = FOLDER / f"{name}.yaml"
        common = {
            "trainer": {"max_steps": 100},
            "batch": {"anchors": 32},
            "tuning": {"used_folds": 2},
        }
        path.write_text(yaml.safe_dump({**common, **ALL[name](), "sweep": {"methods": METHODS}}))
        words = ["sweep.workers=2"]
        loaded = config.load(str(path), words, sweep=True)
        summarize(loaded, run_sweep(loaded, [str(path), *words], Console()) or [])
        page = write_report(str(path))
        print((page.parent / "headline.md").read_text())
        print(pd.read_csv(page.parent / "differences.csv").to_string())


if __name__ == "__main__":
    wanted = sys.argv[1:] or list(UNTUNED)
    if not set(wanted) <= set(ALL):
        sys.exit(__doc__)
    main(wanted)
