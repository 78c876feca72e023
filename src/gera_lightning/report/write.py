"""From finished runs to a report's files."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from gera_lightning import config
from gera_lightning.evaluation.comparisons import Bootstrap, load_hits
from gera_lightning.experiment.archive import (
    kept_path,
    kept_rows,
    overlay,
    pack,
    picture_path,
    unpack,
)
from gera_lightning.experiment.paired_stores import joint_hash, open_stores, wanted_results
from gera_lightning.experiment.results import Sweep, finished_records, load_sweep, no_runs
from gera_lightning.report import (
    ablations,
    examples,
    figures,
    geometry,
    headline,
    html,
    markdown,
    provenance,
    sections,
    tuning_curves,
)
from gera_lightning.report.document import Report, Section
from gera_lightning.report.findings import Findings
from gera_lightning.utils.errors import UserError, did_you_mean
from gera_lightning.utils.files import replace_atomically

BASELINES = ("contrastive", "contrastive_linear", "contrastive_siglip", "ridge")
DRAWS = 20_000
"""Resamples of a report: a p-value is at least 2 / (draws + 1), and Holm multiplies it by the
number of comparisons, some thirty.
"""
CURVE = "recall_both.png"
"""The report's picture that is kept, and shown in its `headline.md`: see `sections.recall`."""


def write_report(
    experiment: str,
    overrides: Sequence[str] = (),
    *,
    reference: str | None = None,
    baseline: str | None = None,
    draws: int = DRAWS,
    kept: str | Path | None = None,
    folder: str | Path = "experiments",
) -> Path:
    """Write `runs/<experiment>/report/`: `index.html` (one file, opens offline), `report.md`, a CSV
    a table, a PNG and an SVG a figure, and `headline.md`, the first table for a README.

    Args:
        experiment: name of a file in `folder`, or a path to one; its finished runs are reported,
            whatever methods it names now.
        overrides: `key=value` words as for `gera train`, such as `runs_dir=...`.
        reference: method that the others are compared with; `gera` where it ran, else the best at
            the largest budget.
        baseline: method whose labels are counted; a contrastive one where it ran, else `ridge`,
            else the reference's weakest peer.
        draws: resamples of the bootstrap.
        kept: report these kept results; by default the experiment's in `docs/results`, where it has
            no finished runs here.
        folder: where experiments lie.

    Returns:
        path of the HTML file.

    Raises:
        UserError: no finished runs, or a reference or baseline that did not run.
    """
    loaded = config.load(experiment, overrides, folder=folder)
    with tempfile.TemporaryDirectory() as scratch:
        sweep = _finished(loaded, kept, Path(scratch))
        return _write(
            loaded, sweep, _findings(sweep, reference, baseline, draws), experiment, folder
        )


def _runs(loaded: config.Experiment) -> Path:
    """Where an experiment's runs lie."""
    return Path(loaded.common.runs_dir) / loaded.name


def _write(
    loaded: config.Experiment, sweep: Sweep, findings: Findings, experiment: str, folder: str | Path
) -> Path:
    """The report's files, in the experiment's folder of runs."""
    parts = (
        sections.recall,
        sections.results,
        sections.differences,
        sections.labels,
        ablations.section,
        tuning_curves.section,
    )
    report = Report(
        sweep.name,
        _lead(sweep),
        [
            sections.short(findings),
            *(part(findings) for part in (*parts, geometry.unimodal, geometry.hubs, geometry.cost)),
            examples.section(sweep, findings.reference, loaded.common),
            Section("Where this comes from", provenance.blocks(sweep, experiment, folder)),
        ],
    )
    page = save(report, _runs(loaded) / "report")
    curve = (
        page.with_name(CURVE) if sweep.folder == _runs(loaded) else picture_path(loaded.name)
    )  # of runs that lie here, or of kept ones
    pasted = headline.pasted(headline.table(findings), curve.as_posix())
    replace_atomically(page.with_name("headline.md"), pasted.encode())
    return page


def _data_hash(loaded: config.Experiment) -> str:
    """Hash of the experiment's stores; empty where they are not there, as kept results need none."""
    try:
        return joint_hash(*open_stores(loaded.common))
    except UserError:
        return ""


