"""The `embed` section of an experiment and the command that reads it: mistakes are one line, and no
run's identity changes.
"""

from __future__ import annotations

import ast
import dataclasses
import re
from pathlib import Path

import pytest
import yaml

from gera_lightning import cli, config
from gera_lightning.config import Config, config_hash, identity
from gera_lightning.config.embed_schema import EmbedConfig, EmbedSide
from gera_lightning.data.store import EmbeddingStore

PARTS = {
    "corpus": {"class": "folder", "root": "texts", "modality": "text"},
    "encoder": {"class": "text", "checkpoint": "nowhere"},
}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiments" / "methods").mkdir(parents=True)
    (tmp_path / "experiments" / "methods" / "ridge.yaml").write_text(
        "closed_form: {class: gera_lightning.aligners.ridge.Ridge}\n"
    )
    settings = {
        "data": {"a": "a", "b": "b"},
        "methods": ["ridge"],
        "embed": {"a": PARTS, "b": PARTS},
    }
    (tmp_path / "experiments" / "mine.yaml").write_text(yaml.safe_dump(settings))
    (tmp_path / "experiments" / "bare.yaml").write_text(
        yaml.safe_dump({"data": {"a": "a", "b": "b"}, "methods": ["ridge"]})
    )
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "x.txt").write_text("a text")
    return tmp_path


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["bare"], "no embed section"),
        (["mine", "embed.precison=16-mixed"], "'embed.precision'"),
        (["mine", "embed.precision=bf16-true"], "embed.precision='bf16-true'"),
        (["mine", "embed.a.corpse={}"], "'embed.a.corpus'"),
        (["mine", "embed.a.corpus=texts"], "embed.a.corpus.class='texts'"),
        (["mine", "embed.b.encoder=null"], "embed.b.encoder.class"),
        (["mine", "embed.b.encoder.poling=cls"], "embed.b.encoder.poling.*'pooling'"),
        (["mine", "embed.a.corpus.class=foldre"], "embed.a.corpus.class.*'folder'"),
        (["mine", "embed.a.corpus.root=nothing"], "embed.a.corpus.root='nothing'"),
        (["mine", "data.b=''"], "data.b is empty"),
        (["mine", "embed.shard_rows=0"], "embed.shard_rows=0"),
        (["mine"], "embed.a.encoder.checkpoint='nowhere'.*not on this machine"),
    ],
)
def test_a_mistake_is_one_line(project, capsys, monkeypatch, words: list[str], named: str):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert cli.main(["embed", *words]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert re.search(named, captured.err), captured.err
    assert not (project / "a").exists()


OWN_MODULE = """
import numpy as np
from gera_lightning.embedding.corpus import Corpus, Listing


class Numbers(Corpus):
    modality, where = "text", "numbers"

    def __init__(self, count):
        self.count = count

    def listing(self):
        entries = ({"item": str(n), "text": "x" * n} for n in range(1, self.count + 1))
        return Listing.of(entries, self.modality, self.where)

    def raw(self, row):
        return row["text"]


class Lengths:
    name, dim = "lengths", 2

    def __init__(self, scale=1.0):
        self.scale = scale

    def describe(self):
        return {"name": self.name, "dim": self.dim, "scale": self.scale}

    def encode(self, items):
        return np.array([[len(item), self.scale] for item in items], dtype=np.float32)
"""


def test_classes_of_a_users_own_module_are_named_by_their_path(project, capsys):
    """Nothing is registered: one file beside the experiment adds a corpus and an encoder."""
    (project / "own_classes.py").write_text(OWN_MODULE)
    a, b = (
        {
            "corpus": {"class": "own_classes.Numbers", "count": count},
            "encoder": {"class": "own_classes.Lengths", "scale": count / 2},
        }
        for count in (3, 4)
    )
    settings = {"methods": ["ridge"], "embed": {"a": a, "b": b}}
    settings["data"] = {"a": "stores/a", "b": "stores/b"}
    (project / "experiments" / "own.yaml").write_text(yaml.safe_dump(settings))
    assert cli.main(["embed", "own", "embed.accelerator=cpu"]) == 0
    assert EmbeddingStore("stores/a").read().tolist() == [[1, 1.5], [2, 1.5], [3, 1.5]]
    assert EmbeddingStore("stores/b").encoder == {"name": "lengths", "dim": 2, "scale": 2.0}
    # one side alone may be embedded, and again
    words = ["embed.a.corpus=null", "embed.a.encoder=null", "embed.b.corpus.count=2"]
    assert cli.main(["embed", "own", "embed.accelerator=cpu", *words]) == 2
    assert "overwrite=true" in capsys.readouterr().err
    assert cli.main(["embed", "own", "embed.accelerator=cpu", *words, "overwrite=true"]) == 0
    assert [len(EmbeddingStore(f"stores/{side}")) for side in "ab"] == [3, 2]


def test_runs_keep_their_identity(project):
    """Whatever is embedded how: the stores' own hash stands for it."""
    plain = config.load("bare").methods["ridge"]
    embedded = config.load(
        "mine", {"embed.shard_rows": 5, "embed.precision": "bf16-mixed"}
    ).methods["ridge"]
    assert embedded.embed.a == EmbedSide(**PARTS)
    assert "embed" not in identity(embedded)
    assert config_hash(embedded, data="x") == config_hash(plain, data="x")


def test_the_section_is_typed_and_has_its_docstrings():

    from gera_lightning.config import embed_schema as settings

    for cls in (
        node
        for node in ast.parse(Path(settings.__file__).read_text()).body
        if isinstance(node, ast.ClassDef)
    ):
        for field, after in zip(cls.body, [*cls.body[1:], None], strict=True):
            if isinstance(field, ast.AnnAssign):
                assert isinstance(after, ast.Expr), (
                    f"{cls.name}.{ast.unparse(field.target)} has no docstring"
                )
    assert {f.name for f in dataclasses.fields(EmbedConfig)} >= {"a", "b", "strict", "max_skipped"}
    assert Config().embed == EmbedConfig()
