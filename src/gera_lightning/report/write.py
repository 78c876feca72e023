"""From finished runs to a report's files."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from io import StringIO
from pathlib import Path

from gera_lightning import config
from gera_lightning.config.schema import DEFAULT_METHOD
from gera_lightning.evaluation.comparisons import Bootstrap, Hits, load_hits
from gera_lightning.experiment.archive import (
    add_finished,
    kept_path,
    kept_rows,
    pack,
    picture_path,
    unpack,
)
from gera_lightning.experiment.paired_stores import (
    joint_hash,
    modality_names,
    open_stores,
    wanted_results,
)
from gera_lightning.experiment.results import Sweep, finished_records, load_sweep, no_runs
from gera_lightning.report import (
    ablations,
    accuracy,
    examples,
    figures,
    geometry,
    headline,
    html,
    lead,
    markdown,
    pools,
    provenance,
    sections,
    tuning_curves,
)
from gera_lightning.report.document import Report, Section
from gera_lightning.report.findings import Findings, classified
from gera_lightning.utils.errors import UserError, did_you_mean
from gera_lightning.utils.files import replace_atomically

BASELINES = ("contrastive", "contrastive_linear", "contrastive_siglip", "ridge")
DRAWS = 20_000
"""Resamples of a report. A p-value is at least 2 / (draws + 1), and Holm multiplies it by the
number of comparisons, some thirty.
"""


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
    """Write the report of an experiment's finished runs, in `runs/<experiment>/report/`.

    `index.html` is one file that opens offline. Beside it lie `report.md`, a CSV per table, a PNG
    and an SVG per figure, and `headline.md`, the first table for a README.

    Args:
        experiment: name of a file in `folder`, or a path to one; all its finished runs are
            reported, also of methods that it does not name.
        overrides: `key=value` words as for `gera train`, such as `runs_dir=...`.
        reference: method that the others are compared with; by default `coupled_ridge`, or where it
            did not run the best at the largest budget.
        baseline: method that label multipliers are relative to; by default a contrastive one, else
            `ridge`, else the weakest.
        draws: resamples of the bootstrap.
        kept: report these kept results; by default those in `docs/results`, where the experiment
            has no finished runs.
        folder: where experiments lie.

    Returns:
        the path of `index.html`.

    Raises:
        UserError: no finished runs, or a reference or baseline that did not run.
    """
    loaded = config.load(experiment, overrides, folder=folder)
    with tempfile.TemporaryDirectory() as scratch:
        sweep = _finished(loaded, kept, Path(scratch))
        return _write(loaded, _findings(loaded, sweep, reference, baseline, draws), experiment)


def _runs(loaded: config.Experiment) -> Path:
    """Where an experiment's runs lie."""
    return Path(loaded.common.runs_dir) / loaded.name


def _write(loaded: config.Experiment, findings: Findings, experiment: str) -> Path:
    """The report's files, in the experiment's folder of runs."""
    sweep = findings.sweep
    found = [
        sections.short(findings),
        *(
            [accuracy.section(findings, way)]
            if (way := classified(findings.sweep.runs))
            else [sections.recall(findings), sections.results(findings)]
        ),
        sections.differences(findings),
        sections.labels(findings),
        ablations.section(findings),
        pools.section(findings),
        tuning_curves.section(findings),
        geometry.unimodal(findings),
        geometry.hubs(findings),
        geometry.cost(findings),
        examples.section(findings, loaded.common),
        # last: the others may leave notes
        Section("Where this comes from", provenance.blocks(sweep, experiment, loaded), folded=True),
    ]
    report = Report(
        sweep.name,
        lead.paragraphs(findings, loaded),
        lead.finding(findings),
        [one for one in found if one.blocks],
    )
    page = save(report, _runs(loaded) / "report")
    # of kept results, the picture beside them
    of_runs = sweep.folder == _runs(loaded)
    curve = _curve(findings, page) if of_runs else picture_path(loaded.name)
    [first] = [table for table in report.tables() if table.name == "headline"]
    text = headline.for_readme(first, curve.as_posix())
    replace_atomically(page.with_name("headline.md"), text.encode())
    return page


def _curve(findings: Findings, page: Path) -> Path:
    """The picture that is kept, and shown in `headline.md`."""
    way = classified(findings.sweep.runs)
    return page.with_name(f"accuracy_{way}.png" if way else "recall_both.png")


