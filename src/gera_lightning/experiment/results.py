"""Finished runs of an experiment: the run folders hold their result rows, `results.jsonl` is a
copy for other tools.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from filelock import FileLock

from gera_lightning.utils.errors import UserError
from gera_lightning.utils.files import replace_atomically

KEY = ["method", "budget", "seed"]
NEEDED = (*KEY, "config_hash", "data_hash", "ab/r@10", "ba/r@10")


def finished_records(folder: Path) -> list[Path]:
    """`metrics.json` of every finished run under an experiment's folder, in order of their paths."""
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


def read_row(record: Path, needed: Sequence[str] = ()) -> dict[str, Any]:
    """A finished run's result row, with these columns at least.

    Raises:
        UserError: a damaged record.
    """
    try:
        row: dict[str, Any] = json.loads(record.read_text())
        for name in needed:
            row[name]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{record}: is no result ({error!r}): remove {record.parent} and run that again"
        ) from error
    return row


def collect(folder: Path) -> Path:
    """Rebuild `results.jsonl` from the finished runs of an experiment, under a lock."""
    path = folder / "results.jsonl"
    with FileLock(folder / ".results.lock"):
        rows = [json.dumps(row) for row in finished_rows(folder)]
        replace_atomically(path, ("\n".join(rows) + "\n").encode())
    return path


@dataclass(frozen=True)
class Sweep:
    """Finished runs that may be compared: one data set, one split, one run a method, budget and
    seed.

    Attributes:
        name: of the experiment.
        folder: where its runs lie.
        runs: one row a run, the columns of results.jsonl and `folder`.
        notes: what was left out, and why.
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
        """Budgets at which methods can be compared: those of two methods or more, or all where each
        has its own.
        """
        counts = self.runs.groupby("budget")["method"].nunique()
        return [int(n) for n in counts.index[counts > 1]] or self.budgets

    @cached_property
    def extra_budgets(self) -> dict[str, list[int]]:
        """The other budgets, by method: those of one method alone."""
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
        """The best recall first, at the largest budget that all methods have (each at its own
        largest where they share none).
        """
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
    def settings(self) -> dict[str, dict[str, Any]]:
        """What each method's runs were set to, where their config.yaml is there."""
        first = self.runs.drop_duplicates("method").set_index("method")["folder"]
        paths = {str(name): folder / "config.yaml" for name, folder in first.items()}
        return {name: _read_settings(path) for name, path in paths.items() if path.is_file()}

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
"""What runs to compare have in common, and what is said of the others."""


def load_sweep(folder: Path, wanted: Mapping[str, Any] | None = None) -> Sweep:
    """Read the finished runs of an experiment, also of one that is still running.

    Where runs of other data, of another split or of older settings lie there too, those of the data
    and the split that are `wanted` count, and else the newest run decides: its data and split, and
        for each method and budget the settings of its newest run.

    Args:
        folder: the experiment's.
        wanted: values of the columns of `DIFFERS`; of those that no run has, the newest run's are
            taken.

    Raises:
        UserError: nothing finished there, or a record that is no result.
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
        table = _left_out(table, same, f"{differs} than the {whose}", notes)
    latest = (
        table.sort_values("time")
        .groupby(["method", "budget"])["settings_key"]
        .transform("last")
        .reindex(table.index)
    )
    table = _left_out(
        table, table["settings_key"] == latest, "older settings of their method and budget", notes
    )
    table = _left_out(
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
    """That nothing is finished in an experiment's folder."""
    return UserError(
        f"{folder}: holds no finished run: run `make train EXP={folder.name}` first, or give"
        " runs_dir=..."
    )


def _row(record: Path) -> dict[str, Any]:
    """A run's result row with its folder, when it was finished, and its settings and code without
    budget and seed.
    """
    run, row = record.parent, read_row(record, NEEDED)
    settings = _read_settings(run / "config.yaml") if (run / "config.yaml").is_file() else {}
    own = {name: value for name, value in settings.items() if name not in ("budget", "seed")}
    key = json.dumps({**own, "results": row.get("results", 1)}, sort_keys=True, default=str)
    about = {"folder": run, "time": record.stat().st_mtime, "settings_key": key}
    return {
        **row,
        **about,
        "split": row.get("split", "test"),
        "test_share": settings.get("data", {}).get("test_share", "unknown"),
    }


def _read_settings(path: Path) -> dict[str, Any]:
    # a sweep has a thousand of them: libyaml is ten times as fast where PyYAML was built with it
    settings: dict[str, Any] = yaml.load(
        path.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    )
    return settings


def _left_out(table: pd.DataFrame, kept: pd.Series, why: str, notes: list[str]) -> pd.DataFrame:
    gone = int((~kept).sum())
    if gone:
        notes.append(f"{gone} {'run is' if gone == 1 else 'runs are'} left out: {why}.")
    return table[kept.reindex(table.index)]
