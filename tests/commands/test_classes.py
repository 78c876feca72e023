"""Commands on stores whose items are classes, named by b."""

from __future__ import annotations

import logging
from pathlib import Path

import yaml

from gera_lightning.aligners import Aligner
from gera_lightning.commands.align import align_experiment
from gera_lightning.commands.doctor.examine import ERROR, NOTE, OK, doctor
from gera_lightning.commands.search import search
from gera_lightning.data.store import EmbeddingStore

CLASSES = [f"word{n}" for n in range(12)]


def lines(findings, level):
    return [finding.text for finding in findings if finding.level == level]


def written(tmp_path: Path, a: EmbeddingStore, b: EmbeddingStore) -> str:
    path = tmp_path / "words.yaml"
    path.write_text(yaml.safe_dump({"data": {"a": str(a.path), "b": str(b.path)}}))
    return str(path)


def test_doctor_counts_labelled_rows_and_finds_nothing_to_mend(make_class_stores, tmp_path):
    a, b = make_class_stores(CLASSES, zero_shot=2)
    found = list(doctor(a.path, b.path, budget=60, methods=["ridge"], folder=str(tmp_path)))
    assert not lines(found, ERROR)
    said = " | ".join(lines(found, OK))
    assert (
        "classes: 10 with 150 labelled train rows of speech (15 at least each), named by text; 90"
        " test rows of 12 classes, 2 of them without train rows" in said
    )
    assert "on ridge is above chance" in said
    pools = next(text for text in lines(found, NOTE) if text.startswith("pools"))
    assert "90 and 12 unpaired rows beside 60 pairs, 0 items in both" in pools


def test_doctor_refuses_more_labelled_rows_than_there_are(make_class_stores, tmp_path):
    a, b = make_class_stores(CLASSES)
    found = list(doctor(a.path, b.path, budget=181, methods=["ridge"], folder=str(tmp_path)))
    [error] = lines(found, ERROR)
    assert "budget=181 pairs are more than the 180 train rows of 12 classes" in error


def test_doctor_says_where_a_class_has_names_that_are_not_both(make_class_stores, make_store):
    a, b = make_class_stores(CLASSES)
    plain = make_store("plain", b.read(), item=CLASSES)
    found = list(doctor(a.path, plain.path))
    [error] = lines(found, ERROR)
    assert "`both`" in error


def test_an_aligner_of_all_labelled_rows_classifies(make_class_stores, tmp_path, caplog):
    """Nothing is unpaired then, so it is made without geometry, and a line says so."""
    a, b = make_class_stores(CLASSES)
    with caplog.at_level(logging.WARNING):
        folder = align_experiment(written(tmp_path, a, b), out=str(tmp_path / "aligner"))
    assert "0 and 12 unpaired rows are too few for the geometry of" in caplog.text
    aligner = Aligner.load(folder)
    assert aligner.about["pairs"] == 12 * 20
    _, rows = aligner.search(a.read(), b, k=1)
    right = b.rows["item"].to_numpy()[rows[:, 0].numpy()] == a.rows["item"].to_numpy()
    assert right.mean() > 0.8
    shown = search(str(folder), a.rows["row"].iloc[0], k=12)
    assert shown.count("*") == 2  # in the heading, and at the one right name
