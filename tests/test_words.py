from __future__ import annotations

import pytest

from gera_lightning.errors import UserError
from gera_lightning.words import keywords


def function(path: str, *, count: int = 1, columns: dict[str, str] | None = None, name: str = "") -> None: ...


def test_words_become_keyword_arguments():
    words = ["count=3", "columns.item=id", "columns.text=caption", "name=a=b"]
    assert keywords(words, function) == {"count": 3, "columns": {"item": "id", "text": "caption"}, "name": "a=b"}
    assert keywords([], function) == {}


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
        keywords([word], function)
