from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
import yaml

from gera_lightning import cli, config
from gera_lightning.data.store import EmbeddingStore, write_store
from gera_lightning.evaluation.comparisons import Bootstrap, compare, load_hits, multipliers
from gera_lightning.experiment import runner
from gera_lightning.experiment.archive import unpack
from gera_lightning.experiment.plan import plan
from gera_lightning.experiment.results import load_sweep
from gera_lightning.report import html
from gera_lightning.report.document import Report, Section, Table
from gera_lightning.report.write import keep_results, write_report
from gera_lightning.utils.errors import UserError

N = 120
METHODS = {
    "coupled_ridge": {
        "closed_form": {"class": "gera_lightning.aligners.ridge.Ridge", "direction": "both"}
    },
    "ridge": {
        "closed_form": {"class": "gera_lightning.aligners.ridge.Ridge", "direction": "a_to_b"}
    },
    "asif": {"closed_form": {"class": "gera_lightning.aligners.asif.ASIF"}},
}
ODD = '<script>alert("&")</script> | *x*'


def make_project(root: Path) -> None:
    """Two stores of two views of one latent space, labels and odd texts, an experiment with three
    closed forms.
    """
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, 5))
    for name, width in (("a", 8), ("b", 6)):
        vectors = x @ rng.normal(size=(5, width)) + 0.7 * rng.normal(size=(N, width))
        rows = {
            "item": [f"i{n:03d}" for n in range(N)],
            "row": [f"i{n:03d}-{name}" for n in range(N)],
        }
        rows |= {
            "split": ["test" if n % 3 == 0 else "train" for n in range(N)],
            "label": [f"c{n % 4}" for n in range(N)],
        }
        rows |= {"text": [f"{ODD} {n}" for n in range(N)]}
        write_store(
            root / name,
            vectors.astype(np.float32),
            pd.DataFrame(rows),
            encoder={"name": name},
            source={"name": ODD},
            dtype="float32",
        )
    (root / "experiments" / "methods").mkdir(parents=True)
    for name, preset in METHODS.items():
        (root / "experiments" / "methods" / f"{name}.yaml").write_text(yaml.safe_dump(preset))
    settings = {
        "data": {"a": str(root / "a"), "b": str(root / "b")},
        "budgets": [8, 20],
        "methods": list(METHODS),
        "tuning": {"folds": 2},
    }
    settings |= {"seeds": [0, 1], "runs_dir": str(root / "runs"), "cache_dir": str(root / "cache")}
    (root / "experiments" / "small.yaml").write_text(yaml.safe_dump(settings))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose sweep is through; tests copy it."""
    root = tmp_path_factory.mktemp("finished")
    make_project(root)
    runner.run_experiment(config.load("small", folder=root / "experiments"))
    return root


@pytest.fixture
def project(finished: Path, tmp_path: Path) -> Path:
    """The finished project elsewhere, as a working directory may be moved."""
    root = tmp_path / "project"
    shutil.copytree(finished, root)
    path = root / "experiments" / "small.yaml"
    path.write_text(path.read_text().replace(str(finished), str(root)))
    return root


def write(project: Path, **options: object) -> Path:
    return write_report("small", folder=project / "experiments", **{"draws": 199, **options}).parent


@pytest.fixture(scope="module")
def written(finished: Path) -> Path:
    """The report of all runs, for tests that only read it."""
    return write(finished)


def titles(text: str) -> set[str]:
    """Of a report's sections."""
    return set(re.findall(r"^## (.*)$", text, re.MULTILINE))


def rewrite(project: Path, change) -> None:
    """Change the result rows of all runs; a run without one is removed."""
    for path in (project / "runs" / "small").glob("*/b*/metrics.json"):
        row = change(json.loads(path.read_text()))
        if row is None:
            shutil.rmtree(path.parent)
        else:
            path.write_text(json.dumps(row))


