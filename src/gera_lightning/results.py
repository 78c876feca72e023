"""Result rows of an experiment's finished runs: the run folders hold them, `results.jsonl` is a copy for other tools."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from filelock import FileLock

from gera_lightning.files import replace_atomically


def finished_records(folder: Path) -> list[Path]:
    """`metrics.json` of every finished run under an experiment's folder, in order of their paths."""
    return [path for path in sorted(folder.glob("*/*/metrics.json")) if path.parent.suffix != ".partial"]


def finished_rows(folder: Path) -> list[dict[str, Any]]:
    """Result rows of the finished runs under an experiment's folder, in order of their paths."""
    return [json.loads(path.read_text()) for path in finished_records(folder)]


def collect(folder: Path) -> Path:
    """Rebuild `results.jsonl` from the finished runs of an experiment, under a lock."""
    path = folder / "results.jsonl"
    with FileLock(folder / ".results.lock"):
        rows = [json.dumps(row) for row in finished_rows(folder)]
        replace_atomically(path, ("\n".join(rows) + "\n").encode())
    return path
