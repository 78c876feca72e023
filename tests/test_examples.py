"""The examples in docstrings run, and every public class has one."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil

import pytest

import gera_lightning

MODULES = [
    module.name
    for module in pkgutil.walk_packages(gera_lightning.__path__, "gera_lightning.")
    if not module.name.endswith("__main__")
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert doctest.testmod(importlib.import_module(name)).failed == 0


@pytest.mark.parametrize(
    "name", [n for n in gera_lightning.__all__ if inspect.isclass(getattr(gera_lightning, n))]
)
def test_every_public_class_shows_how_it_is_used(name):
    doc = getattr(gera_lightning, name).__doc__
    assert ">>>" in doc or "::\n" in doc
