"""Imports run downwards only, and heavy libraries stay where they belong."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "gera_lightning"
FILES = sorted(SOURCE.rglob("*.py"))

FLOORS = [
    {"cli", "__main__"},
    {"commands"},
    {"report"},
    {"experiment"},
    {"training"},
    {"evaluation"},
    {"embedding", "aligners"},
    {"data", "losses", "filters"},
    {"encoders", "config", "geometry", "models"},
    {"utils"},
]
"""The rooms of the house, the top floor first. A file imports from its own room and from floors
below it.
"""
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
ONLY_IN = {
    "faiss": {"geometry/neighbors.py"},
    "transformers": {"encoders"},
    "torchaudio": {"encoders", "embedding/reading.py"},
    "omegaconf": {"config/merging.py"},
    "submitit": {"experiment/cluster.py"},
    "matplotlib": {"report"},
    "lightning": {"training", "experiment/run.py", "embedding/predict.py", "utils/trainer.py"},
}
"""Library to the files or rooms that alone import it: the mathematics works without Lightning,
OmegaConf or YAML.
"""


def imported(path: Path, *, everywhere: bool = True) -> set[str]:
    """Modules that a file imports, by full name; by default those inside functions too."""
    tree = ast.parse(path.read_text())
    nodes = ast.walk(tree) if everywhere else ast.iter_child_nodes(tree)
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def room(path: Path) -> str:
    """The room that a file lies in."""
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def test_every_room_has_its_floor():
    assert {room(path) for path in FILES} - {"__init__"} == set(FLOOR)


@pytest.mark.parametrize(
    "path",
    [path for path in FILES if room(path) != "__init__"],
    ids=lambda p: str(p.relative_to(SOURCE)),
)
def test_imports_run_downwards(path):
    own = room(path)
    others = {
        name.split(".")[1] for name in imported(path) if name.startswith("gera_lightning.")
    } - {own}
    assert {
        name for name in others if name in FLOOR and FLOOR[name] <= FLOOR[own] and own != "__main__"
    } == set()


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
            files = {
                place
                for part in places
                for place in (part.with_suffix(".py"), part / "__init__.py")
                if place.is_file()
            }
            waiting += files - seen
            seen |= files
    return found


@pytest.mark.parametrize(
    "name",
    [
        "commands/search",
        "commands/export",
        "commands/affinity",
        "aligners/__init__",
        "data/store",
    ],
)
def test_what_does_not_train_starts_without_what_trains(name):
    heavy = {"lightning", "matplotlib", "tensorboard", "transformers", "torchaudio", "submitit"}
    assert needed(SOURCE / f"{name}.py") & heavy == set()


@pytest.mark.parametrize("library", ONLY_IN)
def test_a_heavy_library_is_imported_where_it_belongs(library):
    users = {
        str(p.relative_to(SOURCE))
        for p in FILES
        if any(name.split(".")[0] == library for name in imported(p))
    }
    assert users
    assert {
        user
        for user in users
        if not any(user == place or user.startswith(f"{place}/") for place in ONLY_IN[library])
    } == set()


def test_the_mathematics_needs_no_yaml():
    for folder in ("geometry", "losses", "filters", "models", "aligners"):
        for path in (SOURCE / folder).glob("*.py"):
            assert not {name for name in imported(path) if name.split(".")[0] == "yaml"}
