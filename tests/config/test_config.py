from __future__ import annotations

import ast
import copy
import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from gera_lightning.config import Config, combinations, config_hash, identity, load
from gera_lightning.config import loading as experiment
from gera_lightning.config.schema import CLOSED_FORMS
from gera_lightning.utils.errors import UserError

REPOSITORY = Path(__file__).parents[2]
SHIPPED = REPOSITORY / "src" / "gera_lightning" / "config"
FILES_OF = {
    path.stem: path
    for folder in (REPOSITORY / "experiments", SHIPPED / "experiments")
    for path in folder.glob("*.yaml")
}
EXPERIMENTS = sorted(FILES_OF)
PRESETS = sorted(path.stem for path in (SHIPPED / "presets").glob("*.yaml"))


@pytest.fixture
def shipped(monkeypatch: pytest.MonkeyPatch) -> None:
    """The presets that come with the package, which tests are otherwise without."""
    monkeypatch.setattr(experiment, "SHIPPED", SHIPPED)


FILES = {
    "small.yaml": {
        "data": {"synthetic": {"items": 40}},
        "budgets": [5, 10],
        "trainer": {"max_steps": 30},
        "methods": ["plain", "twin", "closed"],
    },
    "methods/plain.yaml": {"losses": {"geometric": "geometric"}, "batch": {"pairs": 7}},
    "methods/twin.yaml": {},
    "methods/closed.yaml": {"closed_form": {"class": "gera_lightning.aligners.ridge.Ridge"}},
}


@pytest.fixture
def folder(tmp_path: Path, write_yaml) -> Path:
    """An `experiments/` of one experiment and three presets."""
    return write_yaml(tmp_path / "experiments", FILES)


# ---- what is shipped ----


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_shipped_experiment_loads_with_every_preset(shipped, name):
    loaded = load(name, {"methods": PRESETS}, folder=REPOSITORY / "experiments")
    assert loaded.name == name
    assert list(loaded.methods) == PRESETS
    own = load(name, folder=REPOSITORY / "experiments")
    assert set(own.methods) <= {*PRESETS, *own.common.variants}
    data = own.common.data
    assert (data.synthetic is not None) != bool(data.a and data.b)
    for side in ("a", "b") if data.synthetic is None else ():
        embedded = getattr(
            own.common.embed, side
        )  # its store is shipped, or made of raw data that is not
        assert (REPOSITORY / getattr(data, side) / "manifest.json").is_file() or (
            embedded.corpus and embedded.encoder
        )


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_shipped_experiment_opens_with_its_command(name):
    assert FILES_OF[name].read_text().startswith(f"# make train EXP={name}\n")


@pytest.mark.parametrize("name", PRESETS)
def test_every_shipped_preset_opens_with_what_it_is(name):
    assert (SHIPPED / "presets" / f"{name}.yaml").read_text().startswith("# ")


@pytest.mark.parametrize("suffix", ["", "_linear", "_mlp", "_linear_ridge"])
def test_the_twins_differ_in_the_geometric_loss_alone(shipped, suffix):
    names = [f"gera{suffix}", f"contrastive{suffix}"]
    methods = load("synthetic", {"methods": names}).methods
    plain, twin = (dataclasses.asdict(methods[name]) for name in names)
    assert {key for key in plain if plain[key] != twin[key]} == {"losses"}
    geometric = {"class": "geometric", "weight": 0.1}
    assert plain["losses"] == {**twin["losses"], "geometric": geometric}
    assert len(combinations(methods[names[0]])) == 2


