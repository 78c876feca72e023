"""Where a report's numbers come from: versions, data, and the command that computes them again."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from gera_lightning import config
from gera_lightning.config.merging import flat
from gera_lightning.experiment.plan import at_budget
from gera_lightning.experiment.results import Sweep
from gera_lightning.report.document import Block, Code, Facts
from gera_lightning.utils.errors import UserError

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


def blocks(sweep: Sweep, experiment: str, folder: str | Path) -> list[Block]:
    """Versions and hashes, and the command with how many runs it reproduces.

    Args:
        sweep: the runs.
        experiment: as it was named.
        folder: where experiments lie.
    """
    used = (
        sorted({str(v) for v in sweep.runs["version"].dropna()}) if "version" in sweep.runs else []
    )
    facts = [
        (
            f"gera-lightning {', '.join(used) or 'of an unknown version'} made the runs; this"
            f" report was made with Python {platform.python_version()}, {', '.join(_installed())}."
        ),
        f"Hash of the data (store a, store b): {sweep.data_hash}. Evaluated items: {sweep.split}.",
        *sweep.notes,
    ]
    command, words, same, differing = _command(sweep, experiment, folder)
    facts.append(
        f"{same} of {len(sweep.runs)} runs have the hash that the command below gives them: same"
        " settings, same data."
    )
    if differing:
        facts.append(
            f"Not those of {', '.join(differing)}: their presets or settings were others; each"
            " run's own stand in its config.yaml."
        )
    shown = " ".join(words)
    return [
        Facts(facts),
        Code(f'make {command} EXP={experiment} ARGS="{shown}"\nmake report EXP={experiment}'),
    ]


def _installed() -> list[str]:
    out = []
    for name in PACKAGES:
        try:
            out.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return out


def _command(
    sweep: Sweep, experiment: str, folder: str | Path
) -> tuple[str, list[str], int, list[str]]:
    """`train` or, where a method has budgets of its own, `sweep`, the words after it and the
    experiment, how many runs they reproduce by hash, and the methods of those that they do not.
    """
    command = "sweep" if sweep.extra_budgets else "train"
    words = [f"{key}=[{','.join(map(str, values))}]" for key, values in _axes(sweep).items()]
    if sweep.split != "test":
        words.append(f"data.split={sweep.split}")
    same, wanted = _reproduced(sweep, experiment, folder, words)
    # what brings one method's runs back may serve another's too, or spoil it: take the best each
    # time
    while wanted:
        trials = [
            list(trial)
            for trial in dict.fromkeys(
                (*words, *(w for w in more if w not in words)) for more in wanted.values()
            )
        ]
        outcomes = [(*_reproduced(sweep, experiment, folder, trial), trial) for trial in trials]
        best = max(outcomes, key=lambda outcome: outcome[0])
        if best[0] <= same:
            break
        same, wanted, words = best
    return command, words, same, list(wanted)


def _axes(sweep: Sweep) -> dict[str, list[Any]]:
    if not sweep.extra_budgets:
        return {"methods": sweep.methods, "budgets": sweep.budgets, "seeds": sweep.seeds}
    extra = {
        f"sweep.extra_budgets.{name}": budgets for name, budgets in sweep.extra_budgets.items()
    }
    return {
        "sweep.methods": sweep.methods,
        "budgets": sweep.compared,
        "sweep.seeds": sweep.seeds,
        **extra,
    }


def _reproduced(
    sweep: Sweep, experiment: str, folder: str | Path, words: list[str]
) -> tuple[int, dict[str, list[str]]]:
    """How many runs have the hash of this command; for each method of the others, overrides that
    bring its settings nearer.
    """
    try:
        loaded = config.load(experiment, words, folder=folder, sweep=bool(sweep.extra_budgets))
    except UserError:
        return 0, {name: [] for name in sweep.methods}
    same, wanted = 0, {}
    for row in sweep.runs.to_dict("records"):
        extra = row["budget"] in sweep.extra_budgets.get(row["method"], ())
        settings = at_budget(loaded.methods[row["method"]], int(row["budget"]), extra=extra)
        given = config.config_hash(
            settings, data_hash=row["data_hash"], budget=int(row["budget"]), seed=int(row["seed"])
        )
        same += given == row["config_hash"]
        if (
            given != row["config_hash"] and row["method"] not in wanted
        ):  # one run tells what a method's others were set to
            record = row["folder"] / "config.yaml"
            used = flat(yaml.safe_load(record.read_text())) if record.is_file() else {}
            mine = flat(config.identity(settings))
            wanted[row["method"]] = [
                f"{key}={_word(value)}"
                for key, value in used.items()
                if key in mine and mine[key] != value
            ]
    return same, wanted


def _word(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True).strip().removesuffix("...").strip()
    return text.replace(" ", "")
