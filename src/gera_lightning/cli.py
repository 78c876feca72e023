"""The `gera` command: sub-commands to functions, no logic.

    gera train EXPERIMENT [key=value ...]

A mistake of the user's ends in one line on standard error and exit code 2; Ctrl-C in 130, and the same command goes on later (not under overwrite=true).
"""

from __future__ import annotations

import argparse
import inspect
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from gera_lightning import __version__
from gera_lightning.errors import UserError, exit_code

if TYPE_CHECKING:
    from gera_lightning.sweep import Outcome


def train(experiment: str, overrides: Sequence[str]) -> None:
    """Run an experiment: all its methods at all its budgets and seeds, then one table and one curve."""
    from gera_lightning import config

    loaded = config.load(experiment, overrides)
    from gera_lightning.distributed import wanted  # after what a mistake is found in: it imports torch

    if (count := wanted(loaded.common.trainer.devices)) > 1:
        from gera_lightning.planning import plan

        plan(loaded)  # a mistake is told once, not by each process
        _start_processes(count, "train", experiment, *overrides)
        return
    from gera_lightning.sweep import run_experiment

    first = os.environ.get("RANK", "0") == "0"
    outcome = run_experiment(loaded, Console() if first else None)
    if first:
        _show(experiment, outcome)


def sweep(experiment: str, overrides: Sequence[str]) -> None:
    """Run an experiment's whole sweep: all methods and seeds of its `sweep` section (sweep.only=quick, sweep.workers=2, sweep.dry_run=true)."""
    from gera_lightning import config

    loaded = config.load(experiment, overrides, sweep=True)
    from gera_lightning.distributed import wanted  # after what a mistake is found in: it imports torch

    if (count := wanted(loaded.common.trainer.devices)) > 1:
        raise UserError(
            f"trainer.devices={loaded.common.trainer.devices}: gera sweep runs each run on one device: set trainer.devices=1 and "
            f"sweep.workers={count}, or take gera train, which trains one run on all devices"
        )
    from gera_lightning.sweep import run_sweep

    outcome = run_sweep(loaded, [experiment, *overrides], Console())
    if outcome is not None:
        _show(experiment, outcome)


def _show(experiment: str, outcome: Outcome) -> None:
    """Print the table and where everything is; a file need not lie where the Makefile is."""
    report, board = f"make report EXP={experiment}", f"make tensorboard EXP={experiment}   (or: tensorboard --logdir {outcome.folder})"
    if experiment.endswith((".yaml", ".yml")):
        report, board = f"gera report {experiment}", f"tensorboard --logdir {outcome.folder}"
    if outcome.table:
        print(outcome.table)
        print(f"curve        {outcome.curve}")
        print(f"results      {outcome.folder / 'results.jsonl'}")
        print(f"report       {report}")
        print(f"TensorBoard  {board}")
        if outcome.note:
            print(f"note         {outcome.note}")


def align(experiment: str, rest: Sequence[str]) -> None:
    """Make the aligner to put to use, of all pairs, test items too: gera align EXP [method=ridge out=FOLDER key=value ...]."""
    from gera_lightning.align import align_experiment
    from gera_lightning.display import Display
    from gera_lightning.words import own_words

    options, overrides = own_words(rest, align_experiment)
    with Display(Console(), 1, 0) as display:
        folder = align_experiment(experiment, overrides, display.start(1, options.get("method", "aligner")), **options)
    print(f"aligner      {folder}   (Aligner.load, gera search {folder} QUERY, gera export {folder})")


def embed(experiment: str, overrides: Sequence[str]) -> None:
    """Make an experiment's two stores from raw data, as its `embed` section says; goes on where it was stopped."""
    from gera_lightning import config

    loaded = config.load(experiment, overrides)
    from gera_lightning.distributed import wanted  # after what a mistake is found in: it imports torch

    if (count := wanted(loaded.common.embed.devices)) > 1:
        _start_processes(count, "embed", experiment, *overrides)
        return
    from gera_lightning.encoders.embed import embed_experiment

    embed_experiment(loaded.common, Console() if os.environ.get("RANK", "0") == "0" else None)


def import_vectors(source: str, rest: Sequence[str]) -> None:
    """Make a store of vectors that are there: gera import SOURCE STORE [ids=FILE key=NAME side=image|text columns.item=NAME ...]."""
    from gera_lightning.data.imports import import_store
    from gera_lightning.words import keywords

    if not source or not rest or "=" in rest[0]:
        raise UserError("gera import takes two paths: what is there and the new store, such as: gera import x.npy data/x ids=x.csv")
    store = import_store(source, rest[0], **keywords(rest[1:], import_store))
    skipped = store.manifest["source"]["skipped"]
    print(f"{store.path}: {len(store):,} rows of width {store.dim}; gera inspect {store.path} shows what is in it")
    print(
        f"the first row is {store.rows['row'].iloc[0]!r}, of item {store.rows['item'].iloc[0]!r}: rows of two stores with one item are pairs"
    )
    if skipped:
        print(f"{skipped:,} rows were left out: {store.path / 'skipped.jsonl'} says which and why")


def show_store(store: str, rest: Sequence[str]) -> None:
    """Show what is in a store: gera inspect STORE [examples=3 neighbors=3]."""
    from gera_lightning.data.inspect import inspect_store
    from gera_lightning.words import keywords

    if not store:
        raise UserError("gera inspect takes the folder of a store, such as: gera inspect data/emoji/text")
    print(inspect_store(store, **keywords(rest, inspect_store)))


