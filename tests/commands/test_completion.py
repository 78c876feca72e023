"""What the Tab key of bash offers."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from gera_lightning import cli, commands
from gera_lightning.commands.completion import completion


@pytest.fixture
def folder(tmp_path: Path, write_yaml) -> Path:
    (tmp_path / "gera").write_text(completion("bash"))
    return write_yaml(
        tmp_path / "here", {"experiments/mine.yaml": {}, "experiments/methods/own.yaml": {}}
    )


def offered(folder: Path, line: str) -> list[str]:
    """What bash completes a line to; words are cut where bash cuts them, at `=` too."""
    words = re.findall(r"=|[^ =]+", line)
    words += [""] if line.endswith(" ") else []
    code = (
        'source ../gera; COMP_LINE=$1; COMP_POINT=${#1}; shift; COMP_WORDS=("$@");'
        ' COMP_CWORD=$(($# - 1)); _gera; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    call = ["bash", "--norc", "-c", code, "bash", line, *words]
    done = subprocess.run(call, cwd=folder, capture_output=True, text=True, check=True)
    assert not done.stderr
    return done.stdout.split()


def test_the_tab_key_knows_verbs_experiments_methods_and_settings(folder):
    assert offered(folder, "gera sho") == ["show"]
    assert set(offered(folder, "gera ")) == set(commands.VERBS)
    assert offered(folder, "gera train mi") == ["mine"]
    assert offered(folder, "gera train synth") == ["synthetic"]
    assert offered(folder, "gera train mine tuning.fol") == ["tuning.folds="]
    assert offered(folder, "gera show mine method=coupled_ridge_") == ["coupled_ridge_off"]
    assert "ridge" in offered(folder, "gera show mine method=")
    assert offered(folder, "gera train mine methods=[ridge,ow") == ["[ridge,own"]
    assert offered(folder, "gera train mine data.a=da") == []  # files, as by default


def test_another_shell_is_refused(capsys):
    assert cli.main(["completion", "fishy"]) == 2
    assert "bash" in capsys.readouterr().err
