"""Finished runs of an experiment: the run folders hold their result rows, `results.jsonl` is a
copy for other tools.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from filelock import FileLock

from gera_lightning.utils.errors import UserError
from gera_lightning.utils.files import read_bounded, replace_atomically

KEY = ["method", "budget", "seed"]

NUMBER = (int, float)
Kinds = Mapping[str, type | tuple[type, ...]]
KINDS: Kinds = {
    **{"method": str, "budget": int, "seed": int, "config_hash": str, "data_hash": str},
    **{"ab/r@10": NUMBER, "ba/r@10": NUMBER},
}
"""What the values are that tables are made of; none of them is NaN."""
BUDGET_AND_SEED = re.compile(r"^(budget|seed): \d+\n", re.MULTILINE)
"""The lines of a run's settings in which the runs of one method differ."""
MOST_VALUES = 100_000
"""Values that the settings of a run hold at most."""


def finished_records(folder: Path) -> list[Path]:
    """`metrics.json` of every finished run under an experiment's folder, in order of paths."""
    return [
        path for path in sorted(folder.glob("*/*/metrics.json")) if path.parent.suffix != ".partial"
    ]


def finished_rows(folder: Path) -> list[dict[str, Any]]:
    """Result rows of the finished runs under an experiment's folder, in order of their paths."""
    rows = []
    for path in finished_records(folder):
        with contextlib.suppress(FileNotFoundError):  # another process is replacing that run
            rows.append(read_row(path))
    return rows


def read_row(record: Path, kinds: Kinds | None = None) -> dict[str, Any]:
    """A finished run's result row.

    Raises:
        UserError: a damaged record, or one whose columns are not there or of other `kinds`.
    """
    try:
        row: dict[str, Any] = json.loads(read_bounded(record))
        for name, kind in (kinds or {}).items():
            if not isinstance(row[name], kind) or row[name] != row[name]:
                raise ValueError(f"its {name} is {row[name]!r}")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _no_result(record, repr(error)) from error
    return row


def count_test_items(folders: Iterable[Path]) -> int | None:
    """How many items runs were evaluated on, by the ranks of the first that left them; else None.

    Only items with a row in both stores count: the others have nothing to find.
    """
    for folder in folders:
        with contextlib.suppress(FileNotFoundError):
            ranks = pd.read_parquet(folder / "ranks.parquet", columns=["item"])
            return int(ranks["item"].nunique())
    return None


def collect(folder: Path) -> Path:
    """Rebuild `results.jsonl` from the finished runs of an experiment, under a lock."""
    path = folder / "results.jsonl"
    with FileLock(folder / ".results.lock"):
        rows = [json.dumps(row) for row in finished_rows(folder)]
        replace_atomically(path, ("\n".join(rows) + "\n").encode())
    return path


@dataclass(frozen=True)
class Sweep:
    """Finished runs that may be compared: of one data set and split, one per method, budget, seed.

    Attributes:
        name: of the experiment.
        folder: where its runs lie.
        runs: one row per run, the columns of results.jsonl and `folder`.
        notes: which runs do not count, and why.
    """

    name: str
    folder: Path
    runs: pd.DataFrame
    notes: list[str] = field(default_factory=list)

    @property
    def budgets(self) -> list[int]:
        """Ascending."""
        return sorted({int(n) for n in self.runs["budget"]})

    @cached_property
    def compared(self) -> list[int]:
        """Budgets at which methods can be compared: those of two methods or more, or else all."""
        counts = self.runs.groupby("budget")["method"].nunique()
        return [int(n) for n in counts.index[counts > 1]] or self.budgets

    @cached_property
    def extra_budgets(self) -> dict[str, list[int]]:
        """The budgets that one method alone has, by method."""
        alone = self.runs[~self.runs["budget"].isin(self.compared)]
        return {
            str(name): sorted({int(n) for n in rows["budget"]})
            for name, rows in alone.groupby("method")
        }

    @property
    def seeds(self) -> list[int]:
        """Ascending."""
        return sorted({int(n) for n in self.runs["seed"]})

    @property
    def methods(self) -> list[str]:
        """Best recall first, at the largest budget that all have (or else each at its largest)."""
        runs = self.runs.assign(recall=(self.runs["ab/r@10"] + self.runs["ba/r@10"]) / 2)
        shared = set.intersection(*(set(rows["budget"]) for _, rows in runs.groupby("method")))
        most = max(shared) if shared else runs.groupby("method")["budget"].transform("max")
        return (
            runs[runs["budget"] == most]
            .groupby("method")["recall"]
            .mean()
            .sort_values(ascending=False)
            .index.tolist()
        )

    @cached_property
    def settings(self) -> dict[str, Mapping[str, Any]]:
        """Each method's settings, from the config.yaml of its first run."""
        first = self.runs.drop_duplicates("method").set_index("method")["folder"]
        paths = {str(name): folder / "config.yaml" for name, folder in first.items()}
        return {name: _read_settings(path) for name, path in paths.items() if path.is_file()}

    @cached_property
    def modalities(self) -> tuple[str, str] | None:
        """Names of the two modalities as the runs recorded them; None where no run did."""
        if "modalities" not in self.runs:
            return None
        known = self.runs["modalities"].dropna()
        return (str(known.iloc[0][0]), str(known.iloc[0][1])) if len(known) else None

    @cached_property
    def test_items(self) -> int | None:
        """How many items were evaluated; None where no run left its ranks."""
        return count_test_items(self.runs["folder"])

    @property
    def split(self) -> str:
        """Which items were evaluated."""
        return str(self.runs["split"].iloc[0])

    @property
    def data_hash(self) -> str:
        """Of both stores."""
        return str(self.runs["data_hash"].iloc[0])


