from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from gera_lightning.evaluation.comparisons import load_hits
from gera_lightning.experiment.archive import kept_rows, pack, unpack
from gera_lightning.experiment.results import load_sweep
from gera_lightning.utils.errors import UserError

ROWS = {"ab": ["007", "007", "NA", "é,\n|"], "ba": ["007", "NA", "é,\n|"]}
"""Items that a careless reader would change."""


def run(
    folder: Path,
    method: str,
    budget: int,
    seed: int,
    *,
    ranks: bool = True,
    trained: bool = False,
    high: float = 9.0,
) -> None:
    path = folder / method / f"b{budget}-s{seed}-h{seed}"
    path.mkdir(parents=True)
    rng = np.random.default_rng([budget, seed])
    row = {
        "method": method,
        "budget": budget,
        "seed": seed,
        "config_hash": f"h{seed}",
        "data_hash": "d",
        "split": "test",
    }
    row |= {"ab/r@10": float(rng.random()), "ba/r@10": 1 / 3, "seconds": 1.25}
    (path / "metrics.json").write_text(json.dumps(row))
    (path / "config.yaml").write_text(
        yaml.safe_dump({"budget": budget, "seed": seed, "closed_form": {"class": method}})
    )
    if trained:
        (path / "tuning.json").write_text(json.dumps({"steps": 3}))
    if ranks:
        parts = [
            pd.DataFrame(
                {
                    "direction": way,
                    "row": [f"{item}-{n}" for n, item in enumerate(items)],
                    "item": items,
                    "rank": [high, *(1 + rng.integers(0, 20, len(items) - 1) / 2)],
                    "positives": 2,
                }
            )
            for way, items in ROWS.items()
        ]
        pd.concat(parts, ignore_index=True).to_parquet(path / "ranks.parquet")
    (path / "aligner").mkdir()
    (path / "aligner" / "maps.safetensors").write_bytes(bytes(100_000))
    os.utime(path / "metrics.json", (1000 + seed, 1000 + seed))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "exp"
    path.mkdir()
    for seed in (0, 1):
        run(path, "m", 10, seed)
        run(path, "k", 10, seed, trained=True)
    run(path, "k", 20, 0, ranks=False)
    return path


def tables(folder: Path):
    sweep = load_sweep(folder)
    return sweep, load_hits(sweep.runs, top=4)


def test_what_is_unpacked_is_what_was_packed(folder, tmp_path):
    pack(load_sweep(folder), tmp_path / "new" / "exp.zip")
    unpack(tmp_path / "new" / "exp.zip", tmp_path / "again" / "exp")
    (old, old_hits), (new, new_hits) = tables(folder), tables(tmp_path / "again" / "exp")
    pd.testing.assert_frame_equal(old.runs.drop(columns="folder"), new.runs.drop(columns="folder"))
    assert [f.relative_to(folder) for f in old.runs["folder"]] == [
        f.relative_to(tmp_path / "again" / "exp") for f in new.runs["folder"]
    ]
    np.testing.assert_array_equal(old_hits.hits, new_hits.hits)
    np.testing.assert_array_equal(old_hits.rows, new_hits.rows)
    assert old.settings == new.settings
    for before, after in zip(old.runs["folder"], new.runs["folder"], strict=True):
        for name in ("metrics.json", "config.yaml", "tuning.json"):
            assert (before / name).exists() == (after / name).exists()
            assert (
                not (before / name).exists()
                or (before / name).read_bytes() == (after / name).read_bytes()
            )
        assert (before / "metrics.json").stat().st_mtime == (after / "metrics.json").stat().st_mtime
        assert not (after / "aligner").exists()
        if (before / "ranks.parquet").exists():
            ranks = [
                pd.read_parquet(p / "ranks.parquet").sort_values(
                    ["direction", "row"], ignore_index=True
                )
                for p in (before, after)
            ]
            pd.testing.assert_frame_equal(*ranks, check_like=True)  # columns in any order
        else:
            assert not (after / "ranks.parquet").exists()


