from __future__ import annotations

import errno
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from gera_lightning import __version__, cli, commands, config
from gera_lightning.commands.train import train
from gera_lightning.data.store import EmbeddingStore
from gera_lightning.experiment import runner
from gera_lightning.report.outcome import Outcome
from gera_lightning.utils.errors import UserError

N = 60
RIDGE = {"closed_form": {"class": "gera_lightning.aligners.ridge.Ridge", "direction": "both"}}


@pytest.fixture
def project(
    tmp_path: Path, make_store: Callable[..., EmbeddingStore], monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A working directory with one experiment on two small stores, where the command is run."""
    x = np.random.default_rng(0).normal(size=(N, 6)).astype(np.float32)
    for name, width in (("a", 6), ("b", 4)):
        make_store(
            name,
            x[:, :width],
            item=[f"i{n:02d}" for n in range(N)],
            split=["test" if n % 4 == 0 else "train" for n in range(N)],
        )
    (tmp_path / "experiments" / "methods").mkdir(parents=True)
    (tmp_path / "experiments" / "methods" / "ridge.yaml").write_text(yaml.safe_dump(RIDGE))
    (tmp_path / "experiments" / "methods" / "plain.yaml").write_text(
        "losses: {geometric: geometric}\n"
    )
    settings = {
        "data": {"a": "a", "b": "b"},
        "budgets": [10],
        "methods": ["ridge", "plain"],
        "tuning": {"folds": 2},
    }
    (tmp_path / "experiments" / "small.yaml").write_text(yaml.safe_dump(settings))
    monkeypatch.chdir(tmp_path)
    for variable in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(variable, raising=False)
    return tmp_path


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command that must be refused: code 2, one line on standard error, nothing else, and no
    run left behind.
    """
    assert cli.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.endswith("\n")
    assert captured.err.count("\n") == 1
    assert "Traceback" not in captured.err
    assert not Path("runs").exists()
    return captured.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), ["EXP is empty", "EXP=small"]),
        (("budgets=[10]",), ["EXP is empty", "EXP=small"]),  # no experiment, only words
        (("smal",), ["'smal'", "did you mean 'small'"]),
        (("small", "budget=[10]"), ["budget=[10]", "did you mean 'budgets'"]),
        (("small", "budgets"), ["'budgets'", "key=value"]),
        (("small", "budgets=10"), ["budgets=10", "budgets=[10]"]),
        (("small", "methods=[rigde]"), ["'rigde'", "did you mean 'ridge'"]),
        (("small", "head.class=nothing.Here"), ["head.class='nothing.Here'", "cannot be imported"]),
        (("small", "head.hiden=3"), ["head.hiden", "did you mean 'hidden'"]),
        (("small", "data.a=''"), ["data.a is empty", "name the folder"]),
        (("small", "data.a=nowhere"), ["'nowhere'", "check the path"]),
        (("small", "budgets=[46]"), ["budgets=[46]", "45 train items"]),
        (("small", "budgets=[10,20]", "data.reserved_pairs=15"), ["20", "data.reserved_pairs=15"]),
        (("small", "data.reserved_pairs=45"), ["data.reserved_pairs=45", "no unpaired rows"]),
        (("small", "tuning.folds=11"), ["tuning.folds=11", "10 families"]),
        (
            ("small", "methods=[ridge]", "data.synthetic.item=9"),
            ["data.synthetic.item", "did you mean 'items'"],
        ),
        (
            ("small", "methods=[ridge]", "data.synthetic.items=0"),
            ["data.synthetic.items=0", "at least 1"],
        ),
        (
            ("small", "methods=[ridge]", "data.synthetic.items=1e4"),
            ["data.synthetic.items=10000.0", "whole number"],
        ),
    ],
)
def test_a_mistake_is_one_line_and_code_2(project, capsys, arguments, words):
    message = refused(capsys, "train", *arguments)
    assert all(word in message for word in words), message


def damage(path: Path, how: str) -> None:
    if how == "gone":
        path.unlink()
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:100])
    else:
        rows = pd.read_parquet(path)
        rows["item"] = range(len(rows))  # numbers, not words
        rows.to_parquet(path)


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("manifest.json", "gone"),
        ("manifest.json", "cut"),
        ("emb_0000.npy", "gone"),
        ("emb_0000.npy", "cut"),
        ("rows_0000.parquet", "gone"),
        ("rows_0000.parquet", "cut"),
        ("rows_0000.parquet", "numbers"),
    ],
)
def test_a_damaged_store_is_one_line_too(project, reseal, capsys, name, how):
    damage(project / "a" / name, how)
    if how == "numbers":
        reseal(project / "a")
    assert (
        "item" in (message := refused(capsys, "train", "small"))
        if how == "numbers"
        else name in (message := refused(capsys, "train", "small"))
    )
    assert any(word in message for word in ("build", "write it as"))


