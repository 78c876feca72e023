"""Where a report's numbers come from: versions, data, settings, and the command that made them."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

import pandas as pd

from gera_lightning.config import Experiment
from gera_lightning.experiment.results import Sweep
from gera_lightning.report.document import Block, Code, Facts, Table

PACKAGES = (
    "torch",
    "lightning",
    "faiss-gpu",
    "faiss-cpu",
    "numpy",
    "scipy",
    "scikit-learn",
    "pandas",
)


def blocks(sweep: Sweep, experiment: str, loaded: Experiment) -> list[Block]:
    """Versions and hashes, each method's settings, and the command that makes such runs.

    Args:
        sweep: the runs.
        experiment: as the user named it.
        loaded: the same, read.
    """
    known = "version" in sweep.runs
    versions = {str(v) for v in sweep.runs["version"].dropna()} if known else set()
    used = ", ".join(sorted(versions)) or "of an unknown version"
    a, b = sweep.data_hash[:8], sweep.data_hash[8:]
    facts = [
        f"The runs were made with gera-lightning {used}.",
        f"This report was made with Python {platform.python_version()}, {', '.join(_installed())}.",
        f"Hashes of the two stores: {a} and {b}. Evaluated items: {sweep.split}.",
        *sweep.notes,
    ]
    return [Facts(facts), _settings(sweep), Code(_commands(sweep, experiment, loaded))]


def _installed() -> list[str]:
    found = []
    for name in PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return found


def _settings(sweep: Sweep) -> Table:
    """Where the settings of one run of each method lie."""
    first = sweep.runs.drop_duplicates("method").set_index("method")["folder"]
    rows = [
        [name, str((first[name] / "config.yaml").relative_to(sweep.folder))]
        for name in sweep.methods
    ]
    caption = f"Every run keeps its settings; those of one run per method, in {sweep.name}/:"
    header = ["method", "settings"]
    return Table("settings", caption, header, rows, pd.DataFrame(rows, columns=header), 2)


def _commands(sweep: Sweep, experiment: str, loaded: Experiment) -> str:
    """The commands that make such runs, and this report, again."""
    common = loaded.common
    trained = set(sweep.methods) <= set(loaded.methods) and set(sweep.seeds) <= set(common.seeds)
    verb = "train" if trained and not sweep.extra_budgets else "sweep"
    split = "" if sweep.split == "test" else f" ARGS=data.split={sweep.split}"
    return f"make {verb} EXP={experiment}{split}\nmake report EXP={experiment}{split}"
