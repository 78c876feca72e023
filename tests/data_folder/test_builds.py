"""How the builds of the shipped data end where they are stopped."""

from __future__ import annotations

import argparse
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gera_lightning.utils.errors import UserError

DATA = Path(__file__).parents[2] / "data"


@pytest.fixture
def forgotten() -> Iterator[None]:
    """Two builds have a module `corpus`: what one imports is forgotten before the other."""
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if str(DATA) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.mark.usefixtures("forgotten")
@pytest.mark.parametrize("name", ["pictures", "spoken_words", "wordnet_speech"])
@pytest.mark.parametrize(
    ("raised", "code", "words"),
    [
        (UserError("mend it"), 2, "error: mend it"),
        (KeyboardInterrupt(), 130, "interrupted: `make data`"),
    ],
)
def test_a_build_that_is_stopped_ends_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    raised: BaseException,
    code: int,
    words: str,
):
    def stop(*_: object) -> None:
        raise raised

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    monkeypatch.syspath_prepend(DATA / name)
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(DATA / name / "build.py"), run_name="__main__")
    assert ended.value.code == code
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(words)
