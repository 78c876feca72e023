"""A report as Markdown, with its figures and tables in files beside it."""

from __future__ import annotations

from gera_lightning.report.document import Block, Code, Example, Facts, Pictures, Report, Table, Text


def render(report: Report) -> str:
    """The whole text; figures are `<name>.png`, tables link to `<name>.csv`."""
    parts = [f"# {_plain(report.title)}", _plain(report.lead)]
    for section in report.sections:
        parts += [f"## {_plain(section.title)}", *(_block(block) for block in section.blocks)]
    return "\n\n".join(parts) + "\n"


def _plain(text: str) -> str:
    """Text of data in a line of Markdown: no line breaks, no markup."""
    out = " ".join(text.split())
    for mark in "\\`*_{}[]<>#|":
        out = out.replace(mark, f"\\{mark}")
    return out


def _block(block: Block) -> str:
    match block:
        case Text(text):
            return _plain(text)
        case Facts(items):
            return "\n".join(f"- {_plain(item)}" for item in items)
        case Code(text):
            return f"```\n{text}\n```"
        case Table():
            return _table(block)
        case Pictures(pictures):
            return "\n\n".join(f"![{_plain(p.caption)}]({p.name}.png)\n\n*{_plain(p.caption)}*" for p in pictures)
        case Example(query, note, answers):
            lines = [f"**{_plain(query)}** ({_plain(note)})", ""]
            for place, answer in enumerate(answers, start=1):
                text = f"**{_plain(answer.text)}**" if answer.right else _plain(answer.text)
                lines.append(f"{place}. {text} ({answer.score:.3f})")
            return "\n".join(lines)


def _table(table: Table) -> str:
    rule = ["---"] * table.words + ["---:"] * (len(table.header) - table.words)
    lines = [[_plain(cell) for cell in table.header], rule]
    for number, row in enumerate(table.rows):
        lines.append([f"**{_plain(cell)}**" if (number, at) in table.strong and cell else _plain(cell) for at, cell in enumerate(row)])
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{_plain(table.caption)} Numbers: [{table.name}.csv]({table.name}.csv)\n\n{text}"
