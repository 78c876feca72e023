"""Progress of many runs on a terminal, or as a line per run."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

ProgressCallback = Callable[[str, int, int], None]
"""Called with (what is under way, done, of how many)."""


def no_progress(what: str, done: int, total: int) -> None:
    """Progress that nobody is told of."""


class Display(AbstractContextManager["Display"]):
    """A live bar over all runs and one over the present run's steps; without a terminal, a line a
    finished run.
    """

    def __init__(self, console: Console, total: int, skipped: int) -> None:
        self.console = console
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.total = total
        if skipped:
            console.print(
                f"{skipped} of {total} runs are finished already (overwrite=true runs them again)"
            )
        self.all = self.bar.add_task("all runs", total=total, completed=skipped)
        self.one = self.bar.add_task("", total=None)

    def __enter__(self) -> Display:
        self.bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bar.stop()

    def start(self, number: int, label: str) -> Callable[[str, int, int], None]:
        """Show a run; the returned function takes its progress."""
        title = f"run {number} of {self.total}: {label}"
        self.bar.reset(self.one, total=None, description=title)

        def progress(what: str, done: int, total: int) -> None:
            self.bar.update(self.one, description=f"{title}, {what}", completed=done, total=total)

        return progress

    def fail(self, label: str, reason: str) -> None:
        """Count a failed run and say why."""
        self.bar.advance(self.all)
        self.console.print(
            f"{label:<28} FAILED {reason}", markup=False, soft_wrap=True
        )  # one line, which a sweep passes on

    def finish(self, label: str, row: dict[str, Any]) -> None:
        """Count a finished run and say what it reached."""
        self.bar.advance(self.all)
        self.console.print(
            f"{label:<28} R@10 {row['ab/r@10']:.3f} / {row['ba/r@10']:.3f}   {row['seconds']:.1f} s"
        )
