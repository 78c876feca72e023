"""The `embed` section of an experiment and the command that reads it: mistakes are one line, and no
run's identity changes.
"""

from __future__ import annotations

import ast
import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from gera_lightning import cli, config
from gera_lightning.config import Config, config_hash, identity
from gera_lightning.config.embed_schema import EmbedConfig, EmbedSide

PARTS = {
    "corpus": {
        "class": "gera_lightning.embedding.corpus.FolderOfFiles",
        "root": "texts",
        "modality": "text",
    },
    "encoder": {"class": "gera_lightning.encoders.text.TextEncoder", "checkpoint": "nowhere"},
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
    ("words", "message"),
    [
        (["bare"], "no embed section"),
        (["mine", "embed.precison=16-mixed"], "did you mean 'embed.precision'"),
        (
            ["mine", "embed.precision=bf16-true"],
            "embed.precision='bf16-true' is not one of 32-true, bf16-mixed, 16-mixed",
        ),
        (["mine", "embed.a.corpse={}"], "did you mean 'embed.a.corpus'"),
        (
            ["mine", "embed.a.corpus=texts"],
            "embed.a.corpus='texts' is a part: set embed.a.corpus.class=...",
        ),
        (["mine", "embed.b.encoder=null"], "embed.b.encoder.class is missing"),
        (
            ["mine", "embed.b.encoder.poling=cls"],
            "embed.b.encoder.poling is not an argument of .*; did you mean 'pooling'",
        ),
        (
            ["mine", "embed.a.corpus.class=gera_lightning.embedding.corpus.FolderOfFile"],
            "did you mean 'FolderOfFiles'",
        ),
        (
            ["mine", "embed.a.corpus.root=nothing"],
            "embed.a.corpus: root='nothing': there is no such folder",
        ),
        (
            ["mine", "data.b=''"],
            "data.b is empty: name the folder that the store of embed.b goes to",
        ),
        (["mine", "embed.shard_rows=0"], "embed.shard_rows=0"),
        (["mine"], "embed.a.encoder: checkpoint='nowhere': its tokenizer is not on this machine"),
    ],
)
def test_a_mistake_is_one_line(project, capsys, monkeypatch, words: list[str], message: str):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert cli.main(["embed", *words]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1

    assert re.search(message, captured.err), captured.err
    assert not (project / "a").exists()


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


def test_one_side_alone_may_be_embedded(project, monkeypatch):
    seen: list[Any] = []
    from gera_lightning.embedding import embed

    monkeypatch.setattr(embed, "build", lambda part, where, *_: seen.append(where))
    monkeypatch.setattr(
        embed,
        "embed_corpus",
        lambda corpus, encoder, path, *_, **options: (
            seen.append((path, options["overwrite"])) or []
        ),
    )
    assert (
        cli.main(["embed", "mine", "embed.a.corpus=null", "embed.a.encoder=null", "overwrite=true"])
        == 0
    )
    assert seen == ["embed.b.corpus", "embed.b.encoder", ("b", True)]