def _finished(loaded: config.Experiment, kept: str | Path | None, scratch: Path) -> Sweep:
    """The finished runs of an experiment, or those of its kept results, laid out in `scratch`."""
    runs, data = _runs(loaded), _data_hash(loaded)
    wanted, usual = wanted_results(loaded.common, data), kept_path(runs.name)
    if kept is None and not finished_records(runs) and usual.is_file():
        kept = usual
    if kept is None:
        return load_sweep(runs, wanted)
    unpack(Path(kept), scratch / runs.name)
    sweep = load_sweep(scratch / runs.name, wanted)
    other = (
        " They are of other data than the experiment's stores hold now."
        if data and data not in set(sweep.runs["data_hash"])
        else ""
    )
    sweep.notes.append(f"Read from the kept results {kept}, which hold no aligners.{other}")
    return sweep


def _findings(sweep: Sweep, reference: str | None, baseline: str | None, draws: int) -> Findings:
    """Comparisons of the runs, reference and baseline chosen where none is given."""
    methods = sweep.methods
    for key, value in (("reference", reference), ("baseline", baseline)):
        if value is not None and value not in methods:
            raise UserError(f"{key}={value!r} has no finished run{did_you_mean(value, methods)}")
    reference = reference or ("gera" if "gera" in methods else methods[0])
    longest = sorted(
        (name for name in BASELINES if name in methods),
        key=lambda name: name not in sweep.extra_budgets,
    )
    ranked = any((run / "ranks.parquet").exists() for run in sweep.runs["folder"])
    bootstrap = Bootstrap(load_hits(sweep.runs), draws) if ranked else None
    return Findings(sweep, bootstrap, reference, baseline or [*longest, methods[-1]][0])


def keep_results(
    experiment: str, overrides: Sequence[str] = (), *, folder: str | Path = "experiments"
) -> Path:
    """Keep an experiment's finished results, ranks included, in `docs/results/<experiment>.zip`, of
    which the report can be made again, and its curve beside them. Results kept before stay where no
    newer run takes their place (`results.load_sweep` says which are comparable), so a sweep may be
    kept part by part.

    Args:
        experiment, overrides, folder: as for `write_report`, which this calls.

    Raises:
        UserError: no finished runs, runs without ranks, or results of other data that were kept
            before.
    """
    loaded = config.load(experiment, overrides, folder=folder)
    runs, path = _runs(loaded), kept_path(loaded.name)
    if not finished_records(runs):
        raise no_runs(runs)
    with tempfile.TemporaryDirectory() as scratch:
        every = Path(scratch) / loaded.name
        if path.is_file():
            unpack(path, every)
        overlay(runs, every)
        sweep = load_sweep(every, wanted_results(loaded.common, _data_hash(loaded)))
        if {(row["data_hash"], row.get("split", "test")) for row in kept_rows(path)} - {
            (sweep.data_hash, sweep.split)
        }:
            raise UserError(
                f"{path}: holds results of other data or of another split, which would be lost:"
                " move it away, or give the experiment another name"
            )
        pack(sweep, path)
        page = _write(loaded, sweep, _findings(sweep, None, None, DRAWS), experiment, folder)
    replace_atomically(picture_path(loaded.name), page.with_name(CURVE).read_bytes())
    return path


def _lead(sweep: Sweep) -> str:
    what = {
        "test": "sealed test items",
        "dev": "dev items, split off the train items for design work",
    }.get(sweep.split, sweep.split)
    numbers = [
        (len(sweep.methods), "method"),
        (len(sweep.budgets), "budget"),
        (len(sweep.seeds), "seed"),
        (len(sweep.runs), "run"),
    ]
    counted = ", ".join(f"{n} {word}" if n == 1 else f"{n} {word}s" for n, word in numbers)
    return f"{counted}, evaluated on the {what}."


def save(report: Report, folder: Path) -> Path:
    """Write all files; the HTML, which needs none of the others, last."""
    folder.mkdir(parents=True, exist_ok=True)
    for table in report.tables():
        replace_atomically(folder / f"{table.name}.csv", table.numbers.to_csv(index=False).encode())
    for picture in report.pictures():
        for kind in ("png", "svg"):
            figures.save(picture.figure, folder / f"{picture.name}.{kind}", kind, picture.name)
    replace_atomically(folder / "report.md", markdown.render(report).encode())
    replace_atomically(folder / "index.html", html.render(report).encode())
    return folder / "index.html"
