"""The aligner that is put to use: from arrays, and from all pairs of an experiment's stores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from gera_lightning import cli, config
from gera_lightning.aligners import Aligner
from gera_lightning.commands.align import align, align_experiment
from gera_lightning.data.splits import train_on_all
from gera_lightning.data.store import EmbeddingStore, write_store
from gera_lightning.data.synthetic import SyntheticViews
from gera_lightning.experiment.plan import plan
from gera_lightning.experiment.run import execute
from gera_lightning.utils.errors import UserError

RIDGE = {"closed_form": {"class": "gera_lightning.aligners.ridge.Ridge"}}
OTHER = {
    "tuning": {"max_trials": 1},
    **RIDGE,
    "correction": {"class": "gera_lightning.models.shared_space.CSLS", "k": 3},
}


@pytest.fixture(autouse=True)
def presets(monkeypatch: pytest.MonkeyPatch, repository: Path) -> None:
    """Those of the package."""
    monkeypatch.setattr(
        "gera_lightning.config.loading.SHIPPED", repository / "src" / "gera_lightning" / "config"
    )


def written(
    folder: Path, name: str, items: list[str], width: int, seed: int, **columns: list[str | None]
) -> EmbeddingStore:
    """A store of random rows; those of one item are the same in every store that is written with
    the same seed.
    """
    x = np.stack(
        [np.random.default_rng([seed, int(item[1:])]).normal(size=width) for item in items]
    )
    rows = pd.DataFrame(
        {"row": [f"{name}-{n}" for n in range(len(items))], "item": items, **columns}
    )
    return write_store(
        folder / name,
        x.astype(np.float32),
        rows,
        encoder={"name": f"enc-{name}"},
        source={"name": "test"},
        dtype="float32",
    )


@pytest.fixture
def project(tmp_path: Path, write_yaml, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Forty pairs, a fourth of them sealed, two `unused`; twenty rows alone in a, thirty in b."""
    items = [f"i{n}" for n in range(42)]
    split: list[str | None] = [
        "unused" if n >= 40 else "test" if n % 4 == 0 else "train" for n in range(42)
    ]
    written(
        tmp_path,
        "a",
        [*items, *(f"i{n}" for n in range(100, 120))],
        6,
        0,
        split=[*split, *["train"] * 20],
    )
    written(
        tmp_path,
        "b",
        [*items, *(f"i{n}" for n in range(200, 230))],
        4,
        0,
        split=[*split, *["train"] * 30],
    )
    write_yaml(
        tmp_path,
        {
            "experiments/small.yaml": {"data": {"a": "a", "b": "b"}, "budgets": [10]},
            "experiments/methods/other.yaml": OTHER,
        },
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_arrays_give_the_aligner_of_a_run_on_the_same_rows(project):
    [run] = plan(config.load("small", ["methods=[other]"]))
    execute(run)
    drawn = run.stores.sample_pairs(run.config, run.budget, run.seed)
    a, b = run.stores.a, run.stores.b
    found = align(
        a.read(drawn.pairs_a),
        torch.from_numpy(b.read(drawn.pairs_b)),
        a.read(drawn.pool_a),
        b.read(drawn.pool_b).astype(np.float64),
        method="ridge",
        settings={"tuning.max_trials": 1, "correction": OTHER["correction"]},
    )
    expected = Aligner.load(run.folder / "aligner")
    torch.testing.assert_close(found.score(a.read(), b.read()), expected.score(a, b))


def test_the_default_finds_the_partners_of_rows_that_it_never_saw(tmp_path):
    a, b = (
        store.read(np.argsort(store.rows["item"]))
        for store in SyntheticViews(items=900).stores(tmp_path)
    )
    before = a.copy()
    aligner = align(a[:100], b[:100], a[100:500], b[500:800])
    aligner.save(tmp_path / "mine")
    _, rows = Aligner.load(tmp_path / "mine").search(a[800:], b[800:], k=1)
    assert (rows[:, 0] == torch.arange(100)).float().mean() > 0.5
    assert aligner.about["pairs"] == 100
    assert np.array_equal(a, before)


@pytest.mark.parametrize(
    ("unpaired", "method", "left_out"),
    [
        ((0, 0), "", True),
        ((29, 50), "", True),
        ((30, 30), "", False),
        ((1, 9), "ridge_csls", True),
        ((9, 9), "ridge_csls", False),
    ],
)
def test_what_reads_unpaired_rows_is_left_out_where_they_are_few(
    caplog, unpaired, method, left_out
):
    x = np.random.default_rng(0).normal(size=(80, 4))
    pools = x[20 : 20 + unpaired[0]], x[20 : 20 + unpaired[1]]
    aligner = align(x[:20], x[:20], *pools, method=method, settings={"tuning.max_trials": 5})
    assert (aligner.space.correction is None) == left_out
    assert ("are too few for the geometry of" in caplog.text) == left_out


@pytest.mark.parametrize(("unpaired", "centred"), [(29, False), (30, True)])
def test_the_mean_of_few_unpaired_rows_is_not_taken(unpaired, centred):
    x = np.random.default_rng(0).normal(size=(80, 4))
    pools = x[20 : 20 + unpaired], x[50 : 50 + unpaired]
    settings = {"closed_form.others": [], "filters": {"a": [[]], "b": [[]]}}
    space = align(x[:20], x[:20], *pools, settings=settings).space
    means = [b for m in (space.map_a, space.map_b) for n, b in m.named_buffers() if "mean" in n]
    assert means
    assert all(bool(mean.any()) == centred for mean in means)


def test_an_experiment_of_pairs_alone_gives_an_aligner_too(project, capsys):
    for name in "ab":
        store = EmbeddingStore(name)
        paired = store.rows["item"].isin([f"i{n}" for n in range(42)]).to_numpy()
        rows = store.rows[paired].reset_index(drop=True)
        write_store(
            project / "paired" / name,
            store.read(paired),
            rows,
            encoder=store.encoder,
            source={"name": "test"},
            dtype="float32",
        )
    assert (
        cli.main(["align", "small", "data.a=paired/a", "data.b=paired/b", "tuning.max_trials=1"])
        == 0
    )
    assert Aligner.load("runs/small/aligner").space.correction is None
    assert cli.main(["search", "runs/small", "b-4"]) == 0


class Seen(Exception):
    """Raised in place of a fit."""


def test_rows_of_one_item_stay_in_one_fold(monkeypatch):
    tasks = []

    def fit(task):
        tasks.append(task)
        raise Seen

    monkeypatch.setattr("gera_lightning.commands.align.fit", fit)
    x = np.random.default_rng(0).normal(size=(20, 4))
    with pytest.raises(Seen):
        align(x, x, method="ridge", items=[n // 2 for n in range(20)])
    parts = tasks[0].folds(np.arange(20))
    assert sorted(np.concatenate(parts)) == list(range(20))
    assert len(parts) == 5
    for part in parts:
        assert {n ^ 1 for n in part} == set(part)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"b": np.zeros((9, 4))}, "a has 20 rows and b 9"),
        ({"pool_a": np.zeros((5, 3))}, r"pool_a must be \[rows, 6\], got shape \(5, 3\)"),
        ({"a": np.zeros(20)}, r"a must be \[rows, width\]"),
        ({"pool_b": np.full((2, 4), np.nan)}, "pool_b: row 0 is not finite"),
        ({"items": ["x"]}, "items names 1 rows, but there are 20 pairs"),
        ({"method": "self_training"}, "self_training.*has a closed_form that is made of unpaired"),
        ({"method": ["coupled_ridge"]}, "name one preset, such as method='coupled_ridge'"),
        ({"method": "rigde"}, "ridge"),
        ({"a": np.ones((1, 6)), "b": np.ones((1, 4))}, "1 pairs are too few"),
        ({"settings": {"tuning.fold": 3}}, "tuning.folds"),
        (
            {"a": np.ones((3, 6)), "b": np.ones((3, 4))},
            "tuning.folds=5 is more than the 3 families",
        ),
    ],
)
def test_mistakes_name_what_is_wrong(words, message):
    rng = np.random.default_rng(0)
    given = {
        "a": rng.normal(size=(20, 6)),
        "b": rng.normal(size=(20, 4)),
        "method": "ridge",
        **words,
    }
    with pytest.raises(UserError, match=message):
        align(**given)


