"""Finished results in one small file that is kept with the project: what a report reads of its
runs, without aligners and checkpoints.

The file is a zip of

- `runs.json`      a list, one object a run: its `folder` (`<method>/<run>`), when it was
  `finished`, and the `files` of the run as text
- `queries.csv`    the queries of all runs: the columns of `ranks.parquet` without the rank
- `ranks.npy`      `[runs, queries]` twice the rank of the best positive (ties stand at half ranks),
  -1: a run without ranks

Twice a rank fits 16 bits up to 16,000 answers. Every member has a checksum, so a damaged file is
refused.
"""

from __future__ import annotations

import io
import json
import lzma
import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd

from gera_lightning.experiment.results import Sweep, finished_records
from gera_lightning.utils.errors import UserError
from gera_lightning.utils.files import replace_atomically

FOLDER = Path("docs") / "results"
FILES = ("metrics.json", "config.yaml", "tuning.json")
LARGEST = 2**29
"""Bytes that a file holds at most: a thousand runs take some twenty million."""
DAMAGE = (
    zipfile.BadZipFile,
    lzma.LZMAError,
    EOFError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    RecursionError,
    NotImplementedError,
)
"""What reading a damaged file raises."""


def kept_path(name: str) -> Path:
    """Where an experiment's kept results lie."""
    return FOLDER / f"{name}.zip"


def picture_path(name: str) -> Path:
    """Where its curve lies."""
    return FOLDER / f"{name}.png"


def pack(sweep: Sweep, path: Path) -> None:
    """Write the results of these runs to one file.

    Raises:
        UserError: runs with other queries than the first.
    """
    queries: pd.DataFrame | None = None
    runs, ranks = [], []
    for folder in sweep.runs["folder"]:
        found = (
            pd.read_parquet(folder / "ranks.parquet")
            if (folder / "ranks.parquet").is_file()
            else None
        )
        if found is not None:
            found = found.sort_values(["direction", "row"], ignore_index=True)
            asked = found.drop(columns="rank")
            queries = asked if queries is None else queries
            if not asked.equals(queries):
                raise UserError(
                    f"{folder}: has other queries than the runs before it: runs to keep need the"
                    " same stores and the same split"
                )
        ranks.append(found["rank"].to_numpy() if found is not None else None)
        files = {
            name: (folder / name).read_text(encoding="utf-8")
            for name in FILES
            if (folder / name).is_file()
        }
        finished = (folder / "metrics.json").stat().st_mtime
        runs.append(
            {"folder": f"{folder.parent.name}/{folder.name}", "finished": finished, "files": files}
        )
    if queries is None:
        raise UserError(
            f"{sweep.folder}: none of the runs has a ranks.parquet: run the experiment again with"
            " overwrite=true"
        )
    doubled = np.stack(
        [np.full(len(queries), -1.0) if rank is None else 2 * rank for rank in ranks]
    )
    members = io.BytesIO()
    with zipfile.ZipFile(members, "w", zipfile.ZIP_LZMA) as file:
        file.writestr(_member("runs.json"), json.dumps(runs, indent=0))
        file.writestr(_member("queries.csv"), queries.to_csv(index=False))
        array = io.BytesIO()
        np.save(
            array,
            doubled.astype(np.int16 if doubled.max() < 2**15 else np.int32),
            allow_pickle=False,
        )
        file.writestr(_member("ranks.npy"), array.getvalue())
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_atomically(path, members.getvalue())


def _member(name: str) -> zipfile.ZipInfo:
    """A member of the zip, without the time of packing: the same results are the same bytes."""
    info = zipfile.ZipInfo(name)
    info.compress_type = zipfile.ZIP_LZMA
    return info


def unpack(path: Path, folder: Path) -> None:
    """Write kept results as folders of finished runs, for `results.load_sweep`.

    Args:
        path: the kept file.
        folder: the experiment's folder to be, new or empty.

    Raises:
        UserError: no such file, or a damaged one.
    """
    if not path.is_file():
        raise UserError(f"{path}: there are no kept results")
    try:
        runs, queries, ranks = _read_members(path)
        for run, doubled in zip(runs, ranks, strict=True):
            _extract(folder / _safe_member_path(str(run["folder"])), run, queries, doubled)
    except DAMAGE as error:
        why = " ".join(str(error).split())
        raise UserError(
            f"{path}: damaged, or no kept results ({why}): take it from the repository again"
        ) from error


def _opened(path: Path) -> zipfile.ZipFile:
    """The file of kept results.

    Raises:
        ValueError: it unpacks to too much.
    """
    file = zipfile.ZipFile(path)
    if sum(member.file_size for member in file.infolist()) > LARGEST:
        file.close()
        raise ValueError(f"it unpacks to more than {LARGEST:,} bytes")
    return file


def _read_members(path: Path) -> tuple[list[dict[str, object]], pd.DataFrame, np.ndarray]:
    """The runs, the queries and the ranks.

    Raises:
        ValueError: it unpacks to too much, its parts do not fit, or the file cannot be read.
    """
    try:
        with _opened(path) as file:
            runs = json.loads(file.read("runs.json"))
            queries = pd.read_csv(
                io.BytesIO(file.read("queries.csv")),
                dtype={"row": str, "item": str, "family": str},
                keep_default_na=False,
            )
            ranks = np.load(io.BytesIO(file.read("ranks.npy")), allow_pickle=False)
    except OSError as error:  # a place in the file that is not there
        raise ValueError(str(error)) from error
    if ranks.shape != (len(runs), len(queries)):
        raise ValueError(f"{ranks.shape} ranks of {len(runs)} runs and {len(queries)} queries")
    return runs, queries, ranks


def kept_rows(path: Path) -> list[dict[str, object]]:
    """Result rows of kept results; none where there is no such file, or one that cannot be read."""
    try:
        with _opened(path) as file:
            return [
                json.loads(run["files"]["metrics.json"])
                for run in json.loads(file.read("runs.json"))
            ]
    except (OSError, *DAMAGE):
        return []


def add_finished(runs: Path, folder: Path) -> None:
    """Add the finished runs of an experiment's folder `runs` to runs that `unpack` wrote to
    `folder`; the same run's is replaced.
    """
    for record in finished_records(runs):
        place = folder / record.parent.relative_to(runs)
        if place.exists():
            shutil.rmtree(place)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(record.parent.absolute(), target_is_directory=True)


def _safe_member_path(name: str) -> Path:
    """`<method>/<run>`, and nothing that leaves the folder."""
    parts = Path(name).parts
    if len(parts) != 2 or ".." in parts or Path(name).is_absolute():
        raise ValueError(f"{name!r} is not a run's folder")
    return Path(name)


def _extract(
    folder: Path, run: dict[str, object], queries: pd.DataFrame, doubled: np.ndarray
) -> None:
    """One run's folder."""
    folder.mkdir(parents=True)
    files = run["files"]
    assert isinstance(files, dict)
    for name in FILES:
        if name in files:
            (folder / name).write_text(files[name])
    if (doubled >= 0).all():
        queries.assign(rank=doubled / 2.0).to_parquet(folder / "ranks.parquet", index=False)
    os.utime(folder / "metrics.json", (run["finished"], run["finished"]))  # type: ignore[arg-type]
