from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from gera_lightning.config.overrides import parse_kwargs
from gera_lightning.utils.errors import UserError


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