def _data_hash(loaded: config.Experiment) -> str:
    """Hash of the experiment's stores; empty where they are not there."""
    try:
        return joint_hash(*open_stores(loaded.common))
    except UserError:
        return ""


def _finished(loaded: config.Experiment, kept: str | Path | None, scratch: Path) -> Sweep:
    """The finished runs of an experiment, or those of its kept results, unpacked into `scratch`."""
    runs, data_hash = _runs(loaded), _data_hash(loaded)
    wanted = wanted_results(loaded.common, data_hash)
    if kept is None and not finished_records(runs) and kept_path(runs.name).is_file():
        kept = kept_path(runs.name)
    if kept is None:
        return load_sweep(runs, wanted)
    unpack(Path(kept), scratch / runs.name)
    sweep = load_sweep(scratch / runs.name, wanted)
    note = f"Read from the kept results {kept}, which hold no aligners."
    if data_hash and data_hash != sweep.data_hash:
        note += " They are of other data than the experiment's stores hold now."
    sweep.notes.append(note)
    return sweep


def _findings(
    loaded: config.Experiment,
    sweep: Sweep,
    reference: str | None = None,
    baseline: str | None = None,
    draws: int = DRAWS,
) -> Findings:
    """Comparisons of the runs; reference and baseline are chosen where none is given."""
    methods, data = sweep.methods, loaded.common.data
    for key, value in (("reference", reference), ("baseline", baseline)):
        if value is not None and value not in methods:
            problem = f"has no finished run{did_you_mean(value, methods)}"
            raise UserError(problem, key=key, value=value)
    if reference is None:
        reference = DEFAULT_METHOD if DEFAULT_METHOD in methods else methods[0]
    if baseline is None:
        # those with the longest curve first
        known = [name for name in BASELINES if name in methods]
        known.sort(key=lambda name: name not in sweep.extra_budgets)
        baseline = [*known, methods[-1]][0]
    ranked = any((run / "ranks.parquet").exists() for run in sweep.runs["folder"])
    # runs of other folds have other test items: nothing is paired there
    paired = ranked and sweep.split != "folds"
    bootstrap = Bootstrap(_hits(sweep), draws) if paired else None
    # older runs did not record their modalities
    modalities = sweep.modalities or modality_names(data.a, data.b)
    return Findings(sweep, bootstrap, reference, baseline, modalities)


def _hits(sweep: Sweep) -> Hits:
    """What counts as found: among the first ten, or for classes their own name first."""
    way = classified(sweep.runs)
    return load_hits(sweep.runs, top=1).only(way) if way else load_hits(sweep.runs)


def keep_results(
    experiment: str, overrides: Sequence[str] = (), *, folder: str | Path = "experiments"
) -> Path:
    """Keep an experiment's finished results in `docs/results/<experiment>.zip`, and its curve.

    The report can be made again from the file. Results that were kept before stay where no newer
    run takes their place (`results.load_sweep` says which may be compared), so a sweep may be kept
    part by part.

    Args:
        experiment, overrides, folder: as for `write_report`.

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
        add_finished(runs, every)
        sweep = load_sweep(every, wanted_results(loaded.common, _data_hash(loaded)))
        before = {(row["data_hash"], row.get("split", "test")) for row in kept_rows(path)}
        if before - {(sweep.data_hash, sweep.split)}:
            raise UserError(
                "holds results of other data or of another split, which would be lost",
                key=str(path),
                remedy="move it away, or give the experiment another name",
            )
        pack(sweep, path)
        findings = _findings(loaded, sweep)
        page = _write(loaded, findings, experiment)
    replace_atomically(picture_path(loaded.name), _curve(findings, page).read_bytes())
    return path


def save(report: Report, folder: Path) -> Path:
    """Write all files, the HTML last."""
    folder.mkdir(parents=True, exist_ok=True)
    for table in report.tables():
        replace_atomically(folder / f"{table.name}.csv", table.numbers.to_csv(index=False).encode())
    drawn = {}
    for picture in report.pictures():
        figures.save(picture.figure, folder / f"{picture.name}.png", "png", picture.name)
        text = StringIO()
        figures.save(picture.figure, text, "svg", picture.name)
        drawn[picture.name] = text.getvalue()
        replace_atomically(folder / f"{picture.name}.svg", drawn[picture.name].encode())
    replace_atomically(folder / "report.md", markdown.render(report).encode())
    replace_atomically(folder / "index.html", html.render(report, drawn).encode())
    return folder / "index.html"
