"""The notebook of the documentation prints what it kept."""

from __future__ import annotations

import json
import re
from pathlib import Path

import matplotlib
import pytest

NOTEBOOK = Path(__file__).parents[1] / "docs/notebook.ipynb"
NUMBER = re.compile(r"\d*\.\d+")


def test_its_cells_print_what_it_kept(monkeypatch, capsys):
    matplotlib.use("Agg")
    monkeypatch.chdir(NOTEBOOK.parent)
    cells = [c for c in json.loads(NOTEBOOK.read_text())["cells"] if c["cell_type"] == "code"]
    names: dict[str, object] = {}
    for cell in cells:
        exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
        said = capsys.readouterr().out
        kept = "".join(line for o in cell["outputs"] for line in o.get("text", ()))
        assert NUMBER.sub("", said) == NUMBER.sub("", kept)
        numbers = [[float(n) for n in NUMBER.findall(text)] for text in (said, kept)]
        assert numbers[0] == pytest.approx(numbers[1], abs=0.02)
    assert any("image/png" in o.get("data", {}) for c in cells for o in c["outputs"])
    assert NOTEBOOK.stat().st_size < 100_000
