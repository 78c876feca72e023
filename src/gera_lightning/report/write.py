"""From finished runs to a report's files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gera_lightning import config
from gera_lightning.comparisons import Bootstrap, load_hits
from gera_lightning.errors import UserError, did_you_mean
from gera_lightning.files import replace_atomically
from gera_lightning.report import examples, figures, html, markdown, provenance, qualities, sections
from gera_lightning.report.document import Report, Section
from gera_lightning.report.findings import Findings
from gera_lightning.report.sources import Sweep, load_sweep

BASELINES = ("contrastive_linear", "contrastive", "contrastive_siglip", "ridge")
WORDS = ("reference", "baseline", "draws")


def write_report(
    experiment: str,
    overrides: Sequence[str] = (),
    *,
    reference: str | None = None,
    baseline: str | None = None,
    draws: int = 2000,
    folder: str | Path = "experiments",
) -> Path:
    """Write `runs/<experiment>/report/`: `index.html` (one file, opens offline), `report.md`, a CSV a table, a PNG and an SVG a figure.

    Args:
        experiment: name of a file in `folder`, or a path to one; its finished runs are reported, whatever methods it names now.
        overrides: `key=value` words as for `gera train`, such as `runs_dir=...`.
        reference: method that the others are compared with; `gera` where it ran, else the best at the largest budget.
        baseline: method whose labels are counted; a contrastive one where it ran, else `ridge`, else the reference's weakest peer.
        draws: resamples of the bootstrap.
        folder: where experiments lie.

    Returns:
        path of the HTML file.

    Raises:
        UserError: no finished runs, or a reference or baseline that did not run.
    """
    loaded = config.load(experiment, overrides, folder=folder)
    sweep = load_sweep(Path(loaded.common.runs_dir) / loaded.name)
    methods = sweep.methods
    for key, value in (("reference", reference), ("baseline", baseline)):
        if value is not None and value not in methods:
            raise UserError(f"{key}={value!r} has no finished run{did_you_mean(value, methods)}")
    reference = reference or ("gera" if "gera" in methods else methods[0])
    baseline = baseline or next((name for name in BASELINES if name in methods), methods[-1])
    ranked = any((run / "ranks.parquet").exists() for run in sweep.runs["folder"])
    bootstrap = Bootstrap(load_hits(sweep.runs), draws) if ranked else None
    findings = Findings(sweep, bootstrap, reference, baseline)
    parts = (sections.short, sections.recall, sections.results, sections.differences, sections.labels)
    report = Report(
        sweep.name,
        _lead(sweep),
        [
            *(part(findings) for part in (*parts, qualities.unimodal, qualities.hubs, qualities.cost)),
            examples.section(sweep, reference, loaded.common),
            Section("Where this comes from", provenance.blocks(sweep, experiment, folder)),
        ],
    )
    return save(report, sweep.folder / "report")


def report_words(experiment: str, words: Sequence[str]) -> Path:
    """`write_report` from the words of a command line: `reference=`, `baseline=` and `draws=` are its own, the others overrides.

    Raises:
        UserError: as `write_report`, or draws that are no whole number.
    """
    own = dict(word.split("=", 1) for word in words if word.partition("=")[0] in WORDS and "=" in word)
    draws = own.pop("draws", "2000")
    if not draws.isdigit():
        raise UserError(f"draws={draws} must be a whole number, such as draws=2000")
    others = [word for word in words if word.partition("=")[0] not in WORDS]
    return write_report(experiment, others, reference=own.get("reference"), baseline=own.get("baseline"), draws=int(draws))


def _lead(sweep: Sweep) -> str:
    what = {"test": "sealed test items", "dev": "dev items, split off the train items for design work"}.get(sweep.split, sweep.split)
    numbers = [(len(sweep.methods), "method"), (len(sweep.budgets), "budget"), (len(sweep.seeds), "seed"), (len(sweep.runs), "run")]
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
