from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from gera_lightning.config.merging import read_yaml
from gera_lightning.config.overrides import parse_kwargs, parse_value
from gera_lightning.utils.errors import UserError
from gera_lightning.utils.instantiate import check_part


def function(
    path: str,
    *,
    count: int = 1,
    columns: Mapping[str, str] | None = None,
    name: str = "",
    share: float = 0.5,
    names: Sequence[str] = (),
    limit: int | None = None,
) -> None: ...


def test_words_become_keyword_arguments():
    words = ["count=3", "columns.item=id", "columns.text=caption", "name=a=b"]
    assert parse_kwargs(words, function) == {
        "count": 3,
        "columns": {"item": "id", "text": "caption"},
        "name": "a=b",
    }
    assert parse_kwargs([], function) == {}


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("conut=3", "no key 'conut'; did you mean 'count'"),
        ("path=x", "no key 'path'"),
        ("count", "not of the form key=value"),
        ("=3", "not of the form key=value"),
        ("count=[1", "cannot be read"),
    ],
)
def test_a_mistake_is_named(word: str, message: str):
    with pytest.raises(UserError, match=message):
        parse_kwargs([word], function)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("count=x", "count='x' must be a whole number"),
        ("count=2.5", "count=2.5 must be a whole number"),
        ("count=true", "count=True must be a whole number"),
        ("count=null", "count=None must be a whole number"),
        ("columns=x", r"columns='x' must be names and values, such as columns\.item=NAME"),
        ("name=[a]", r"name=\['a'\] must be a word"),
        ("share=x", "share='x' must be a number"),
        ("names=5", "names=5 must be a list"),
    ],
)
def test_values_are_of_the_annotated_types(word: str, message: str):
    with pytest.raises(UserError, match=message):
        parse_kwargs([word], function)


def test_values_of_the_annotated_types_pass():
    words = ["columns=null", "share=1", "names=[a,b]", "limit=3"]
    assert parse_kwargs(words, function) == {
        "columns": None,
        "share": 1,
        "names": ["a", "b"],
        "limit": 3,
    }
    assert parse_kwargs(["limit=null", "share=.5"], function) == {"limit": None, "share": 0.5}
    assert parse_kwargs(["share=2e-1"], function) == {"share": 0.2}, "as in settings"


# ---- words that YAML 1.1 takes for something else ----

WORDS = ["no", "on", "Yes", "off", "y", "050", "1:30", "2024-01-01", "0o17", "1.2.3", "v1"]


@pytest.mark.parametrize("word", [*WORDS, "query: ", "#x", "a #b", "@x", "*x", "it's: so", "- a"])
def test_a_word_of_the_command_line_is_itself(word: str):
    assert parse_value("prefix", word) == word


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("0", 0),
        ("-12", -12),
        ("0x10", 16),
        ("1.5", 1.5),
        (".5", 0.5),
        ("1e-3", 0.001),
        ("-2.5E+3", -2500.0),
        (".inf", float("inf")),
        ("'no'", "no"),
        ('"050"', "050"),
        ("[1, no, 050]", [1, "no", "050"]),
        ("{a: off}", {"a": "off"}),
    ],
)
def test_numbers_and_structures_are_what_yaml_has(text: str, value: object):
    found = parse_value("key", text)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize("word", WORDS)
def test_a_word_of_a_file_is_itself(tmp_path: Path, word: str):
    (tmp_path / "x.yaml").write_text(f"name: {word}\nnames: [{word}]\n")
    assert read_yaml(tmp_path / "x.yaml") == {"name": word, "names": [word]}


@pytest.mark.parametrize("line", ["prefix: #x", "prefix: query: ", "a: [1", "a: *b"])
def test_a_value_that_yaml_cuts_or_refuses_is_to_be_quoted(tmp_path: Path, line: str):
    (tmp_path / "x.yaml").write_text(f"embed:\n  {line}\n  after: 1\n")
    with pytest.raises(UserError, match=r"quote"):
        read_yaml(tmp_path / "x.yaml")


def test_a_comment_behind_a_section_is_one(tmp_path: Path):
    (tmp_path / "x.yaml").write_text("a: #x\n  b: 1\nc: # x\nd: 'x' #y\n")
    assert read_yaml(tmp_path / "x.yaml") == {"a": {"b": 1}, "c": None, "d": "x"}


class Part:
    def __init__(
        self,
        prefix: str = "",
        count: int | None = None,
        share: float = 0.5,
        normalize: bool = False,
        layers: Sequence[int] = (),
        folder: str | os.PathLike[str] = "",
        other: Any = None,
    ) -> None: ...


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("prefix", 50),
        ("prefix", True),
        ("prefix", {"query": None}),
        ("count", "12 "),
        ("count", 1.5),
        ("count", True),
        ("share", "half"),
        ("normalize", "no"),
        ("normalize", 1),
        ("layers", 3),
        ("folder", 7),
    ],
)
def test_an_argument_of_another_type_than_annotated_is_refused(key: str, value: object):
    path = f"{Part.__module__}.Part"
    with pytest.raises(UserError) as error:
        check_part({"class": path, key: value}, "embed.a.encoder")
    assert (error.value.key, error.value.value) == (f"embed.a.encoder.{key}", value)


def test_arguments_of_the_annotated_types_pass():
    given = {"prefix": "050", "count": None, "share": 1, "normalize": True, "layers": [1, 2]}
    check_part({"class": f"{Part.__module__}.Part", **given, "folder": "x", "other": 3}, "part")