def test_reading_settings_needs_no_torch():
    code = (
        "import sys; from gera_lightning import config; config.Config(); print('torch' in"
        " sys.modules, 'lightning' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["False", "False"]


def test_every_field_has_its_docstring():
    tree = ast.parse((SHIPPED / "schema.py").read_text())
    fields = 0
    for cls in (
        node
        for node in tree.body
        if isinstance(node, ast.ClassDef) and node.name.endswith("Config")
    ):
        for field, after in zip(cls.body, [*cls.body[1:], None], strict=True):
            if isinstance(field, ast.AnnAssign):
                fields += 1
                text = (
                    isinstance(after, ast.Expr)
                    and isinstance(after.value, ast.Constant)
                    and after.value.value
                )
                assert isinstance(text, str), (
                    f"{cls.name}.{ast.unparse(field.target)} has no docstring"
                )
    assert fields > 40


# ---- precedence ----


def test_later_layers_win(folder):
    loaded = load("small", folder=folder)
    assert loaded.common.graph == Config().graph  # defaults
    assert loaded.methods["plain"].trainer.max_steps == 30  # the experiment over the default
    assert loaded.methods["plain"].batch.pairs == 7  # the preset over the default ...
    assert loaded.methods["twin"].batch.pairs == Config().batch.pairs  # ... for its own method
    (folder / "small.yaml").write_text(
        yaml.safe_dump({**FILES["small.yaml"], "batch": {"pairs": 5, "anchors": 3}})
    )
    plain, twin = (load("small", folder=folder).methods[name] for name in ("plain", "twin"))
    assert (plain.batch.pairs, plain.batch.anchors) == (
        7,
        3,
    )  # the preset over the experiment, its other keys stay
    assert (twin.batch.pairs, twin.batch.anchors) == (5, 3)
    words = load("small", ["batch.pairs=9", "batch.pairs=11"], folder=folder)
    assert {c.batch.pairs for c in (words.common, *words.methods.values())} == {
        11
    }  # the command line over all, its last word too


def test_an_override_reaches_the_methods_that_have_the_part(folder):
    words = ["losses.geometric.form=kl", "closed_form.direction=a_to_b"]
    methods = load("small", words, folder=folder).methods
    assert set(methods["twin"].losses) == {"pair"}
    assert methods["plain"].losses["geometric"] == {"class": "geometric", "form": "kl"}
    assert methods["plain"].closed_form is None
    assert methods["closed"].closed_form["direction"] == "a_to_b"


def test_null_takes_a_loss_or_a_section_out(folder):
    methods = load("small", ["losses.geometric=null"], folder=folder).methods
    assert all(set(settings.losses) == {"pair"} for settings in methods.values())
    assert config_hash(methods["plain"]) == config_hash(
        load("small", ["batch.pairs=7"], folder=folder).methods["twin"]
    )


def test_a_word_is_a_class_and_short_names_and_import_paths_are_one_run(folder):
    path = "gera_lightning.aligners.ridge.Ridge"
    spellings = [["closed_form=ridge"], ["closed_form.class=ridge"], [f"closed_form.class={path}"]]
    runs = [load("small", words, folder=folder).methods["closed"] for words in spellings]
    assert len({config_hash(run) for run in runs}) == 1
    assert runs[0].closed_form == {"class": "ridge"}


def test_any_flag_of_lightnings_trainer_is_taken(folder):
    words = ["methods=[plain]", "trainer.detect_anomaly=true", "trainer.max_steps=3"]
    trainer = load("small", words, folder=folder).methods["plain"].trainer
    assert (trainer.flags, trainer.max_steps) == ({"detect_anomaly": True}, 3)


def test_a_new_class_keeps_no_arguments_of_the_old(shipped):
    assert Config().optimizer["weight_decay"] == 0.01
    for words in (
        ["optimizer.class=torch.optim.SGD", "optimizer.lr=0.3"],
        ["optimizer.lr=0.3", "optimizer.class=torch.optim.SGD"],
    ):
        loaded = load("synthetic", words)
        assert loaded.methods["gera"].optimizer == {
            "class": "torch.optim.SGD",
            "lr": 0.3,
        }, words
    same = load(
        "synthetic",
        ["optimizer.class=torch.optim.AdamW", "optimizer.lr=0.3"],
    )
    assert same.methods["gera"].optimizer == {
        "class": "torch.optim.AdamW",
        "lr": 0.3,
        "weight_decay": 0.01,
    }


def test_the_reserve_is_the_largest_budget_of_file_and_command(folder):
    for words, reserve in (
        ([], 10),
        (["budgets=[4]"], 10),
        (["budgets=[20]"], 20),
        (["data.reserved_pairs=15"], 15),
        (["data.reserved_pairs=15", "budgets=[4]"], 15),
    ):
        loaded = load("small", words, folder=folder)
        assert {c.data.reserved_pairs for c in (loaded.common, *loaded.methods.values())} == {
            reserve
        }, words


def test_an_experiment_without_budgets_reserves_those_that_it_runs(folder):
    for words, reserve in (([], max(Config().budgets)), (["budgets=[20]"], 20)):
        assert (
            load({"methods": ["closed"]}, words, folder=folder).common.data.reserved_pairs
            == reserve
        )


@pytest.mark.parametrize(
    "name", ["../../up", "a/b", "..", "", "$\\frac{$", "[x][/b]", "x" * 101, "a b", "-x", "=1", "é"]
)
def test_a_method_has_a_name_that_a_folder_can_have(folder, name):
    settings = {**FILES["small.yaml"], "methods": [name], "variants": {name: {"of": "closed"}}}
    with pytest.raises(UserError) as error:
        load(settings, folder=folder)
    assert (error.value.key, error.value.value) == ("methods", name)


@pytest.mark.parametrize("name", ["summary", "report", "jobs"])
def test_a_method_is_not_called_as_a_folder_beside_the_methods(folder, name):
    with pytest.raises(UserError, match=rf"methods: '{name}' is the name of a folder"):
        load("small", {"methods": [name], "variants": {name: {"of": "closed"}}}, folder=folder)
    (folder / "methods" / f"{name}.yaml").write_text("")
    with pytest.raises(UserError, match=rf"methods: '{name}' is the name of a folder"):
        load("small", {"methods": [name]}, folder=folder)


def test_another_version_of_the_results_is_another_run(monkeypatch):
    module = sys.modules["gera_lightning.config.identity"]  # the package's own is the function
    hashes = set()
    for number in (1, 2, 3):
        monkeypatch.setattr(module, "RESULTS_VERSION", number)
        hashes.add(config_hash(Config(), budget=10))
    assert len(hashes) == 3


def test_an_experiment_may_be_a_path(folder, monkeypatch):
    by_name = load("small", folder=folder)
    assert load(str(folder / "small.yaml"), folder="nowhere") == by_name


# ---- words and keywords ----

VALUES: dict[str, st.SearchStrategy[Any]] = {
    "budgets": st.lists(st.integers(2, 999), min_size=1, max_size=4, unique=True),
    "seeds": st.lists(st.integers(0, 99), min_size=1, max_size=3, unique=True),
    "trainer.max_steps": st.integers(1, 10**6),
    "trainer.gradient_clip_val": st.none() | st.floats(1e-8, 1e8),
    "trainer.precision": st.sampled_from(["32-true", "bf16-mixed"]),
    "data.extra_views": st.booleans(),
    "data.synthetic.noise": st.floats(1e-12, 1e12),
    "runs_dir": st.sampled_from(["runs", "/tmp/a b", "x=y", "a#b"]),
    "optimizer.lr": st.floats(1e-12, 1e12),
    "losses.geometric.weight": st.floats(0, 1e6),
}


@settings(max_examples=12, deadline=None)
@given(st.fixed_dictionaries({}, optional=VALUES))
def test_words_equal_keywords(values):
    words = [
        f"{key}={text.removesuffix('...' + chr(10)).strip()}"
        for key, value in values.items()
        for text in [yaml.safe_dump(value, default_flow_style=True)]
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "SHIPPED", SHIPPED)
        assert load("synthetic", words) == load("synthetic", values)


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-3", 1e-3), ("1E5", 1e5), ("-2.5e+2", -250.0), ("3.e-1", 0.3), ("0.001", 1e-3)],
)
def test_a_number_is_a_number_in_words_lists_and_files(folder, text, value):
    by_word = load("small", [f"optimizer.lr={text}"], folder=folder).common.optimizer
    by_list = load(
        "small", [f"optimizer={{lr: {text}, betas: [{text}, 0.9]}}"], folder=folder
    ).common.optimizer
    (folder / "small.yaml").write_text(
        (folder / "small.yaml").read_text() + f"optimizer:\n  lr: {text}\n"
    )
    by_file = load("small", folder=folder).common.optimizer
    assert [o["lr"] for o in (by_word, by_list, by_file)] == [value] * 3
    assert list(by_list["betas"]) == [value, 0.9]
    assert load("small", ["runs_dir=2e"], folder=folder).common.runs_dir == "2e"  # no number


