from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from gera_lightning import cli
from gera_lightning.commands.show import show
from gera_lightning.config import Config
from gera_lightning.config.merging import flat
from gera_lightning.config.reference import explain, reference
from gera_lightning.utils.errors import UserError


def test_every_setting_has_a_meaning():
    settings = {one.key: one for one in reference()}
    assert all(one.meaning.endswith((".", ":")) for one in settings.values())
    known = dataclasses.asdict(Config())
    assert settings["tuning.max_trials"].value == known["tuning"]["max_trials"]
    leaves = {key for key in flat(known) if not any(key.startswith(f"{k}.") for k in settings)}
    assert leaves <= set(settings)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "methods").mkdir()
    (tmp_path / "small.yaml").write_text(
        "data: {a: x, b: y}\nmethods: [mine, other]\nbatch: {pairs: 64}\n"
        "variants:\n  changed: {of: mine, graph.k: 4}\n"
    )
    (tmp_path / "methods/mine.yaml").write_text("losses: {pair: clip}\noptimizer: {lr: 0.1}\n")
    (tmp_path / "methods/other.yaml").write_text("closed_form: ridge\n")
    return tmp_path


def test_a_value_comes_from_the_last_that_sets_it(folder):
    words = ["trainer.max_steps=8", "seeds=[3]"]
    found = {one.key: one for one in explain("small", words, method="mine", folder=str(folder))}
    assert {key: found[key].source for key in ("data.a", "batch.pairs", "methods")} == {
        "data.a": "small.yaml",
        "batch.pairs": "small.yaml",
        "methods": "small.yaml",
    }
    assert (found["optimizer"].source, found["optimizer"].value["lr"]) == ("preset mine", 0.1)
    assert (found["trainer.max_steps"].source, found["trainer.max_steps"].value) == (
        "command line",
        8,
    )
    assert (found["seeds"].value, found["graph.k"].source) == ([3], "default")
    found = {one.key: one for one in explain("small", method="changed", folder=str(folder))}
    assert (found["graph.k"].value, found["graph.k"].source) == (4, "preset changed")


def test_the_first_method_is_shown_and_any_other_on_request(folder):
    assert "optimizer: {class: torch.optim.AdamW, lr: 0.1" in show("small", folder=str(folder))
    shown = show("small", method="other", folder=str(folder))
    assert "closed_form: {class: ridge}   (preset other)" in shown
    with pytest.raises(UserError, match="no preset"):
        show("small", method="none", folder=str(folder))


def test_the_command_prints_each_key_with_its_meaning(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    assert cli.main(["show", "small.yaml", "trainer.max_steps=7"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[lines.index("trainer.max_steps: 7   (command line)") + 1].startswith("    Opt")
