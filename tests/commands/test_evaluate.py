"""An aligner measured on stores that it never saw."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gera_lightning import cli
from gera_lightning.aligners import Ridge
from gera_lightning.commands.evaluate import Evaluation, evaluate, read_prompts
from gera_lightning.data.store import EmbeddingStore, write_store
from gera_lightning.data.synthetic import SyntheticViews
from gera_lightning.experiment.paired_stores import store_metadata
from gera_lightning.utils.errors import UserError


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two stores, an aligner fitted on 60 of their pairs, and one fitted on wrong pairs."""
    folder = tmp_path_factory.mktemp("evaluate")
    views = SyntheticViews(items=300, latent_dim=3, dim_a=24, dim_b=16, features=64)
    a, b = views.stores(folder / "cache")
    stores = {}
    for name, store in (("a", a), ("b", b)):
        rows = store.rows.copy()
        number = rows["item"].str.extract(r"(\d+)")[0].astype(int)
        rows["split"] = np.where(number % 3 == 0, "test", "train")
        stores[name] = write_store(
            folder / name, store.read(), rows, encoder=store.encoder, source={}, dtype="float32"
        )
    partner = stores["b"].rows.reset_index().set_index("item")["index"]
    train = stores["a"].rows[stores["a"].rows["split"] == "train"].head(60)
    x, y = stores["a"].read(train.index), stores["b"].read(partner[train["item"]])
    for name, paired in (("good", y), ("wrong", y[::-1].copy())):
        aligner = Ridge().fit(x, paired).aligner_
        aligner.about |= store_metadata(stores["a"], stores["b"])
        aligner.save(folder / name)
    return folder


def test_test_items_are_measured_with_intervals(project):
    found = evaluate(project / "good", project / "a", project / "b")
    assert isinstance(found, Evaluation)
    assert found.difference is None
    for way in ("ab", "ba"):
        recall, interval = found.measures[f"{way}/r@10"], found.intervals[way]
        assert interval.value == pytest.approx(recall)
        assert interval.low < recall <= interval.high
        assert recall > 2 * found.measures[f"{way}/chance@10"]
    lines = str(found).splitlines()
    assert lines[0].startswith(f"{project / 'good'}   (ridge, 60 pairs)")
    assert lines[1].startswith("100 test items of ")
    assert {"a → b", "b → a"} <= {line[:5] for line in lines}
    assert lines[-2].startswith("a: 10 nearest neighbours kept 0.")


def test_all_rows_are_measured_on_request_and_where_no_split_is_given(project, tmp_path):
    found = evaluate(project / "good", project / "a", project / "b", rows="all")
    assert "all 300 items of " in found.text
    assert "note: it was fitted on rows among these" in found.text
    for name in ("a", "b"):
        store = EmbeddingStore(project / name)
        rows = store.rows.drop(columns="split")
        write_store(
            tmp_path / name, store.read(), rows, encoder=store.encoder, source={}, dtype="float32"
        )
    again = evaluate(project / "good", tmp_path / "a", tmp_path / "b")
    assert again.measures == found.measures
    assert "note" not in again.text
    assert not any("unseen" in name for name in found.measures)


def test_two_aligners_are_compared_on_the_same_rows(project):
    paths = (project / "a", project / "b")
    better = evaluate(project / "good", *paths, against=project / "wrong")
    worse = evaluate(project / "wrong", *paths, against=project / "good")
    assert better.difference.low > 0 > worse.difference.high
    assert better.difference.value == pytest.approx(-worse.difference.value)
    both = [
        np.mean([one.measures[f"{way}/r@10"] for way in ("ab", "ba")]) for one in (better, worse)
    ]
    assert better.difference.value == pytest.approx(both[0] - both[1])
    assert f"less that of {project / 'wrong'}: +" in better.text
    same = evaluate(project / "good", *paths, against=project / "good")
    assert same.difference.value == 0
    assert same.text.endswith("p = 1")


def test_rows_of_the_wrong_modality_or_no_pairs_are_refused(project, make_store):
    with pytest.raises(UserError, match="check encoder and modality"):
        evaluate(project / "good", project / "b", project / "a")
    strangers = make_store("b", np.ones((5, 16), dtype=np.float32), item=list("vwxyz"))
    with pytest.raises(UserError, match="no item has a row in both stores"):
        evaluate(project / "good", project / "a", strangers.path, rows="all")
    with pytest.raises(UserError, match="holds no aligner"):
        evaluate(project / "a", project / "a", project / "b")
    with pytest.raises(UserError, match="takes two stores"):
        evaluate(project / "good", project / "a")


def test_the_command_prints_and_refuses(project, capsys):
    paths = [str(project / name) for name in ("good", "a", "b")]
    assert cli.main(["evaluate", *paths]) == 0
    assert "R@10" in capsys.readouterr().out
    assert cli.main(["evaluate", paths[0]]) == 2
    assert cli.main(["evaluate", *paths, "row=all"]) == 2
    assert "did you mean 'rows'" in capsys.readouterr().err


def test_prompts_are_read_line_by_line(tmp_path):
    path = tmp_path / "classes.txt"
    path.write_text("dog: a photo of a dog\n\ncat\ndog: a dog, 10:30\n")
    assert read_prompts(path) == [
        ("dog", "a photo of a dog"),
        ("cat", "cat"),
        ("dog", "a dog, 10:30"),
    ]
    path.write_text("dog\ndog: a dog\n")
    with pytest.raises(UserError, match="two classes"):
        read_prompts(path)
    with pytest.raises(UserError, match="cannot be read"):
        read_prompts(tmp_path / "none.txt")