def test_a_mapping_sets_a_whole_section_and_is_left_as_it_was(folder):
    given_ = {"batch": {"pairs": 3, "anchors": 4}, "batch.anchors": 5}
    kept = copy.deepcopy(given_)
    batch = load("small", given_, folder=folder).common.batch
    assert (batch.pairs, batch.anchors) == (3, 5)
    assert given_ == kept


# ---- mistakes ----


@pytest.mark.parametrize(
    ("word", "words"),
    [
        ("bugets=[3]", ["bugets=[3]", "did you mean 'budgets'"]),
        ("trainer.max_step=3", ["trainer.max_step", "did you mean 'max_steps'"]),
        ("trainer.callbacks=[]", ["trainer.callbacks", "set callbacks instead"]),
        ("zzz=3", ["zzz=3", "known: ", "budgets"]),
        ("data..a=3", ["there is no key 'data.'"]),
        ("budgets", ["'budgets'", "key=value", "budgets=[100,300]"]),
        ("=3", ["'=3'", "key=value"]),
        ("budgets=[1,", ["budgets=[1,", "[1,2]"]),
        ("budgets=100", ["budgets=100", "list", "budgets=[100]"]),
        ("methods=closed", ["methods='closed'", "list", "methods=[closed]"]),
        ("budgets=[]", ["budgets=[]", "at least one"]),
        ("budgets=[9,9]", ["budgets=[9, 9]", "none twice"]),
        ("budgets=[1]", ["budgets=1", "at least 2"]),
        ("budgets=[1.5]", ["budgets[0]=1.5", "Integer"]),
        ("budgets=null", ["budgets=None", "list"]),
        ("seeds=[-1]", ["seeds=-1", "at least 0"]),
        ("sweep.seeds=[]", ["sweep.seeds=[]", "at least one"]),
        ("sweep.seeds=[0,0]", ["sweep.seeds=[0, 0]", "none twice"]),
        ("sweep.seeds=[-1]", ["sweep.seeds=-1", "at least 0"]),
        ("methods=[closd]", ["'closd'", "did you mean 'closed'"]),
        ("trainer=3", ["trainer=3", "section", "trainer.max_steps=..."]),
        ("trainer=null", ["trainer=None", "section"]),
        ("trainer.max_steps=many", ["trainer.max_steps=many", "Integer"]),
        ("trainer.max_steps=0", ["trainer.max_steps=0", "at least 1"]),
        ("trainer.log_every_n_steps=0", ["trainer.log_every_n_steps=0", "at least 1"]),
        (
            "checkpoint_every_n_steps=0",
            ["checkpoint_every_n_steps=0", "at least 1"],
        ),
        ("trainer.devices=0", ["trainer.devices=0", "at least 1", "-1"]),
        (
            "trainer.precision=bf16-true",
            ["trainer.precision='bf16-true'", "did you mean 'bf16-mixed'"],
        ),
        ("overwrite=perhaps", ["overwrite=perhaps", "bool"]),
        ("runs_dir=${nothing}", ["runs_dir", "nothing"]),
        ("head=Linear", ["head.class='Linear'", "did you mean 'linear'"]),
        ("head=3", ["head=3", "names no class"]),
        ("head=null", ["head=None"]),
        ("head.hiden=3", ["head.hiden", "did you mean 'hidden'"]),
        ("head.dim=3", ["head.dim", "set by the program"]),
        ("head.class=.Linear", ["head.class='.Linear'", "package.module.Class"]),
        (
            "init.class=gera_lightning.aligners.ridge.Rigde",
            ["init.class", "did you mean 'Ridge'"],
        ),
        (
            "losses.pair.class=gera_lightning.losses.contrastive.CLIPLos",
            ["losses.pair.class", "did you mean 'CLIPLoss'"],
        ),
        ("optimizer.params=[]", ["optimizer.params"]),
        ("data.synthetic=3", ["data.synthetic=3", "names no class"]),
        ("data.split=tests", ["data.split='tests'", "did you mean 'test'"]),
        ("data.test_share=1.0", ["data.test_share=1.0", "between 0 and 1"]),
        ("data.reserved_pairs=0", ["data.reserved_pairs=0", "at least 1"]),
        ("data.pool_size=-1", ["data.pool_size=-1", "at least 0"]),
        ("batch.pairs=1", ["batch.pairs=1", "at least 2"]),
        ("batch.anchors=0", ["batch.anchors=0", "at least 1"]),
        ("graph.k=0", ["graph.k=0", "at least 1"]),
        ("graph.backend=fais", ["graph.backend='fais'", "did you mean 'faiss'"]),
        ("tuning.folds=1", ["tuning.folds=1", "at least 2"]),
        ("tuning.max_trials=0", ["tuning.max_trials=0", "at least 1"]),
        ("tuning.grid=[1,[2]]", ["tuning.grid=[1, [2]]", "names and values"]),
        ("losses=null", ["losses=None", "names and values"]),
        ("variants=3", ["variants=3", "names and values"]),
        ("tuning.used_folds=0", ["tuning.used_folds=0", "at least 1"]),
        ("tuning.distractors=-1", ["tuning.distractors=-1", "at least 0"]),
        ("evaluation.chunk=0", ["evaluation.chunk=0", "at least 1"]),
        ("evaluation.overlap_k=0", ["evaluation.overlap_k=0", "at least 1"]),
        ("losses.geometric.weight=-1", ["losses.geometric.weight=-1", "at least 0"]),
        ("dim=0", ["dim=0", "at least 1"]),
    ],
)
def test_a_mistake_names_key_value_and_remedy(word, words, folder):
    with pytest.raises(UserError) as caught:
        load("small", [word], folder=folder)
    message = str(caught.value)
    assert all(part in message for part in words), message
    assert "\n" not in message