def test_the_same_results_are_the_same_bytes_and_few(folder, tmp_path):
    for name in ("one", "two"):
        pack(load_sweep(folder), tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert (tmp_path / "one").stat().st_size < 3000


def test_ranks_beyond_16_bits_are_kept(folder, tmp_path):
    run(folder, "far", 10, 0, high=2_000_000.5)
    pack(load_sweep(folder), tmp_path / "kept.zip")
    unpack(tmp_path / "kept.zip", tmp_path / "again" / "exp")
    found = pd.read_parquet(tmp_path / "again" / "exp" / "far" / "b10-s0-h0" / "ranks.parquet")
    assert found["rank"].max() == 2_000_000.5


def test_runs_of_other_queries_or_without_ranks_cannot_be_kept(folder, tmp_path):
    path = folder / "m" / "b10-s1-h1" / "ranks.parquet"
    pd.read_parquet(path).iloc[1:].to_parquet(path)
    with pytest.raises(UserError, match="b10-s1-h1: has other queries"):
        pack(load_sweep(folder), tmp_path / "kept.zip")
    for ranks in folder.rglob("ranks.parquet"):
        ranks.unlink()
    with pytest.raises(UserError, match="overwrite=true"):
        pack(load_sweep(folder), tmp_path / "kept.zip")
    assert not (tmp_path / "kept.zip").exists()


def test_rows_are_read_by_themselves_and_damage_is_no_rows(folder, tmp_path):
    path = tmp_path / "kept.zip"
    pack(load_sweep(folder), path)
    rows = kept_rows(path)
    assert sorted((row["method"], row["budget"], row["seed"]) for row in rows) == [
        ("k", 10, 0),
        ("k", 10, 1),
        ("k", 20, 0),
        ("m", 10, 0),
        ("m", 10, 1),
    ]
    assert {row["seconds"] for row in rows} == {1.25}
    path.write_bytes(path.read_bytes()[:300])
    assert kept_rows(path) == []
    assert kept_rows(tmp_path / "nowhere.zip") == []


# ---- damage ----


def test_a_damaged_file_is_refused_in_words(folder, tmp_path):
    """A changed byte of a member shows by its checksum (the first and last few are LZMA's own and
    may not matter).
    """
    whole = tmp_path / "kept.zip"
    pack(load_sweep(folder), whole)
    data = whole.read_bytes()
    broken = tmp_path / "broken.zip"
    with zipfile.ZipFile(whole) as file:
        places = [
            (info.header_offset + 30 + len(info.filename), info.compress_size)
            for info in file.infolist()
        ]
    for start, size in places:
        for at in range(start + 12, start + size - 8, max(1, size // 7)):
            broken.write_bytes(data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :])
            with pytest.raises(UserError, match=r"broken\.zip: damaged.*from the repository again"):
                unpack(broken, tmp_path / f"out{start}-{at}")
    for cut in (0, 10, len(data) // 2, len(data) - 1):
        broken.write_bytes(data[:cut])
        with pytest.raises(UserError, match=r"broken\.zip: damaged"):
            unpack(broken, tmp_path / f"cut{cut}")
    with pytest.raises(UserError, match=r"nowhere\.zip: there are no kept results"):
        unpack(tmp_path / "nowhere.zip", tmp_path / "out")


@pytest.mark.parametrize("name", ["../m/run", "/etc/run", "m", "m/../../run", "m/.."])
def test_nothing_is_laid_out_elsewhere(folder, tmp_path, name):
    path = tmp_path / "kept.zip"
    pack(load_sweep(folder), path)
    with zipfile.ZipFile(path) as file:
        members = {info.filename: file.read(info.filename) for info in file.infolist()}
    runs = json.loads(members["runs.json"])
    runs[0]["folder"] = name
    members["runs.json"] = json.dumps(runs).encode()
    with zipfile.ZipFile(path, "w") as file:
        for member, content in members.items():
            file.writestr(member, content)
    with pytest.raises(UserError, match="is not a run's folder"):
        unpack(path, tmp_path / "deep" / "out")
    assert not list((tmp_path / "deep").rglob("*.json"))
