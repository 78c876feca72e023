"""The `gera` command: a table of verbs, each a module of `commands` that is imported when it is
used.

    gera VERB WORD ... KEY=VALUE ...

A mistake of the user ends in one line on standard error and exit code 2. Ctrl-C, SIGTERM and SIGHUP
end in 128 + signal; where `RESUMES` says so, the same command goes on later (not with
`overwrite=true`).
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from gera_lightning.commands import VERBS
from gera_lightning.utils.errors import exit_code
from gera_lightning.utils.signals import PARENT, end_with_parent
from gera_lightning.utils.version import package_version

RESUMES = ("train", "sweep", "embed")
"""Verbs that go on from where they were stopped; the others begin again."""


def module_of(verb: str) -> str:
    """Name of a verb's module; `import` is a keyword of Python, its file `import_vectors.py`."""
    return "gera_lightning.commands." + ("import_vectors" if verb == "import" else verb)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="gera", description="Align two frozen embedding spaces from few pairs."
    )
    parser.add_argument("--version", action="version", version=f"gera {package_version()}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, about in VERBS.items():
        verb = verbs.add_parser(name, help=about, add_help=False)
        verb.add_argument("-h", "--help", action="store_true")
        verb.add_argument("words", nargs="*")
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        key, _, value = unknown[0].lstrip("-").partition("=")
        parser.error(f"unknown option {unknown[0]}: write {key}={value or '...'}")
    if (here := str(Path.cwd())) not in sys.path:  # a user's own classes lie there
        sys.path.append(here)
    words: list[str] = options.words
    overwrite = any(word.partition("=")[0] == "overwrite" for word in words)
    resumes = options.verb in RESUMES and not overwrite
    stopped = "stopped" + ("; the same command goes on from here" if resumes else "")
    if PARENT in os.environ:
        stopped = ""  # the command that started this one says it

    def work() -> None:
        end_with_parent()
        command = importlib.import_module(module_of(options.verb))
        if options.help:
            print(f"{command.__doc__}".strip())
        else:
            command.run(words)

    return exit_code(work, stopped)


if __name__ == "__main__":
    sys.exit(main())
