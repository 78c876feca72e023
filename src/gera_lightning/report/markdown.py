"""A report as Markdown, with its figures and tables in files beside it."""

from __future__ import annotations

from gera_lightning.report.document import (
    Block,
    Code,
    Example,
    Facts,
    Fold,
    Pictures,
    Report,
    Table,
    Text,
)


def render(report: Report) -> str:
    """The whole text; figures are `<name>.png`, tables link to `<name>.csv`."""
    parts = [f"# {plain(report.title)}", *map(plain, report.lead), plain(report.finding)]
    for section in report.sections:
        parts += [f"## {plain(section.title)}", *(_block(block) for block in section.blocks)]
    return "\n\n".join(parts) + "\n"


def plain(text: str) -> str:
    """Text in a line of Markdown: line breaks become spaces, markup is escaped."""
    line = " ".join(text.split())
    for mark in "\\`*_{}[]<>#|":
        line = line.replace(mark, f"\\{mark}")
    return line


def _block(block: Block) -> str:
    match block:
        case Text(text):
            return plain(text)
        case Facts(items):
            return "\n".join(f"- {plain(item)}" for item in items)
        case Code(text):
            return f"```\n{text}\n```"
        case Table():
            return _table(block)
        case Pictures(pictures):
            return "\n\n".join(
                f"![{plain(p.caption)}]({p.name}.png)\n\n*{plain(p.caption)}*" for p in pictures
            )
        case Fold(title, inside):
            return "\n\n".join([f"{plain(title)}:", *map(_block, inside)])
        case Example(query, note, answers):
            lines = [f"**{plain(query)}** ({plain(note)})", ""]
            for place, answer in enumerate(answers, start=1):
                text = f"**{plain(answer.text)}**" if answer.right else plain(answer.text)
                lines.append(f"{place}. {text} ({answer.score:.3f})")
            return "\n".join(lines)


def _table(table: Table) -> str:
    return f"{plain(table.caption)} Numbers: [{table.name}.csv]({table.name}.csv)\n\n{grid(table)}"


def grid(table: Table) -> str:
    """The table's lines alone."""
    rule = ["---"] * table.words + ["---:"] * (len(table.header) - table.words)
    lines = [[plain(cell) for cell in table.header], rule]
    for number, row in enumerate(table.rows):
        lines.append(
            [
                f"**{plain(cell)}**" if (number, at) in table.strong and cell else plain(cell)
                for at, cell in enumerate(row)
            ]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