class Reader(HTMLParser):
    """Tags, what they load, and whether they close."""

    VOID = ("meta", "link", "img", "br", "hr", "input")

    def __init__(self) -> None:
        super().__init__()
        self.open, self.tags, self.loads, self.text, self.handlers = [], [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        self.handlers += [name for name, _ in attrs if name.startswith("on")]
        self.loads += [
            value
            for name, value in attrs
            if name in ("src", "href", "xlink:href", "action") and not value.startswith("#")
        ]

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def read(page: Path) -> Reader:
    reader = Reader()
    reader.feed(page.read_text())
    reader.close()
    assert not reader.open
    return reader


# ---- the files ----


def test_the_page_holds_all_and_loads_nothing(written):
    folder = written
    text, reader = (folder / "index.html").read_text(), read(folder / "index.html")
    assert not reader.loads
    assert not {"link", "img", "iframe"} & set(reader.tags)
    assert set(re.findall(r"url\((.)", text)) <= {"#"}
    assert "prefers-color-scheme: dark" in text
    assert 'name="viewport"' in text
    assert (
        reader.tags.count("svg")
        == len(list(folder.glob("*.svg")))
        == len(list(folder.glob("*.png")))
        > 8
    )
    named = re.findall(r' id="([^"]+)"', text)
    targets = set(re.findall(r'href="#([^"]+)"', text)) | set(re.findall(r"url\(#([^)]+)\)", text))
    assert targets <= set(named)
    clips = [name for name in named if name.startswith("p")]
    assert len(clips) == len(set(clips))  # figures do not take each other's parts
    assert "#1f2329" not in text  # ink is the page's


def test_no_script_runs_but_the_one_that_sorts_tables(written):
    text, reader = (written / "index.html").read_text(), read(written / "index.html")
    assert reader.tags.count("script") == 1
    [script] = re.findall("<script>(.*?)</script>", text, re.DOTALL)
    assert script == html.SCRIPT
    [policy] = re.findall('http-equiv="Content-Security-Policy" content="([^"]*)"', text)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy.split("; ")[0] == "default-src 'none'"
    assert [part for part in policy.split("; ") if part.startswith("script-src")] == [
        f"script-src 'sha256-{digest}'"
    ]
    assert not reader.handlers


def test_rows_of_a_group_name_it_when_they_are_sorted():
    numbers = pd.DataFrame({"n": [1, 2]})
    table = Table("t", "c", ["pairs", "m"], [["100", "x"], ["", "y"]], numbers, words=2)
    page = html.render(Report("r", [], "", [Section("s", [table])]), {})
    assert re.findall(r'<td class="([^"]*)">100</td>', page) == ["word", "word again"]


def test_the_first_lines_say_the_data_the_methods_and_the_finding(written):
    lines = (written / "report.md").read_text().split("\n## ")[0].splitlines()
    counts, data, methods, finding = (line for line in lines[1:] if line)
    assert "40 test items" in counts
    assert data.startswith("Data: a, 120 rows of 8 numbers by a; b, 120 rows of 6 numbers by b.")
    assert methods == (
        "Methods, from 8 to 20 pairs: coupled\\_ridge (reference), ridge (baseline), asif."
    )
    results = pd.read_csv(written / "results.csv").sort_values("both/r@10").groupby("budget").last()
    for budget, row in results.iterrows():
        name = row["method"].replace("_", "\\_")
        assert re.search(rf"{re.escape(name)} at [^;]*\b{budget}\b", finding)
        assert f"{row['both/r@10']:.3f}" in finding
    page = (written / "index.html").read_text()
    assert page.index('class="finding"') < page.index("<section")


def test_texts_of_the_data_are_shown_as_they_are(written):
    folder = written
    reader = read(folder / "index.html")
    assert any(ODD in text for text in reader.text)
    assert any(f"Source: {ODD}." in text for text in reader.text)
    assert "\\<script\\>alert" in (folder / "report.md").read_text()
    assert "<script>" not in (folder / "report.md").read_text()


def test_every_link_of_the_markdown_is_a_file_and_every_figure_is_whole(written):
    folder = written
    links = re.findall(r"\]\(([^)]+)\)", (folder / "report.md").read_text())
    assert len(links) > 12
    assert all((folder / link).is_file() for link in links)
    for path in folder.glob("*.svg"):
        assert ElementTree.parse(path).getroot().tag.endswith("svg")
    for path in folder.glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG")


def test_the_same_runs_give_the_same_files(written, finished):
    folder, before = written, {path.name: path.read_bytes() for path in written.iterdir()}
    write(finished)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


# ---- the numbers ----


def test_tables_hold_the_statistics_of_the_runs(written, finished):
    folder, runs = written, load_sweep(finished / "runs" / "small").runs
    bootstrap = Bootstrap(load_hits(runs), 199)
    results = pd.read_csv(folder / "results.csv").set_index(["budget", "method"])
    assert len(results) == 6
    for (budget, method), rows in runs.groupby(["budget", "method"]):
        both = (rows["ab/r@10"] + rows["ba/r@10"]) / 2
        at = results.loc[(budget, method)]
        assert at["both/r@10"] == pytest.approx(both.mean())
        assert at["both/r@10/sd"] == pytest.approx(both.std(ddof=1))
        found = bootstrap.recall(method, budget)
        assert found.value == pytest.approx(both.mean())  # the ranks say what the rows say
        assert (at["both/r@10/low"], at["both/r@10/high"]) == pytest.approx((found.low, found.high))
    differences = pd.read_csv(folder / "differences.csv").set_index(["budget", "against"])
    for budget in (8, 20):
        for comparison in compare(bootstrap, "coupled_ridge", budget):
            at = differences.loc[(budget, comparison.difference.reference)]
            assert at["difference"] == pytest.approx(comparison.difference.estimate.value)
            assert (at["low_holm"], at["high_holm"]) == pytest.approx(
                (comparison.low, comparison.high)
            )
            assert at["p_holm"] == pytest.approx(comparison.p_holm)
    labels = pd.read_csv(folder / "multipliers.csv").set_index(["budget", "method"])
    expected = multipliers(bootstrap, "ridge")
    assert len(labels) == len(expected) == 4
    for one in expected:
        assert labels.loc[(one.budget, one.method), "value"] == pytest.approx(one.value)


def test_the_best_and_those_near_it_are_marked(written):
    text = written / "report.md"
    table = [line for line in text.read_text().splitlines() if line.startswith("|")]
    marked = [line for line in table if "**best**" in line]
    assert len(marked) == 2  # one per budget
    assert marked[0].startswith("| 8 ")
    assert marked[1].startswith("| 20 ")


def test_examples_are_what_the_aligner_finds(written, finished):
    from gera_lightning.aligners import Aligner
    from gera_lightning.experiment.paired_stores import Stores

    lines = (written / "report.md").read_text().splitlines()
    loaded = config.load("small", folder=finished / "experiments")
    stores = Stores.open(loaded.common)
    runs = load_sweep(finished / "runs" / "small").runs
    run = runs[
        (runs["method"] == "coupled_ridge") & (runs["budget"] == 20) & (runs["seed"] == 0)
    ].iloc[0]
    held = stores.held_out
    scores = Aligner.load(run["folder"] / "aligner").score(held.a.x, held.b.x).numpy()
    at = next(
        n
        for n, line in enumerate(lines)
        if line.startswith("**") and "right answer at rank" in line
    )
    query = int(re.search(r"(\d+)\*\* \(right", lines[at]).group(1))
    place = list(held.a.rows["item"]).index(f"i{query:03d}")
    best = np.argsort(-scores[place])[:5]
    shown = [int(re.search(r"(\d+)\*{0,2} \(", line).group(1)) for line in lines[at + 2 : at + 7]]
    assert shown == [int(held.b.rows["item"][j][1:]) for j in best]
    assert "rank 1 of 40" in lines[at]
    assert shown[0] == query


def test_settings_and_the_command_of_the_runs_are_named(written, finished):
    text, runs = (written / "report.md").read_text(), finished / "runs" / "small"
    settings = pd.read_csv(written / "settings.csv").set_index("method")["settings"]
    for method in METHODS:
        used = yaml.safe_load((runs / settings[method]).read_text())
        assert used["method"] == method
    [verb] = re.findall(
        r"make (\w+) EXP=small\n", text.split("## Where")[1].split("make report")[0]
    )
    loaded = config.load("small", folder=finished / "experiments", sweep=verb == "sweep")
    assert len(plan(loaded)) == 12
    assert all(run.finished for run in plan(loaded))


def test_budgets_of_one_method_alone_are_not_compared(project):
    loaded = config.load(
        "small",
        {"sweep.extra_budgets": {"ridge": [40, 60]}, "sweep.seeds": [0, 1]},
        folder=project / "experiments",
        sweep=True,
    )
    runner.run_experiment(loaded)
    folder = write(project, baseline="ridge")
    assert "make sweep EXP=small" in (folder / "report.md").read_text()
    for name, budgets in {
        "headline": {8, 20},
        "differences": {8, 20},
        "best": {8, 20},
        "results": {8, 20, 40, 60},
    }.items():
        assert set(pd.read_csv(folder / f"{name}.csv")["budget"]) == budgets
    labels = pd.read_csv(folder / "multipliers.csv")
    np.testing.assert_allclose(labels["most"], 60 / labels["budget"])


def test_modalities_chance_and_test_items_stand_beside_recall(project):
    rewrite(project, lambda row: row | {"modalities": ["speech", "text"]})
    text = (write(project) / "report.md").read_text()
    lead = text.splitlines()[2]
    assert lead.startswith("speech and text: 3 methods, 2 budgets, 2 seeds, 12 runs")
    assert "Chance R@10: speech → text 0.250, text → speech 0.250; 40 test items." in lead
    assert "R@10 speech → text" in text
    assert "kNN overlap text" in text
    assert not re.search(r"\b[ab] → [ab]\b", text)
    rewrite(project, lambda row: {n: v for n, v in row.items() if n != "modalities"})
    settings = yaml.safe_load((project / "experiments" / "small.yaml").read_text())
    (project / "a").rename(project / "sound")  # older runs recorded no names: those of the stores
    settings["data"]["a"] = str(project / "sound")
    (project / "experiments" / "small.yaml").write_text(yaml.safe_dump(settings))
    assert "sound → b" in (write(project) / "report.md").read_text()


# ---- kept results ----


def test_a_report_of_kept_results_has_the_same_tables(project, monkeypatch, capsys):
    monkeypatch.chdir(project)
    assert cli.main(["report", "small"]) == 0
    assert (
        f"]({project / 'runs' / 'small' / 'report' / 'recall_both.png'})" in capsys.readouterr().out
    )
    assert (project / "runs" / "small" / "report" / "recall_both.png").is_file()
    assert cli.main(["keep", "small"]) == 0
    kept = project / "docs" / "results" / "small.zip"
    assert str(kept.relative_to(project)) in capsys.readouterr().out
    assert kept.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    shutil.move(project / "runs" / "small" / "report", project / "before")
    named = write_report("small", kept=kept).parent
    shutil.move(named, project / "named")
    shutil.rmtree(project / "runs")
    assert cli.main(["report", "small"]) == 0
    assert "docs/results/small.png" in capsys.readouterr().out
    found = project / "runs" / "small" / "report"
    tables = sorted(path.name for path in (project / "before").glob("*.csv"))
    assert len(tables) >= 7
    for folder in (found, project / "named"):
        assert sorted(path.name for path in folder.glob("*.csv")) == tables
        for name in (*tables, "headline.md"):
            assert (folder / name).read_bytes() == (project / "before" / name).read_bytes(), name
    text = (found / "report.md").read_text()
    assert "Read from the kept results docs/results/small.zip" in text
    assert "## Examples" not in text
    assert sorted(path.name for path in (project / "runs" / "small").iterdir()) == [
        "report"
    ]  # no run counts as finished by it


def test_runs_of_other_folds_are_reported_without_intervals(project, monkeypatch):
    """Each seed is evaluated on another part of all items."""
    monkeypatch.chdir(project)
    shutil.rmtree(project / "runs")
    words = ["data.split=folds", "data.folds=3"]
    seeds = ["seeds=[0,1,2]", "budgets=[8]", "methods=[coupled_ridge,ridge]"]
    assert cli.main(["train", "small", *words, *seeds]) == 0
    paths = sorted((project / "runs" / "small" / "ridge").glob("b*/ranks.parquet"))
    tested = [set(pd.read_parquet(path)["item"]) for path in paths]
    assert len(tested) == 3
    assert sum(map(len, tested)) == len(set.union(*tested)) > len(tested[0])
    text = (write_report("small", words).parent / "report.md").read_text()
    assert "cross-validation" in text
    assert "bootstrap" not in text.partition("## ")[0]


def test_a_run_for_design_work_takes_no_place_in_reports_and_kept_results(project, monkeypatch):
    monkeypatch.chdir(project)
    before = keep_results("small").read_bytes()
    assert (
        cli.main(
            ["train", "small", "methods=[ridge]", "budgets=[8]", "seeds=[0]", "data.split=dev"]
        )
        == 0
    )
    assert keep_results("small").read_bytes() == before
    text = (write_report("small").parent / "report.md").read_text()
    assert "1 run is left out: another data.split than the experiment's." in text
    shutil.rmtree(project / "runs")
    assert (
        cli.main(
            ["train", "small", "methods=[ridge]", "budgets=[8]", "seeds=[0]", "data.split=dev"]
        )
        == 0
    )
    with pytest.raises(UserError) as error:
        keep_results("small", ["data.split=dev"])
    assert error.value.key == "docs/results/small.zip"


def test_what_was_kept_before_stays_where_no_newer_run_takes_its_place(project, monkeypatch):
    monkeypatch.chdir(project)
    keep_results("small")
    runs = project / "runs" / "small"
    shutil.rmtree(runs / "ridge")
    [again] = (runs / "coupled_ridge").glob("b20-s1-*")
    record = json.loads((again / "metrics.json").read_text()) | {"ab/r@10": 0.125}
    (again / "metrics.json").write_text(json.dumps(record))
    path = keep_results("small")
    assert "3 methods, 2 budgets, 2 seeds, 12 runs" in (runs / "report" / "report.md").read_text()
    assert len(list(runs.glob("*/b*/aligner"))) == 8  # what lies in runs is only read
    unpack(path, project / "again" / "small")
    kept = load_sweep(project / "again" / "small").runs.set_index(["method", "budget", "seed"])
    assert len(kept) == 12
    assert kept.loc[("coupled_ridge", 20, 1), "ab/r@10"] == 0.125
    shutil.rmtree(runs)
    with pytest.raises(UserError) as error:
        keep_results("small")
    assert error.value.key == str(runs)


# ---- what may be missing ----


def test_one_seed_and_one_method(project):
    rewrite(
        project, lambda row: row if row["seed"] == 0 and row["method"] == "coupled_ridge" else None
    )
    folder = write(project)
    text = (folder / "report.md").read_text()
    assert "One seed: intervals are over families of test items alone" in text
    assert not {"coupled_ridge against the others", "Ablations"} & titles(text)
    results = pd.read_csv(folder / "results.csv")
    assert results["both/r@10/sd"].isna().all()
    assert (results["both/r@10/low"] < results["both/r@10/high"]).all()
    assert "±" not in text.split("## Results")[1].split("## ")[0].split("Numbers")[1]


def test_rows_of_older_versions_lack_columns(project):
    """Half of the rows know no new measure, none knows its split or its cost."""

    def older(row):
        new = ("trustworthiness", "continuity", "map", "label_p@10", "hubness")
        lost = ("split", "seconds", "version", *(new if row["seed"] else ()))
        return {
            name: value for name, value in row.items() if not any(word in name for word in lost)
        }

    rewrite(project, older)
    text = (write(project) / "report.md").read_text()
    assert "Cost" not in titles(text)
    assert "of an unknown version" in text
    rewrite(
        project,
        lambda row: {name: value for name, value in row.items() if name[:2] not in ("a/", "b/")},
    )
    assert (write(project) / "index.html").is_file()


def test_runs_without_ranks_have_no_intervals(project):
    for path in (project / "runs").rglob("ranks.parquet"):
        path.unlink()
    folder = write(project)
    text = (folder / "report.md").read_text()
    assert "one standard deviation over seeds" in text
    assert "Examples" not in titles(text)
    assert "No examples can be shown" in text
    assert pd.read_csv(folder / "results.csv")["both/r@10/low"].isna().all()


@pytest.mark.parametrize("gone", ["a", "runs/small/coupled_ridge"])
def test_without_stores_or_aligners_there_are_no_examples(project, gone):
    if gone == "a":
        shutil.rmtree(project / "a")
    else:
        for path in (project / gone).glob("b*/aligner"):
            shutil.rmtree(path)
    folder = write(project)
    assert "No examples can be shown" in (folder / "report.md").read_text()
    assert len(pd.read_csv(folder / "results.csv")) == 6


# ---- mistakes ----


def test_mistakes_are_named(project):
    for option in ("reference", "baseline"):
        with pytest.raises(UserError, match="did you mean 'coupled_ridge'") as error:
            write(project, **{option: "couple_ridge"})
        assert (error.value.key, error.value.value) == (option, "couple_ridge")
    with pytest.raises(UserError, match="draws=10"):
        write(project, draws=10)
    shutil.rmtree(project / "runs")
    with pytest.raises(UserError, match="make train EXP=small"):
        write(project)


def test_the_command(project, capsys, monkeypatch):
    monkeypatch.chdir(project)
    assert (
        cli.main(["report", "small", "reference=asif", "baseline=coupled_ridge", "draws=99"]) == 0
    )
    out = capsys.readouterr().out
    page = project / "runs" / "small" / "report" / "index.html"
    assert str(page) in out
    assert "asif against the others" in page.read_text()
    assert "Label multipliers over coupled_ridge" in page.read_text()
    assert cli.main(["report", "small", "refrence=asif"]) == 2
    assert "refrence" in capsys.readouterr().err


def test_kept_results_of_other_data_are_not_lost(project, monkeypatch):
    """Two experiments of one name, or one whose stores were replaced."""
    monkeypatch.chdir(project)
    path = keep_results("small")
    before = path.read_bytes()
    other = project / "other"
    shutil.copytree(project / "b", other)
    store = EmbeddingStore(other)
    vectors, rows = store.read()[::-1], store.rows.iloc[::-1].reset_index(drop=True)
    shutil.rmtree(other)
    write_store(other, vectors, rows, encoder={"name": "b"}, source={"name": "t"}, dtype="float32")
    words = [f"data.b={other}", "methods=[ridge]"]
    runner.run_experiment(config.load("small", words, folder=project / "experiments"))
    with pytest.raises(UserError) as error:
        keep_results("small", words)
    assert error.value.key == "docs/results/small.zip"
    assert path.read_bytes() == before
    assert (
        keep_results("small") == path
    )  # the runs of the first data, though those of the other are newer
    assert path.read_bytes() == before
    shutil.rmtree(project / "runs")
    assert (
        "They are of other data than the experiment's stores hold now"
        in write_report("small", words, draws=199).with_name("report.md").read_text()
    )