DIFFERS = {
    "data_hash": "other data",
    "split": "another data.split",
    "test_share": "another data.test_share",
}
"""Columns in which comparable runs agree, and how runs that differ in one are described."""


def load_sweep(folder: Path, wanted: Mapping[str, Any] | None = None) -> Sweep:
    """Read the finished runs of an experiment that may be compared; it may still be running.

    The folder may also hold runs of other data, another split or older settings. Runs that agree
    with `wanted` count; where none does, those that agree with the newest run. Of each method and
    budget, the settings of its newest run count.

    Args:
        folder: the experiment's.
        wanted: values of the columns of `DIFFERS`.

    Raises:
        UserError: no finished run there, or a record that cannot be read.
    """
    table = pd.DataFrame([_row(path) for path in finished_records(folder)])
    if not len(table):
        raise no_runs(folder)
    notes: list[str] = []
    for column, differs in DIFFERS.items():
        same = table[column] == (wanted or {}).get(column)
        whose = "experiment's" if same.any() else "newest run's"
        if not same.any():
            same = table[column] == table[column].iloc[int(table["time"].to_numpy().argmax())]
        table = _keep(table, same, f"{differs} than the {whose}", notes)
    latest = (
        table.sort_values("time")
        .groupby(["method", "budget"])["settings_key"]
        .transform("last")
        .reindex(table.index)
    )
    table = _keep(
        table, table["settings_key"] == latest, "older settings of their method and budget", notes
    )
    table = _keep(
        table,
        ~table.sort_values("time").duplicated(KEY, keep="last"),
        "older than a run of the same seed",
        notes,
    )
    table = table.drop(
        columns=["time", "settings_key", "results", "test_share"], errors="ignore"
    ).sort_values(KEY, ignore_index=True)
    return Sweep(folder.name, folder, table, notes)


def no_runs(folder: Path) -> UserError:
    """The mistake of asking for results where no run is finished."""
    return UserError(
        "holds no finished run",
        key=str(folder),
        remedy=f"run `make train EXP={folder.name}` first, or give runs_dir=...",
    )


def _row(record: Path) -> dict[str, Any]:
    """A run's result row with its folder, the time it finished, and a key of its settings."""
    run, row = record.parent, read_row(record, KINDS)
    settings = _read_settings(run / "config.yaml") if (run / "config.yaml").is_file() else {}
    shared = {name: value for name, value in settings.items() if name not in ("budget", "seed")}
    shared["results"] = row.get("results", 1)  # the code's version counts as a setting
    return {
        **row,
        "folder": run,
        "time": record.stat().st_mtime,
        "settings_key": json.dumps(shared, sort_keys=True, default=str),
        "split": row.get("split", "test"),
        "test_share": settings.get("data", {}).get("test_share", "unknown"),
    }


def _read_settings(path: Path) -> Mapping[str, Any]:
    """A run's settings; its budget and seed, which its result row has too, may be left out. Runs of
    equal settings share the mapping: it is not to be changed.

    Raises:
        UserError: a damaged file, or one that is no run's.
    """
    try:
        return _parse(BUDGET_AND_SEED.sub("", read_bounded(path).decode()))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise _no_result(path, " ".join(str(error).split())[:200]) from error


@lru_cache(maxsize=128)  # a sweep has thousands of files, but few texts
def _parse(text: str) -> Mapping[str, Any]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's is ten times as fast
    settings = yaml.load(text, loader)
    if not isinstance(settings, dict) or _count(settings, MOST_VALUES) > MOST_VALUES:
        raise ValueError("it holds no settings")
    return settings


def _count(value: Any, most: int) -> int:
    """How many values nested settings hold, counted up to `most`: by its references a small YAML
    file can hold billions.
    """
    inner: Iterable[Any] = ()
    if isinstance(value, dict):
        inner = value.values()
    elif isinstance(value, list):
        inner = value
    count = 1
    for one in inner:
        if count > most:
            break
        count += _count(one, most - count)
    return count


def _no_result(path: Path, why: str) -> UserError:
    return UserError(
        f"is no result ({why})",
        key=str(path),
        remedy=f"remove {path.parent} and run that again",
    )


def _keep(table: pd.DataFrame, kept: pd.Series, why: str, notes: list[str]) -> pd.DataFrame:
    """The rows to keep; a note says how many others there are, and why they do not count."""
    dropped = int((~kept).sum())
    if dropped:
        notes.append(f"{dropped} {'run is' if dropped == 1 else 'runs are'} left out: {why}.")
    return table[kept.reindex(table.index)]
