"""Measure an aligner on any two stores, or classify one store's rows by prompts.

    gera evaluate ALIGNER STORE_A STORE_B [against=OTHER_ALIGNER rows=all]
    gera evaluate ALIGNER STORE prompts=classes.txt [encoder=FOLDER]

ALIGNER is the folder of an aligner or of a run. Where the stores have a `split` column, their test
items are measured. `classes.txt` has a line `class: prompt` for each prompt, or `class` alone.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from gera_lightning.aligners.aligner import Aligner
from gera_lightning.aligners.sharing import fitted_pairs
from gera_lightning.config import EvaluationConfig
from gera_lightning.config.overrides import parse_kwargs
from gera_lightning.data.held_out import HeldOutItems
from gera_lightning.data.splits import evaluate_on_all, split_items
from gera_lightning.data.store import EmbeddingStore
from gera_lightning.embedding.query import store_encoder
from gera_lightning.encoders.rebuild import side_that_takes
from gera_lightning.evaluation.classification import classification
from gera_lightning.evaluation.comparisons import Bootstrap, hits_of
from gera_lightning.evaluation.evaluate import evaluate as measure
from gera_lightning.evaluation.statistics import Estimate
from gera_lightning.experiment.load_run import existing_aligner_folder
from gera_lightning.experiment.paired_stores import direction_names, joint_hash
from gera_lightning.utils import distributed
from gera_lightning.utils.errors import UserError, check_one_of

Folder = str | os.PathLike[str]
ROWS = ("test", "all")
SHOWN = {"r@1": "R@1", "r@5": "R@5", "r@10": "R@10", "mrr": "MRR", "map": "mAP"}
UNIMODAL = {
    "knn_overlap": "10 nearest neighbours kept",
    "trustworthiness": "trustworthiness",
    "continuity": "continuity",
}


@dataclass(frozen=True)
class Evaluation:
    """What an aligner is worth; `str` shows it.

    Attributes:
        measures: as in a run's result row, such as `ab/r@10`.
        intervals: of R@10 of each direction, 95 % over families of items.
        difference: R@10, the mean of both directions, less that of `against`; None without it.
        text: the measures in lines.
    """

    measures: Mapping[str, float]
    intervals: Mapping[str, Estimate]
    difference: Estimate | None
    text: str

    def __str__(self) -> str:
        return self.text


def evaluate(
    aligner: Folder,
    store_a: Folder,
    store_b: Folder | None = None,
    *,
    against: Folder = "",
    rows: str = "",
    prompts: Folder = "",
    encoder: str = "",
    draws: int = 2000,
) -> Evaluation:
    """Measure an aligner on two stores, or on one by prompts.

    Args:
        aligner: its folder, or that of a run.
        store_a, store_b: stores of its two modalities; rows of one `item` are pairs. With `prompts`
            one store, of the modality that is classified.
        against: another aligner, compared on the same rows.
        rows: `test` or `all`; by default the test items where there are any.
        prompts: a file of lines `class: prompt`; rows are of the class that their `label`, or else
            their `item`, names. Prompts of one class are averaged.
        encoder: where the weights of the prompts' encoder are, see `gera search`.
        draws: of the bootstrap over families of items.

    Raises:
        UserError: no aligner or store, stores of other encoders, or nothing to measure.
    """
    ours = Aligner.load(existing_aligner_folder(aligner))
    if prompts:
        if store_b is not None:
            raise UserError("takes one store beside the aligner", key="prompts", value=prompts)
        return _by_prompts(ours, EmbeddingStore(store_a), Path(prompts), encoder)
    if store_b is None:
        raise UserError("takes two stores, or one and prompts=FILE", key="gera evaluate")
    a, b = EmbeddingStore(store_a), EmbeddingStore(store_b)
    held, which = _held_out(a, b, rows)
    device = distributed.device("auto")
    named = {"": ours}
    if against:
        named["against"] = Aligner.load(existing_aligner_folder(against))
    found, ranks = {}, {}
    for name, one in named.items():
        work = partial(_measured, one, held)
        found[name], ranks[name] = distributed.run_with_cpu_fallback(device, work, "the rows")
    if which.startswith("all"):  # no train rows, so nothing is known to be unseen
        known = found[""].items()
        found[""] = {name: value for name, value in known if "unseen/" not in name}
    hits = hits_of(ranks)
    ways = {way: Bootstrap(hits.only(way), draws).recall("", 0) for way in ("ab", "ba")}
    intervals = {way: one for way, one in ways.items() if one is not None}
    whole = Bootstrap(hits, draws).difference("", "against", 0) if against else None
    lines = [f"{aligner}   {_origin(ours)}", f"{which} of {a.path} and {b.path}"]
    seen = ours.about.get("data_hash") == joint_hash(a, b) and not len(held.a.rows) < len(a)
    if seen:
        lines.append("note: it was fitted on rows among these")
    names = (ours.modality("a"), ours.modality("b"))
    lines += ["", _table(found[""], intervals, names), "", *_unimodal(found[""], names)]
    difference = None if whole is None else whole.estimate
    if whole is not None and difference is not None:
        lines += [
            "",
            f"R@10, the mean of both directions, less that of {against}: {difference.value:+.3f}"
            f" [{difference.low:+.3f}, {difference.high:+.3f}], p = {whole.p:.2g}",
        ]
    return Evaluation(found[""], intervals, difference, "\n".join(lines))


def _measured(
    aligner: Aligner, held: HeldOutItems, device: torch.device
) -> tuple[dict[str, float], pd.DataFrame]:
    return measure(aligner.to(device), held, EvaluationConfig())


def _origin(aligner: Aligner) -> str:
    method = aligner.about.get("method", "a method of its own")
    return f"({method}, {fitted_pairs(aligner.about)} pairs)"


def _held_out(a: EmbeddingStore, b: EmbeddingStore, rows: str) -> tuple[HeldOutItems, str]:
    """The rows to measure on, and what they are."""
    if rows:
        check_one_of("rows", rows, ROWS)
    given = any("split" in store.rows for store in (a, b))
    if rows == "test" or (not rows and given):
        split, word = split_items(a.rows, b.rows), "{:,} test items"
    else:
        split, word = evaluate_on_all(a.rows, b.rows), "all {:,} items"
    if not (len(split.test_a) and len(split.test_b)):
        raise UserError(
            "there are no test rows", key="rows", value=rows or "test", remedy="take rows=all"
        )
    held = HeldOutItems.load(a, b, split)
    matched = np.intersect1d(held.a.rows["item"], held.b.rows["item"])
    if not len(matched):
        raise UserError(
            "no item has a row in both stores", key="gera evaluate", remedy="check their `item`"
        )
    return held, word.format(len(matched))


def _table(
    measures: Mapping[str, float], intervals: Mapping[str, Estimate], names: Sequence[str]
) -> str:
    """Retrieval in both directions and conditions, accuracy, chance."""
    records = {}
    for way, words in direction_names(names).items():
        if f"{way}/r@10" not in measures:
            continue
        of_way = _below(measures, way)
        records[words] = _cells(of_way) | {"95 % of R@10": _interval(intervals.get(way))}
        for key in of_way:
            name, _, rest = key.rpartition("/")
            if rest == "r@10" and name:
                records[f"{words}, {name}"] = _cells(_below(of_way, name))
    return pd.DataFrame.from_dict(records, orient="index").fillna("").to_string()


def _below(measures: Mapping[str, float], name: str) -> dict[str, float]:
    """The measures whose names begin with `name/`, without it."""
    start = f"{name}/"
    return {k.removeprefix(start): v for k, v in measures.items() if k.startswith(start)}


def _cells(measures: Mapping[str, float]) -> dict[str, str]:
    cells = {head: f"{measures[name]:.3f}" for name, head in SHOWN.items() if name in measures}
    cells["median rank"] = f"{measures['median_rank']:.0f}"
    cells["chance R@10"] = f"{measures['chance@10']:.3f}"
    if "accuracy" in measures:
        cells |= {
            "accuracy": f"{measures['accuracy']:.3f}",
            "chance": f"{measures['accuracy_chance']:.3f}",
        }
    return cells


def _interval(found: Estimate | None) -> str:
    return "" if found is None else f"[{found.low:.3f}, {found.high:.3f}]"


def _unimodal(measures: Mapping[str, float], names: Sequence[str]) -> list[str]:
    """What the maps did to each modality's own neighbourhoods, a line each."""
    lines = []
    for side, name in zip("ab", names, strict=True):
        parts = [f"{word} {measures[f'{side}/{key}']:.3f}" for key, word in UNIMODAL.items()]
        for key, word in (("label_p@10", "same label"), ("group_r@10", "same item")):
            if f"{side}/{key}/before" in measures:
                before, after = (measures[f"{side}/{key}/{when}"] for when in ("before", "after"))
                parts.append(f"{word} among 10 {before:.3f} before, {after:.3f} after")
        lines.append(f"{name}: {', '.join(parts)}")
    return lines


