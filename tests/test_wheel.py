"""The wheel alone, in an empty folder: presets and `synthetic` come with it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that `pip install --target` filled from the wheel."""
    repository = Path(__file__).resolve().parents[1]
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(repository / name, source)
    shutil.copytree(
        repository / "src",
        source / "src",
        ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"),
    )
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    wheels, target = tmp_path_factory.mktemp("wheels"), tmp_path_factory.mktemp("target")
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(wheels), str(source)]
    subprocess.run([*pip, *build], check=True)
    [wheel] = wheels.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(target), str(wheel)], check=True)
    return target


def run(installed: Path, folder: Path, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_synthetic_experiment_and_an_own_one_run(installed, tmp_path):
    where = run(installed, tmp_path, "-c", "import gera_lightning; print(gera_lightning.__file__)")
    assert where.startswith(str(installed))
    small = [
        "budgets=[20]",
        "data.synthetic.items=300",
        "data.reserved_pairs=20",
        "methods=[coupled_ridge_off,ridge]",
    ]
    assert "ridge" in run(installed, tmp_path, "-m", "gera_lightning", "train", "synthetic", *small)
    settings = "data: {synthetic: {items: 200}}\nbudgets: [20]\nmethods: [cca]\n"
    (tmp_path / "my.yaml").write_text(settings)
    assert "cca" in run(installed, tmp_path, "-m", "gera_lightning", "train", "my.yaml")


def test_arrays_are_aligned(installed, tmp_path):
    code = (
        "import numpy as np; from gera_lightning import align;"
        " x = np.random.default_rng(0).normal(size=(60, 5)).astype('float32');"
        " print(align(x, x[:, ::-1]).score(x[:3], x[:3, ::-1]).argmax(1).tolist())"
    )
    assert run(installed, tmp_path, "-c", code).strip() == "[0, 1, 2]"
