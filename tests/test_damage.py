"""Files that were damaged at random, or made to be large: each is refused in one line, or read as
it was; nothing ends in a traceback.
"""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from gera_lightning.aligners import Aligner, Ridge
from gera_lightning.config import load
from gera_lightning.data.importing import import_store
from gera_lightning.data.store import EmbeddingStore, write_store
from gera_lightning.experiment.archive import pack, unpack
from gera_lightning.experiment.results import load_sweep
from gera_lightning.experiment.runner import run_experiment
from gera_lightning.utils.errors import UserError

TIMES = 60 * int(os.environ.get("FAULTS", "1"))
"""`make test-faults` multiplies them."""
SETTINGS = {
    "data": {"synthetic": {"items": 60, "dim_a": 5, "dim_b": 4, "features": 8}},
    "budgets": [10],
    "methods": ["ridge"],
}


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """Bytes flipped, cut, doubled or replaced somewhere."""
    data, at = bytearray(content), int(rng.integers(len(content)))
    how = rng.integers(5)
    if how == 0:
        data[at] ^= 1 << int(rng.integers(8))
    elif how == 1:
        data = data[:at]
    elif how == 2:
        data[at : at + 8] = rng.bytes(8)
    elif how == 3:
        data[at:at] = data[: int(rng.integers(1, 40))]
    else:
        data[at : at + 4] = rng.choice([b"null", b"[[[[", b"9999", b'{"":', b"-1.5", b"\xff\xfe"])
    return bytes(data)


def survives(path: Path, read: Callable[[], object], head: int | None = None) -> None:
    """Whatever is done to the file (to its first bytes), reading gives a value or a `UserError`."""
    whole, rng, said = path.read_bytes(), np.random.default_rng(0), list[str]()
    for _ in range(TIMES):
        path.write_bytes(damaged(whole[:head], rng) + (whole[head:] if head else b""))
        try:
            read()
        except UserError as error:
            said.append(str(error))
    assert said
    assert not any("\n" in words for words in said)
    path.write_bytes(whole)
    read()


@pytest.fixture
def store(tmp_path: Path) -> Path:
    rows = {"item": [f"i{n}" for n in range(20)], "text": ["a dog"] * 20}
    write_store(tmp_path / "s", np.random.default_rng(0).normal(size=(20, 6)), rows)
    return tmp_path / "s"


@pytest.mark.parametrize("name", ["manifest.json", "emb_0000.npy", "rows_0000.parquet"])
def test_a_store(store: Path, name: str):
    def read() -> None:
        opened = EmbeddingStore(store)
        opened.read()
        assert len(opened.rows) == len(opened)

    survives(store / name, read)


@pytest.mark.parametrize("suffix", ["npy", "npz", "parquet", "csv", "jsonl"])
def test_what_is_imported(store: Path, tmp_path: Path, suffix: str):
    import pandas as pd

    x = EmbeddingStore(store).read()
    file = tmp_path / f"v.{suffix}"
    ids = None
    if suffix == "npy":
        np.save(file, x)
    elif suffix == "npz":
        np.savez(file, vectors=x, ids=np.arange(20).astype(str))
    elif suffix == "parquet":
        pd.DataFrame({"item": range(20), "vector": list(x)}).to_parquet(file)
    else:
        np.save(tmp_path / "x.npy", x)
        table = pd.DataFrame({"item": range(20), "text": 'a "dog", or'})
        ids = file
        if suffix == "csv":
            table.to_csv(file, index=False)
        else:
            table.to_json(file, orient="records", lines=True)

    def read() -> None:
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        import_store(tmp_path / "x.npy" if ids else file, tmp_path / "out", ids=ids)

    survives(file, read, head=128 if suffix in ("npy", "npz") else None)


@pytest.mark.parametrize("name", ["aligner.json", "maps.safetensors"])
def test_an_aligner(tmp_path: Path, name: str):
    x = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
    Ridge().fit(x, x[:, :6]).aligner_.save(tmp_path / "a")
    survives(tmp_path / "a" / name, lambda: Aligner.load(tmp_path / "a"))


def test_an_aligner_that_asks_for_more_memory_than_its_weights_have(tmp_path: Path):
    x = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
    Ridge().fit(x, x[:, :6]).aligner_.save(tmp_path / "a")
    path = tmp_path / "a" / "aligner.json"
    huge = {"kind": "linear", "settings": {"dim_in": 10**5, "dim": 10**5}}
    path.write_text(json.dumps({**json.loads(path.read_text()), "maps": {"a": huge, "b": huge}}))
    with pytest.raises(UserError, match="100000"):
        Aligner.load(tmp_path / "a")
    path.write_text("[" * 100_000)
    with pytest.raises(UserError):
        Aligner.load(tmp_path / "a")
    path.write_bytes(b" " * (2**24 + 1))
    with pytest.raises(UserError, match="more than"):
        Aligner.load(tmp_path / "a")


# ---- finished runs ----


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    (folder / "experiments" / "methods").mkdir(parents=True)
    ridge = {"closed_form": {"class": "gera_lightning.aligners.ridge.Ridge"}}
    (folder / "experiments" / "methods" / "ridge.yaml").write_text(yaml.safe_dump(ridge))
    (folder / "experiments" / "mine.yaml").write_text(yaml.safe_dump(SETTINGS))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run_experiment(load("mine"))
    return folder / "runs" / "mine"


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "mine", symlinks=True)
    [found] = (tmp_path / "mine" / "ridge").glob("b*")
    return found


@pytest.mark.parametrize("name", ["metrics.json", "config.yaml"])
def test_a_finished_run(run: Path, name: str):
    survives(run / name, lambda: load_sweep(run.parents[1]))


@pytest.mark.parametrize(
    "change",
    [
        {"ab/r@10": float("nan")},
        {"ab/r@10": "high"},
        {"budget": "10"},
        {"method": ["ridge"]},
        {"seed": None},
    ],
)
def test_a_result_that_is_no_number_is_not_shown(run: Path, change: dict):
    path = run / "metrics.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError) as error:
        load_sweep(run.parents[1])
    assert error.value.key == str(path)


def test_settings_of_a_billion_values_are_refused_at_once(run: Path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    (run / "config.yaml").write_text("\n".join(lines))
    with pytest.raises(UserError, match="no settings"):
        load_sweep(run.parents[1])


def test_kept_results(run: Path, tmp_path: Path):
    path = tmp_path / "kept.zip"
    pack(load_sweep(run.parents[1]), path)

    def read() -> None:
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        unpack(path, tmp_path / "out")
        load_sweep(tmp_path / "out")

    survives(path, read)


def test_kept_results_that_unpack_to_gigabytes_are_refused(tmp_path: Path):
    with (
        zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as file,
        file.open("runs.json", "w") as member,
    ):
        for _ in range(600):
            member.write(bytes(2**20))
    with pytest.raises(UserError, match="more than"):
        unpack(tmp_path / "x.zip", tmp_path / "out")