# ---- prompts ----


def read_prompts(path: Path) -> list[tuple[str, str]]:
    """Class and prompt of each line `class: prompt`, or `class` alone, which is its own prompt.

    Raises:
        UserError: no such file, or fewer than two classes.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot be read ({error})", key="prompts", value=str(path)) from error
    found = []
    for line in lines:
        name, colon, prompt = (part.strip() for part in line.partition(":"))
        if name:
            found.append((name, prompt if colon and prompt else name))
    if len({name for name, _ in found}) < 2:
        raise UserError("must name two classes at least", key="prompts", value=str(path))
    return found


@torch.no_grad()
def _by_prompts(aligner: Aligner, store: EmbeddingStore, path: Path, encoder: str) -> Evaluation:
    """Zero-shot classification of a store's rows."""
    words = read_prompts(path)
    side = side_that_takes({s: aligner.encoder(s) for s in "ab"}, "text")
    if side is None:
        raise UserError(
            "neither modality of the aligner has a text encoder that can be made again",
            key="prompts",
            value=str(path),
        )
    asked = "b" if side == "a" else "a"
    texts = [prompt for _, prompt in words]
    known = store_encoder(aligner.encoder(side), encoder, None)
    z = aligner.encode(side, known.encode(texts))
    classes = list(dict.fromkeys(name for name, _ in words))
    of_class = [[n for n, (name, _) in enumerate(words) if name == one] for one in classes]
    means = torch.stack(
        [torch.nn.functional.normalize(z[rows].mean(0), dim=0) for rows in of_class]
    )
    gallery = pd.DataFrame({"item": classes, "label": classes, "split": "both"})
    queries = aligner.space.queries(aligner.encode(asked, store))
    found = classification(
        queries.cpu(), aligner.space.gallery(side, means).cpu(), store.rows, gallery
    )
    if not found:
        raise UserError(
            f"no row has one of the classes {', '.join(classes[:5])} as its `label` or `item`",
            key=str(store.path),
        )
    lines = [
        f"{len(classes)} classes, {len(words)} prompts, rows of {store.path}",
        f"accuracy {found['accuracy']:.3f}, top 5 {found['accuracy@5']:.3f}, mean of classes"
        f" {found['balanced_accuracy']:.3f}, chance {found['accuracy_chance']:.3f}",
    ]
    return Evaluation(found, {}, None, "\n".join(lines))


def run(words: Sequence[str]) -> None:
    """The command line's `gera evaluate`."""
    paths = [word for word in words if "=" not in word]
    if len(paths) not in (2, 3):
        raise UserError(
            "takes an aligner and two stores, or one store and prompts=FILE",
            key="gera evaluate",
            remedy="such as gera evaluate my_aligner data/pictures/image data/pictures/text",
        )
    rest = [word for word in words if word not in paths]
    print(evaluate(*paths, **parse_kwargs(rest, evaluate)))