def affinity(store: str, rest: Sequence[str]) -> None:
    """Show how alike two stores' spaces, or all their layers', are before training: gera affinity A B [k=10 most=5000]."""
    from gera_lightning.affinity import affinity_table
    from gera_lightning.words import keywords

    if not store or not rest or "=" in rest[0]:
        raise UserError("gera affinity takes two stores, such as: gera affinity data/emoji/image data/emoji/text")
    print(affinity_table(store, rest[0], **keywords(rest[1:], affinity_table)))


def doctor(store: str, rest: Sequence[str]) -> None:
    """Say whether two stores can be aligned, and how: gera doctor STORE_A STORE_B [budget=300 k=16 methods=[gera,ridge]]."""
    from gera_lightning.words import keywords

    if not store or not rest or "=" in rest[0]:
        raise UserError("gera doctor takes two stores, such as: gera doctor data/emoji/image data/emoji/text")
    from gera_lightning.doctor.examine import MEND, examine, verdict

    findings = []
    for finding in examine(store, rest[0], **keywords(rest[1:], examine)):
        findings.append(finding)
        print(finding, flush=True)
    if any(finding.mark == MEND for finding in findings):
        raise UserError(verdict(findings))
    print(verdict(findings))


def keep(experiment: str, overrides: Sequence[str]) -> None:
    """Keep an experiment's finished results in docs/results: gera report makes the same report of them where there are no runs."""
    from gera_lightning.report.write import keep_results

    path = keep_results(experiment, overrides)
    print(f"kept         {path}   ({path.stat().st_size / 1e6:.1f} MB; the curve is {path.with_suffix('.png')})")


def report(experiment: str, overrides: Sequence[str]) -> None:
    """Report an experiment's finished runs: intervals, comparisons and examples, as HTML and Markdown."""
    from gera_lightning.report.write import write_report
    from gera_lightning.words import own_words

    options, others = own_words(overrides, write_report)
    path = write_report(experiment, others, **options)
    print(path.with_name("headline.md").read_text())
    print(f"report       {path}")
    print(f"Markdown     {path.with_name('report.md')}   (with a CSV for each table, a PNG and an SVG for each figure)")


def search(experiment: str, rest: Sequence[str]) -> None:
    """Search one modality with a row of the other: gera search EXP QUERY [k=5 side=a method=gera budget=300 key=value ...]."""
    if not rest:
        raise UserError('gera search takes an experiment and a query, such as: gera search image_text "red heart"')
    from gera_lightning.search import search_words
    from gera_lightning.words import own_words

    options, overrides = own_words(rest[1:], search_words)
    print(search_words(experiment, rest[0], overrides, **options))


def export(experiment: str, rest: Sequence[str]) -> None:
    """Write both stores in the shared space, with a FAISS index each: gera export EXP [out=FOLDER method=gera budget=300 key=value ...]."""
    from gera_lightning.export import export as write
    from gera_lightning.words import own_words

    options, overrides = own_words(rest, write)
    folder = write(experiment, overrides, **options)
    print(f"stores       {folder / 'a'}, {folder / 'b'}   (the dot product of their rows is the score)")
    print(f"indices      {folder / 'a.index'}, {folder / 'b.index'}   (faiss.read_index)")


COMMANDS = {
    "train": train,
    "sweep": sweep,
    "align": align,
    "embed": embed,
    "import": import_vectors,
    "inspect": show_store,
    "affinity": affinity,
    "doctor": doctor,
    "report": report,
    "search": search,
    "export": export,
    "keep": keep,
}

GO_ON = ("train", "sweep", "embed")
"""Commands that go on from where they were stopped; the others begin again."""


def _start_processes(count: int, *words: str) -> None:
    """Run the command of these words in so many processes under torchrun; where one of them fails, exit as it did."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    from gera_lightning.distributed import cores

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // count)))
    try:
        torchrun(["--standalone", f"--nproc-per-node={count}", "-m", "gera_lightning.cli", *words])
    except ChildFailedError as error:  # the process has said what it was
        sys.exit(error.get_first_failure()[1].exitcode)


def _takes(command: str) -> list[str]:
    """What a command calls its first word, and those after it."""
    return list(inspect.signature(COMMANDS[command]).parameters)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(prog="gera", description="Align two frozen embedding spaces from few pairs.")
    parser.add_argument("--version", action="version", version=f"gera {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, function in COMMANDS.items():
        about = (function.__doc__ or "").splitlines()[0]
        first, rest = _takes(name)
        takes_experiment = first == "experiment"
        command = commands.add_parser(name, help=about, description=about)
        command.add_argument(
            "experiment",
            nargs="?",
            default="",
            metavar=first,
            help="name of a file in experiments/, or a path to one" if takes_experiment else "a path",
        )
        command.add_argument(
            "overrides",
            nargs="*",
            metavar="key=value" if takes_experiment else rest,
            help="settings, such as budgets=[100,300] trainer.max_steps=200" if takes_experiment else "as above",
        )
    options = parser.parse_args(arguments)
    if (here := str(Path.cwd())) not in sys.path:  # a user's own classes lie there
        sys.path.append(here)
    experiment, overrides = options.experiment, list(options.overrides)
    if "=" in experiment and _takes(options.command)[0] == "experiment":  # none was named
        experiment, overrides = "", [experiment, *overrides]
    again = options.command not in GO_ON or any(word.partition("=")[0] == "overwrite" for word in overrides)
    stopped = "stopped" + ("" if again else "; the same command goes on from here")
    return exit_code(lambda: COMMANDS[options.command](experiment, overrides), stopped)


if __name__ == "__main__":
    sys.exit(main())
