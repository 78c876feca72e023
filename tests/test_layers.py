"""Imports point one way, and heavy libraries stay where they belong."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "gera_lightning"
FILES = sorted(SOURCE.rglob("*.py"))

# from the ground up; a module may import from its own level and from those before it
LEVELS = [
    {"errors", "files", "parts", "distributed", "cluster", "trainers", "__init__"},
    {"geometry", "heads", "results", "display"},
    {"objectives", "metrics", "statistics", "words", "data"},
    {"aligners", "comparisons"},
    {"module", "encoders", "affinity", "config"},
    {"tuning", "evaluation", "callbacks", "stores", "task", "fit"},
    {"finished"},
    {"search", "export"},
    {"assembly"},
    {"train"},
    {"run"},
    {"report", "planning", "doctor", "align"},
    {"sweep"},
    {"cli"},
]
LEVEL = {name: number for number, names in enumerate(LEVELS) for name in names}
ONLY_IN = {
    "faiss": {"geometry/neighbors.py"},
    "transformers": {"encoders"},
    "torchaudio": {"encoders"},
    "omegaconf": {"config/layers.py"},
    "submitit": {"cluster.py"},
    "matplotlib": {"report"},
    "lightning": {"data/datamodule.py", "module.py", "callbacks.py", "assembly.py", "run.py", "train.py", "trainers.py", "encoders"},
}
"""Library to the files or folders that alone import it: the mathematics works without Lightning, OmegaConf or YAML."""


def imported(path: Path, *, everywhere: bool = True) -> set[str]:
    """Modules that a file imports, by full name; those inside functions too unless told otherwise."""
    tree = ast.parse(path.read_text())
    nodes = ast.walk(tree) if everywhere else ast.iter_child_nodes(tree)
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def part(path: Path) -> str:
    """The top-level module or folder that a file belongs to."""
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_point_one_way(path):
    inner = {name.split(".")[1] for name in imported(path, everywhere=False) if name.startswith("gera_lightning.") and name.count(".")}
    known = {name for name in inner if name in LEVEL}
    assert part(path) in LEVEL, f"say in LEVELS where {part(path)} stands"
    assert {name for name in known if LEVEL[name] > LEVEL[part(path)]} == set()


def needed(path: Path) -> set[str]:
    """Libraries whose import a file's own import brings about."""
    waiting, seen, found = [path], {path}, set()
    while waiting:
        for name in imported(waiting.pop(), everywhere=False):
            head, *rest = name.split(".")
            if head != "gera_lightning":
                found.add(head)
                continue
            places = [SOURCE.joinpath(*rest[:depth]) for depth in range(len(rest) + 1)]
            files = {place for part in places for place in (part.with_suffix(".py"), part / "__init__.py") if place.is_file()}
            waiting += files - seen
            seen |= files
    return found


@pytest.mark.parametrize("name", ["search", "export", "affinity", "aligners/__init__", "data/store"])
def test_what_does_not_train_starts_without_what_trains(name):
    assert needed(SOURCE / f"{name}.py") & {"lightning", "matplotlib", "tensorboard", "transformers", "torchaudio", "submitit"} == set()


@pytest.mark.parametrize("library", ONLY_IN)
def test_a_heavy_library_is_imported_where_it_belongs(library):
    users = {str(p.relative_to(SOURCE)) for p in FILES if any(name.split(".")[0] == library for name in imported(p))}
    assert users
    assert {user for user in users if not any(user == place or user.startswith(f"{place}/") for place in ONLY_IN[library])} == set()


def test_the_mathematics_needs_no_yaml():
    for folder in ("geometry", "objectives", "aligners"):
        for path in (SOURCE / folder).glob("*.py"):
            assert not {name for name in imported(path) if name.split(".")[0] == "yaml"}