def test_an_override_that_would_do_nothing_is_refused(folder):
    with pytest.raises(UserError, match=r"losses\.geometric: none of the methods twin"):
        load("small", ["methods=[twin]", "losses.geometric.form=kl"], folder=folder)
    with pytest.raises(UserError, match="closed_form: none of the methods plain, twin"):
        load("small", ["methods=[plain,twin]", "closed_form.direction=both"], folder=folder)
    with pytest.raises(UserError, match="trainer: all of the methods closed are closed forms"):
        load("small", ["methods=[closed]", "trainer.max_steps=3"], folder=folder)
    computed = load(
        "small", ["methods=[closed]", "trainer.accelerator=cpu"], folder=folder
    ).methods["closed"]
    assert computed.trainer.accelerator == "cpu"


@pytest.mark.parametrize(
    ("experiment", "words"),
    [
        ("", ["EXP is empty", "EXP=small"]),
        ("smal", ["'smal'", "smal.yaml", "did you mean 'small'"]),
        ("there/none.yaml", ["'there/none.yaml'", "known: small"]),
        ("methods", ["'methods'", "known: small"]),  # a folder
    ],
)
def test_an_unknown_experiment_names_the_known(experiment, words, folder):
    with pytest.raises(UserError) as caught:
        load(experiment, folder=folder)
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"budgets: [1,\n", ["not readable as YAML"]),
        (b"\xff\xfe\x00", ["not readable as YAML"]),
        (
            b"budgets: [10]\nseeds: [0]\nbudgets: [20]\n",
            ["not readable as YAML", "the key 'budgets' stands twice", "line 3"],
        ),
        (b"- a\n- b\n", ["must hold keys and values"]),
        (b"bugets: [3]\n", ["bugets=[3]", "did you mean 'budgets'"]),
        (b"trainer:\n", ["trainer=None", "section"]),
        (b"a: !!python/object/apply:os.getcwd []\n", ["not readable as YAML"]),
    ],
)
@pytest.mark.parametrize("name", ["small.yaml", "methods/plain.yaml"])
def test_a_broken_file_is_named(folder, name, text, words):
    (folder / name).write_bytes(text)
    with pytest.raises(UserError) as caught:
        load("small", {"methods": ["plain"]}, folder=folder)
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "\n" not in message


