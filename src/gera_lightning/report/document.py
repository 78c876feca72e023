"""What a report is made of, before it becomes HTML or Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pandas as pd
from matplotlib.figure import Figure


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Facts:
    """A list of short statements."""

    items: Sequence[str]


@dataclass(frozen=True)
class Code:
    """Lines to copy."""

    text: str


@dataclass(frozen=True)
class Table:
    """A table for people, with its numbers for programs.

    Attributes:
        name: stem of its CSV file.
        caption: what it shows.
        header: titles of columns.
        rows: cells as text.
        numbers: the same unrounded, for the CSV file.
        words: the first so many columns hold words, the others numbers.
        strong: (row, column) of cells to stand out.
        breaks: rows that begin a new group.
        unfolded: a page shows it at once even where it is long.
    """

    name: str
    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: pd.DataFrame
    words: int = 1
    strong: frozenset[tuple[int, int]] = frozenset()
    breaks: frozenset[int] = frozenset()
    unfolded: bool = False


@dataclass(frozen=True)
class Picture:
    """A figure; `name` is the stem of its files, `caption` says what it shows."""

    name: str
    caption: str
    figure: Figure


@dataclass(frozen=True)
class Pictures:
    """Figures side by side where there is room."""

    pictures: Sequence[Picture]


@dataclass(frozen=True)
class Answer:
    """A retrieved row: its text, its score, and whether it is a right one (of the query's item)."""

    text: str
    score: float
    right: bool


@dataclass(frozen=True)
class Example:
    """A query with its first answers.

    Attributes:
        query: its text.
        note: the rank of the right answer.
        answers: best first.
    """

    query: str
    note: str
    answers: Sequence[Answer]


@dataclass(frozen=True)
class Fold:
    """Blocks that a page shows on demand; `title` says what they are."""

    title: str
    blocks: Sequence[Block]


Block = Text | Facts | Code | Table | Pictures | Example | Fold


@dataclass(frozen=True)
class Section:
    """A title and the blocks below it; a page shows those of a `folded` one on demand."""

    title: str
    blocks: Sequence[Block]
    folded: bool = False


@dataclass(frozen=True)
class Report:
    """A whole report.

    Attributes:
        title: of the page.
        lead: paragraphs above all sections: what was run and on what data.
        finding: the result in a few sentences.
        sections: in order.
    """

    title: str
    lead: Sequence[str]
    finding: str
    sections: Sequence[Section] = field(default_factory=list)

    def tables(self) -> list[Table]:
        """All tables, in order."""
        return [block for block in self._blocks() if isinstance(block, Table)]

    def pictures(self) -> list[Picture]:
        """All figures, in order."""
        return [
            p for block in self._blocks() if isinstance(block, Pictures) for p in block.pictures
        ]

    def _blocks(self) -> Iterator[Block]:
        for section in self.sections:
            yield from _unfolded(section.blocks)


def _unfolded(blocks: Sequence[Block]) -> Iterator[Block]:
    """The blocks, those of a fold in its place."""
    for block in blocks:
        if isinstance(block, Fold):
            yield from _unfolded(block.blocks)
        else:
            yield block