def test_an_experiment_gives_all_its_pairs_and_all_rows_without_partner(project, capsys):
    folder = align_experiment("small", ["tuning.max_trials=1"], method="other")
    assert folder == Path("runs/small/aligner")
    aligner = Aligner.load(folder)
    assert aligner.about["pairs"] == 40
    assert (len(aligner.space.correction.pool_a), len(aligner.space.correction.pool_b)) == (20, 30)
    assert cli.main(["search", "runs/small", "b-4", "k=60"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("runs/small ")
    assert [line.split()[-1] for line in lines if line.startswith("a*")] == ["a-4"]


def test_a_folder_without_an_aligner_is_told_from_an_unknown_experiment(project, capsys):
    (project / "runs" / "small").mkdir(parents=True)
    assert cli.main(["search", "runs/small", "b-4"]) == 2
    assert (
        "the folder runs/small holds no aligner (gera align makes one)" in capsys.readouterr().err
    )


def test_stores_of_train_items_alone_are_aligned_searched_and_exported(project, capsys):
    for name in "ab":
        store = EmbeddingStore(name)
        rows = store.rows.assign(split="train")
        write_store(
            project / "all" / name,
            store.read(),
            rows,
            encoder=store.encoder,
            source={"name": "test"},
            dtype="float32",
        )
    align_experiment("small", ["data.a=all/a", "data.b=all/b"], method="ridge")
    assert cli.main(["search", "runs/small", "b-4"]) == 0
    assert cli.main(["export", "runs/small", "out=exported"]) == 0
    assert cli.main(["affinity", "all/a", "all/b", "k=3"]) == 0
    said = capsys.readouterr()
    assert not said.err
    assert len(EmbeddingStore("exported/a")) == len(EmbeddingStore("all/a"))


def test_items_called_unused_stay_unused(project):
    first = align_experiment("small", method="ridge", out="first")
    for name in "ab":
        store = EmbeddingStore(name)
        x, rows = store.read(), store.rows
        x[rows["split"] == "unused"] = 9
        write_store(
            project / "changed" / name,
            x,
            rows,
            encoder=store.encoder,
            source={"name": "test"},
            dtype="float32",
        )
    second = align_experiment(
        "small", ["data.a=changed/a", "data.b=changed/b"], method="ridge", out="second"
    )
    assert (first / "maps.safetensors").read_bytes() == (second / "maps.safetensors").read_bytes()


def test_everything_is_for_training():
    a = pd.DataFrame({"item": ["x", "y", "z"], "split": ["test", "unused", None]})
    b = pd.DataFrame({"item": ["y", "x", "v"]})
    split = train_on_all(a, b)
    assert (split.train_a.tolist(), split.train_b.tolist()) == ([0, 2], [1, 2])
    assert len(split.test_a) == len(split.test_b) == 0


def test_the_command_says_where_the_aligner_is(project, capsys):
    assert cli.main(["align", "small", "method=ridge", "tuning.folds=2", "out=here"]) == 0
    assert capsys.readouterr().out.startswith("aligner      here ")
    assert Aligner.load("here").about["stores"] == {"a": "a", "b": "b"}


def test_stores_that_share_no_item_are_refused(project):
    written(project, "c", ["i900", "i901"], 4, 0)
    with pytest.raises(UserError, match="share 0 items"):
        align_experiment("small", ["data.b=c"], method="ridge")


@pytest.mark.parametrize(
    "word",
    [
        "methods=[other]",
        "budgets=[5]",
        "data.test_share=0.5",
        "sweep.workers=2",
        "data.shared_pools=true",
    ],
)
def test_settings_of_measured_runs_are_refused(project, word):
    key = word.partition("=")[0]
    with pytest.raises(
        UserError, match=rf"^{key}: .*it would do nothing: (name the preset by method|leave it out)"
    ):
        align_experiment("small", [word], method="other")
    with pytest.raises(UserError, match=rf"^{key}: "):
        align(np.eye(8), np.eye(8), method="ridge", settings={key: [3]})
    for settings in (
        {"data": {"test_share": 0.3}},
        {"evaluation.overlap_k": 3},
        {"overwrite": True},
        {"runs_dir": "elsewhere"},
    ):
        with pytest.raises(UserError, match="it would do nothing"):
            align(np.eye(8), np.eye(8), method="ridge", settings=settings)
    with pytest.raises(UserError, match=r"^data\.pool_size: "):
        align(np.eye(8), np.eye(8), method="ridge", settings={"data.pool_size": 3})


def test_arrays_of_any_make_are_taken():
    x, y = np.random.default_rng(0).normal(size=(2, 30, 6)).astype(np.float32)
    expected = align(x, y, method="ridge").score(x, y)
    reverse = [v[::-1].copy()[::-1] for v in (x, y)]  # negative strides
    others = (
        [v.astype(">f4") for v in (x, y)],
        [pd.DataFrame(v) for v in (x, y)],
        [v.astype(object) for v in (x, y)],
    )
    tensors = [torch.from_numpy(v).requires_grad_() for v in (x, y)]
    for a, b in (reverse, *others, tensors, (x.tolist(), y.tolist())):
        aligner = align(a, b, method="ridge")
        torch.testing.assert_close(aligner.score(a, b), expected)
    frozen = x.copy()
    frozen.flags.writeable = False
    torch.testing.assert_close(align(frozen, y, method="ridge").score(frozen, y), expected)
    for odd in (x.astype(complex), [["a", "b"]], None):
        with pytest.raises(UserError, match=r"a must be an array of real numbers|a must be \[rows"):
            align(odd, y, method="ridge")