@pytest.mark.parametrize(
    ("words", "near"),
    [
        (["search", "small", "x", "kk=3"], "'k'"),
        (["report", "small", "baselin=ridge"], "'baseline'"),
        (["export", "small", "indx=Flat"], "'index'"),
    ],
)
def test_a_misspelt_key_of_a_command_is_told_with_the_nearest(project, capsys, words, near):
    assert near in refused(capsys, *words)


def test_an_option_with_dashes_is_told_how_to_write_it(capsys):
    with pytest.raises(SystemExit) as left:
        cli.main(["train", "small", "--budgets", "100"])
    assert left.value.code == 2
    assert "write budgets=" in capsys.readouterr().err


def test_a_broken_experiment_file_is_one_line(project, capsys):
    (project / "experiments" / "small.yaml").write_text("budgets: [1,\nmethods: {\n")
    assert "small.yaml: not readable as YAML" in refused(capsys, "train", "small")


def test_the_real_command_exits_with_2(project):
    """In a process of its own, as a shell sees it."""
    done = subprocess.run(
        [sys.executable, "-m", "gera_lightning", "train", "small", "budget=[1]"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert (
        done.stderr
        == f"error: budget=[1] there is no key 'budget'; did you mean 'budgets'?{chr(10)}"
    )


def test_a_mistake_is_found_before_torch_is_imported(project):
    code = (
        "import sys; from gera_lightning.cli import main; code = main(['train', 'smal']);"
        " print(code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2", "False"]


@pytest.mark.parametrize(
    "arguments", [[], ["trian", "small"], ["train", "small", "--budgets", "3"]]
)
def test_words_that_are_no_command_exit_with_2(project, capsys, arguments):
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    assert "usage: gera" in capsys.readouterr().err


def test_the_version_is_the_packages(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"gera {__version__}\n"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What reaches the sweep."""
    seen: list[Any] = []

    def record(experiment: config.Experiment, console: object = None) -> list[object]:
        seen.append((experiment, console))
        return []

    def table(*_: object) -> Outcome:
        curve = Path("runs/small/curve.png")
        return Outcome(pd.DataFrame(), "the table", curve, Path("runs/small"), "bear in mind")

    monkeypatch.setattr(runner, "run_experiment", record)
    monkeypatch.setattr("gera_lightning.report.outcome.summarize", table)
    return seen


def test_words_of_the_command_line_equal_keywords(project, capsys, asked):
    words = [
        "budgets=[5,10]",
        "seeds=[1,2]",
        "trainer.max_steps=7",
        "optimizer.lr=1e-4",
        "trainer.devices=1",
        "losses.pair.learned=false",
    ]
    keywords = {
        "budgets": [5, 10],
        "seeds": [1, 2],
        "trainer.max_steps": 7,
        "optimizer.lr": 1e-4,
        "trainer": {"devices": 1},
        "losses.pair.learned": False,
    }
    assert cli.main(["train", "small", *words]) == 0
    [(experiment, console)] = asked
    assert experiment == config.load("small", keywords)
    assert experiment != config.load("small")
    assert console is not None
    out = capsys.readouterr().out
    for word in (
        "the table",
        "runs/small/curve.png",
        "runs/small/results.jsonl",
        "make tensorboard EXP=small",
        "bear in mind",
    ):
        assert word in out


@pytest.mark.parametrize(
    ("experiment", "shown"),
    [
        ("small", ["make report EXP=small", "make tensorboard EXP=small"]),
        (
            "experiments/small.yaml",
            ["gera report experiments/small.yaml", "tensorboard --logdir runs/small"],
        ),
    ],
)
def test_what_to_do_next_is_named_as_the_experiment_was(project, capsys, asked, experiment, shown):
    assert cli.main(["train", experiment]) == 0
    out = capsys.readouterr().out
    assert all(line in out for line in shown)
    assert ("make" in out) == (experiment == "small")


def test_only_the_first_process_prints(project, capsys, asked, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert cli.main(["train", "small"]) == 0
    assert asked[0][1] is None
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("a=1 is wrong: remedy"), 2, "error: a=1 is wrong: remedy\n"),
        (KeyboardInterrupt(), 130, "stopped; the same command goes on from here\n"),
        (
            OSError(errno.ENOSPC, "No space left on device", "runs/small"),
            2,
            (
                "error: runs/small: No space left on device: make room or name another place, such"
                " as runs_dir=...\n"
            ),
        ),
    ],
)
def test_what_stops_a_run_decides_the_code(project, capsys, monkeypatch, error, code, line):
    def stopped(*_: object) -> None:
        raise error

    monkeypatch.setattr(runner, "run_experiment", stopped)
    assert cli.main(["train", "small"]) == code
    assert capsys.readouterr().err == line


def test_what_was_finished_before_an_interruption_is_in_the_results(project, monkeypatch):
    done, execute = [], runner.execute

    def stopping(run, progress):
        if done:
            raise KeyboardInterrupt
        done.append(execute(run, progress))
        return done[-1]

    monkeypatch.setattr(runner, "execute", stopping)
    assert cli.main(["train", "small", "methods=[ridge]", "seeds=[0,1]"]) == 130
    assert [
        json.loads(line) for line in Path("runs/small/results.jsonl").read_text().splitlines()
    ] == done


def test_a_users_class_beside_the_experiments_is_found(project):
    (project / "mylib.py").write_text(
        "from gera_lightning.aligners.ridge import Ridge\n\n\nclass Mine(Ridge):\n    pass\n"
    )
    gera = str(Path(sys.executable).with_name("gera"))
    words = ["train", "small", "methods=[ridge]", "closed_form.class=mylib.Mine"]
    done = subprocess.run([gera, *words], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("word", "says"), [("gpuu", "did you mean 'gpu'"), ("cuda", "there is no GPU here")]
)
def test_a_closed_form_is_not_computed_elsewhere_in_silence(
    project, capsys, monkeypatch, word, says
):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert cli.main(["train", "small", "methods=[ridge]", f"trainer.accelerator={word}"]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("word", ["overwrite=true", "overwrite=yes"])
def test_what_begins_again_is_not_said_to_go_on(project, capsys, monkeypatch, word):
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "run_experiment", stopped)
    assert cli.main(["train", "small", word]) == 130
    assert capsys.readouterr().err == "stopped\n"


def test_commands_that_begin_again_are_not_said_to_go_on(capsys, monkeypatch):
    def stopped(words: object) -> None:
        raise KeyboardInterrupt

    command = SimpleNamespace(run=stopped)
    monkeypatch.setattr(cli.importlib, "import_module", lambda name: command)
    assert set(cli.RESUMES) < set(commands.VERBS)
    for name in set(commands.VERBS) - set(cli.RESUMES):
        assert cli.main([name, "x", "y"]) == 130
        assert capsys.readouterr().err == "stopped\n"


def test_a_sweep_on_several_devices_is_refused(project, capsys, monkeypatch):
    monkeypatch.setattr(runner, "run_sweep", lambda *_: None)
    message = refused(capsys, "sweep", "small", "trainer.devices=2")
    assert "trainer.devices=2" in message
    assert "sweep.workers=2" in message
    assert cli.main(["sweep", "small", "trainer.devices=1"]) == 0


def test_our_own_bugs_keep_their_traceback(project, monkeypatch):
    def broken(*_: object) -> None:
        raise AssertionError("ours")

    monkeypatch.setattr(runner, "run_experiment", broken)
    with pytest.raises(AssertionError, match="ours"):
        cli.main(["train", "small"])


def test_a_whole_experiment_from_the_command_line(project, capsys):
    assert cli.main(["train", "small", "methods=[ridge]", "budgets=[5,10]", "seeds=[0,1]"]) == 0
    out = capsys.readouterr().out
    assert "ridge" in out
    rows = [
        json.loads(line)
        for line in (project / "runs" / "small" / "results.jsonl").read_text().splitlines()
    ]
    assert sorted((row["method"], row["budget"], row["seed"]) for row in rows) == [
        ("ridge", b, s) for b in (5, 10) for s in (0, 1)
    ]
    assert not list((project / "runs").rglob("*.partial"))


def test_a_reader_that_has_enough_is_no_error(make_store):
    store = make_store(
        "a", np.random.default_rng(0).normal(size=(9, 4)), item=[str(n) for n in range(9)]
    )
    command = (
        "import sys; from gera_lightning.cli import main; sys.exit(main(['inspect',"
        f" {str(store.path)!r}]))"
    )
    asking = subprocess.Popen(
        [sys.executable, "-c", command], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert asking.stdout is not None
    asking.stdout.close()
    assert asking.stderr is not None
    assert asking.stderr.read() == b""
    assert asking.wait() == 0


# ---- several processes ----


def test_a_mistake_is_told_before_processes_start(project, capsys, monkeypatch):
    monkeypatch.setattr(
        "gera_lightning.commands.launch.start_processes", lambda *_: pytest.fail("nothing to start")
    )
    assert "5000 pairs are more than" in refused(
        capsys, "train", "small", "trainer.devices=2", "budgets=[5000]"
    )


def test_processes_are_started_with_the_commands_words_and_a_failed_one_gives_the_exit_code(
    project, monkeypatch
):
    started = []

    def launch(words: list[str]) -> None:
        started.append(words)
        raise ChildFailedError(
            "gera", {0: ProcessFailure(local_rank=0, pid=1, exitcode=2, error_file="")}
        )

    monkeypatch.setattr("torch.distributed.run.main", launch)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with pytest.raises(SystemExit) as left:
        cli.main(["train", "small", "trainer.devices=2", "methods=[plain]"])
    assert left.value.code == 2
    assert started[0][-6:] == [
        "-m",
        "gera_lightning",
        "train",
        "small",
        "trainer.devices=2",
        "methods=[plain]",
    ]
    with pytest.raises(UserError, match=r"trainer\.devices=2: this is one process"):
        train("small", trainer={"devices": 2})
