"""Fixtures: small stores and experiments, everything on one thread."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from gera_lightning.data.store import EmbeddingStore, write_store
from gera_lightning.utils.files import file_sha256

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing is written into the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


WITH_SHIPPED_PRESETS = (
    "commands",
    "test_shipped_experiment.py",
    "test_raw_to_results.py",
    "test_without_unpaired.py",
    "test_docs_code.py",
    "test_extending.py",
    "test_notebook.py",
)
"""Folders and files of tests that use the presets that come with the package."""


@pytest.fixture(autouse=True)
def _own_presets(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """An experiment of a test has the presets beside it alone."""
    if not set(WITH_SHIPPED_PRESETS) & set(request.path.parts):
        monkeypatch.setattr("gera_lightning.config.loading.SHIPPED", REPOSITORY / "nothing")


@pytest.fixture
def repository() -> Path:
    return REPOSITORY


@pytest.fixture
def make_store(tmp_path: Path) -> Callable[..., EmbeddingStore]:
    """A small store: `make_store("a", vectors, item=[...], family=[...])`."""

    def make(
        name: str, vectors: np.ndarray, shard_rows: int = 7, **columns: list[str]
    ) -> EmbeddingStore:
        columns.setdefault("item", [f"i{n:04d}" for n in range(len(vectors))])
        columns.setdefault("row", [f"{item}-{name}-{n}" for n, item in enumerate(columns["item"])])
        table = pd.DataFrame(columns)
        return write_store(
            tmp_path / name.lstrip("/"),
            vectors,
            table,
            encoder={"name": f"enc-{name}"},
            source={"name": "test"},
            dtype="float32",
            shard_rows=shard_rows,
        )

    return make


@pytest.fixture
def make_class_stores(
    make_store: Callable[..., EmbeddingStore],
) -> Callable[..., list[EmbeddingStore]]:
    """Stores `speech` and `text` of classes: `make_class_stores(["yes", "no"], zero_shot=1)`."""

    def make(
        names: list[str], zero_shot: int = 0, folder: str = "", rows: int = 20
    ) -> list[EmbeddingStore]:
        """So many rows around a centre of each class, a quarter of them test rows, in any order;
        the last `zero_shot` classes have test rows alone. Names are a linear image of the centres.
        """
        random = np.random.default_rng(0)
        centres, turn = random.normal(size=(len(names), 12)), random.normal(size=(12, 6))
        number = random.permutation(np.repeat(np.arange(len(names)), rows))
        x = centres[number] + 0.5 * random.normal(size=(len(number), 12))
        place = pd.Series(number).groupby(number).cumcount()
        test = (place < rows // 4) | (number >= len(names) - zero_shot)
        a = make_store(
            f"{folder}/speech",
            x.astype(np.float32),
            item=[names[n] for n in number],
            row=[f"{names[n]}-{n_th}" for n, n_th in zip(number, place, strict=True)],
            split=np.where(test, "test", "train").tolist(),
            group=[f"speaker{n_th}" for n_th in place],
        )
        b = make_store(
            f"{folder}/text",
            (centres @ turn).astype(np.float32),
            item=names,
            split=["both"] * len(names),
        )
        return [a, b]

    return make


@pytest.fixture
def reseal() -> Callable[[Path], None]:
    """Brings a store's manifest to what its files hold now, as if it had been written so."""

    def seal(folder: Path) -> None:
        path = folder / "manifest.json"
        manifest = json.loads(path.read_text())
        for shard in manifest["shards"]:
            for key in ("vectors", "rows"):
                shard[f"{key}_sha256"] = file_sha256(folder / shard[key])
        path.write_text(json.dumps(manifest))

    return seal


@pytest.fixture(scope="session")
def write_yaml() -> Callable[[Path, Mapping[str, Any]], Path]:
    """Write files of YAML under a folder: `write_yaml(folder, {"small.yaml": {...},
    "methods/ridge.yaml": {...}})`.
    """

    def write(folder: Path, files: Mapping[str, Any]) -> Path:
        for name, values in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(yaml.safe_dump(values))
        return folder

    return write