def test_a_merged_key_may_be_set_again(folder):
    (folder / "small.yaml").write_text(
        "batch: &t {anchors: 3, min_epochs: 2}\nvariants:\n  v: {of: plain, batch: {<<: *t,"
        " anchors: 4}}\n"
    )
    batch = load("small", {"methods": ["v"]}, folder=folder).methods["v"].batch
    assert (batch.anchors, batch.min_epochs) == (4, 2)


def test_a_tilde_is_the_home_folder(folder, monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    common = load(
        "small",
        {"data.a": "~/a", "data.b": "b~/b", "runs_dir": "~/r", "cache_dir": "~"},
        folder=folder,
    ).common
    assert (common.data.a, common.data.b, common.runs_dir, common.cache_dir) == (
        "/somewhere/a",
        "b~/b",
        "/somewhere/r",
        "/somewhere",
    )


def test_an_empty_experiment_is_all_defaults(folder):
    (folder / "small.yaml").write_text("# nothing yet\n")
    loaded = load("small", ["methods=[twin]"], folder=folder)
    expected = Config(methods=["twin"])
    expected.data.reserved_pairs = max(expected.budgets)
    assert loaded.common == expected


# ---- identity ----


@pytest.mark.parametrize(
    "word",
    [
        *(
            "budgets=[7]",
            "seeds=[3]",
            "runs_dir=x",
            "cache_dir=x",
            "overwrite=true",
            "evaluation.chunk=7",
            "data.synthetic.items=50",
        ),
        *(
            "trainer.log_every_n_steps=3",
            "checkpoint_every_n_steps=3",
            "loggers=[csv]",
            "trainer.accelerator=cpu",
            "trainer.devices=2",
        ),
    ],
)
def test_what_decides_no_result_is_no_part_of_a_run(word, folder):
    before, after = (
        load("small", ["data.reserved_pairs=10"], folder=folder).methods,
        load("small", ["data.reserved_pairs=10", word], folder=folder).methods,
    )
    assert {n: config_hash(c) for n, c in before.items()} == {
        n: config_hash(c) for n, c in after.items()
    }


@pytest.mark.parametrize(
    ("word", "trained", "closed"),
    [
        ("data.center=false", True, True),
        ("data.reserved_pairs=12", True, True),
        ("data.shared_pools=true", True, True),
        ("tuning.folds=3", True, True),
        ("evaluation.overlap_k=5", True, True),
        ("trainer.max_steps=31", True, False),
        ("optimizer.lr=0.5", True, False),
        ("head.hidden=5", True, False),
        ("losses.geometric.weight=2", True, False),
        ("trainer.detect_anomaly=true", True, False),
        ("callbacks=[lightning.pytorch.callbacks.Timer]", True, False),
        ("graph.k=3", True, False),
        ("dim=5", True, False),
        ("closed_form.direction=a_to_b", False, True),
    ],
)
def test_a_hash_changes_with_what_its_method_reads(word, trained, closed, folder):
    before, after = (
        load("small", folder=folder).methods,
        load("small", [word], folder=folder).methods,
    )
    assert (config_hash(before["plain"]) != config_hash(after["plain"])) == trained
    assert (config_hash(before["closed"]) != config_hash(after["closed"])) == closed


def test_a_hash_takes_in_data_budget_and_seed(folder):
    settings_ = load("small", folder=folder).methods["plain"]
    hashes = {
        config_hash(settings_, **more)
        for more in ({}, {"seed": 0}, {"seed": 1}, {"budget": 1}, {"data": "x"})
    }
    assert len(hashes) == 5
    assert all(len(h) == 8 and int(h, 16) >= 0 for h in hashes)


def test_identity_is_plain_values_and_leaves_the_settings_alone(folder):
    settings_ = load("small", folder=folder).methods["plain"]
    kept = copy.deepcopy(settings_)
    values = identity(settings_)
    assert yaml.safe_load(yaml.safe_dump(values)) == values
    assert settings_ == kept
    assert settings_.trainer.devices == 1  # still there


# ---- presets that come with the package ----


def test_an_experiment_elsewhere_has_the_packages_presets_beside_its_own(
    tmp_path, write_yaml, monkeypatch
):
    monkeypatch.setattr(experiment, "SHIPPED", SHIPPED)
    write_yaml(
        tmp_path,
        {
            "mine.yaml": {
                "data": {"a": "a", "b": "b"},
                "methods": ["coupled_ridge", "ridge", "own"],
            },
            "methods/ridge.yaml": {
                "closed_form": {
                    "class": "gera_lightning.aligners.ridge.Ridge",
                    "direction": "a_to_b",
                }
            },
            "methods/own.yaml": {
                "closed_form": {"class": "gera_lightning.aligners.procrustes.Procrustes"}
            },
        },
    )
    loaded = load(str(tmp_path / "mine.yaml")).methods
    assert loaded["coupled_ridge"].closed_form["class"] == "alternatives"
    assert loaded["ridge"].closed_form["direction"] == "a_to_b"  # its own wins
    swept = load(str(tmp_path / "mine.yaml"), sweep=True).common.methods
    assert set(swept) == {
        "own",
        *PRESETS,
    }
    with pytest.raises(
        UserError, match=r"methods: 'gerra' has no preset methods/gerra\.yaml; did you mean 'gera'"
    ):
        load(str(tmp_path / "mine.yaml"), {"methods": ["gerra"]})


def test_a_preset_of_another_sets_its_changes_over_it(folder, write_yaml):
    write_yaml(
        folder,
        {
            "methods/base.yaml": {
                "losses": {"pair": "clip"},
                "optimizer": {"lr": 1e-3},
                "tuning": {"grid": {"optimizer.lr": [1e-3, 1e-2]}},
            },
            "methods/warm.yaml": {"of": "base", "init": "ridge"},
            "methods/slow.yaml": {"of": "warm", "optimizer": {"lr": 1e-5}},
        },
    )
    changes = {"variants": {"v": {"of": "slow", "init": None}}}
    loaded = load("small", {**changes, "methods": ["base", "warm", "slow", "v"]}, folder=folder)
    base, warm, slow, variant = loaded.methods.values()
    assert (base.init, warm.init["class"], slow.init["class"], variant.init) == (
        None,
        "ridge",
        "ridge",
        None,
    )
    assert base.tuning == warm.tuning
    assert slow.tuning.grid == variant.tuning.grid == {}  # a key that is set is not tuned
    assert slow.optimizer["lr"] == variant.optimizer["lr"] == 1e-5


@pytest.mark.parametrize(
    ("of", "message"),
    [
        ("two", "'one' has no preset"),  # a circle
        ("no_such", "'no_such' has no preset"),
        (["plain"], "must name the preset that it changes"),
    ],
)
def test_a_preset_of_no_preset_is_refused(folder, write_yaml, of, message):
    write_yaml(folder, {"methods/one.yaml": {"of": of}, "methods/two.yaml": {"of": "one"}})
    with pytest.raises(UserError, match=message):
        load("small", {"methods": ["one"]}, folder=folder)


def test_closed_forms_are_the_presets_that_train_nothing(monkeypatch):
    monkeypatch.setattr(experiment, "SHIPPED", SHIPPED)
    methods = load({}, {"methods": PRESETS}).methods
    assert {name for name in PRESETS if methods[name].closed_form} == set(CLOSED_FORMS)
