"""A report as one HTML file that opens offline: styles and figures inside, no scripts."""

from __future__ import annotations

import re
from html import escape
from io import StringIO

from matplotlib.figure import Figure

from gera_lightning.report.document import (
    Block,
    Code,
    Example,
    Facts,
    Pictures,
    Report,
    Table,
    Text,
)
from gera_lightning.report.figures import INK, save

MAX_ROWS = 40
"""Longer tables are folded."""
STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --soft: #59636e; --line: #d1d9e0;
  --page: #ffffff; --tint: #f3f5f8; --mark: #0a7d4f; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ee; --soft: #9aa4b0; --line: #39424d; --page: #12161b; --tint: #1c222a;
  --mark: #4cc38a; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1120px; padding: 1.2rem clamp(0.8rem, 3vw, 2rem) 4rem;
  color: var(--ink); background: var(--page);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
  overflow-wrap: break-word; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0.6rem 0; }
h2 { font-size: 1.2rem; margin: 2.4rem 0 0.6rem; padding-top: 0.7rem;
  border-top: 1px solid var(--line); }
p, ul { max-width: 46rem; margin: 0.5rem 0; }
nav { font-size: 0.9rem; margin: 0.8rem 0; }
nav a { margin-right: 1rem; display: inline-block; }
a { color: inherit; text-decoration-color: var(--soft); }
.lead, figcaption, caption { color: var(--soft); }
figcaption, caption { font-size: 0.875rem; text-align: left; }
caption { padding-bottom: 0.4rem; caption-side: top; }
.pictures { display: grid;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 320px), 1fr)); gap: 1.2rem;
  margin: 0.8rem 0; }
.pictures > figure { max-width: 470px; }
figure { margin: 0; min-width: 0; }
figure svg { width: 100%; height: auto; display: block; color: var(--ink); }
summary { cursor: pointer; margin: 0.4rem 0; }
.scroll { overflow-x: auto; margin: 0.8rem 0; }
table { border-collapse: collapse; font-size: 0.875rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.22rem 0.7rem 0.22rem 0; text-align: right; white-space: nowrap; }
th { font-weight: 600; border-bottom: 1px solid var(--line); vertical-align: bottom; }
.word { text-align: left; }
tr.new td { border-top: 1px solid var(--line); }
td.strong { font-weight: 700; color: var(--mark); }
pre { background: var(--tint); padding: 0.7rem 0.9rem; border-radius: 6px; white-space: pre-wrap;
  overflow-wrap: anywhere; font-size: 0.85rem; }
.example { background: var(--tint); border-radius: 6px; padding: 0.6rem 0.9rem; margin: 0.7rem 0;
  font-size: 0.92rem; }
.example ol { margin: 0.3rem 0 0; padding-left: 1.4rem; }
.example .note, .example .score { color: var(--soft); font-size: 0.85rem; }
.right { font-weight: 700; color: var(--mark); }
"""


def render(report: Report) -> str:
    """The whole page."""
    links = "".join(
        f'<a href="#s{number}">{escape(section.title)}</a>'
        for number, section in enumerate(report.sections)
    )
    body = [
        f"<h1>{escape(report.title)}</h1>",
        f'<p class="lead">{escape(report.lead)}</p>',
        f"<nav>{links}</nav>",
    ]
    for number, section in enumerate(report.sections):
        body += [
            f'<section id="s{number}"><h2>{escape(section.title)}</h2>',
            *(_block(block) for block in section.blocks),
            "</section>",
        ]
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width,'
        f' initial-scale=1"><title>{escape(report.title)}</title>'
    )
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}<style>{STYLE}</style></head>\n<body>\n'
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def _block(block: Block) -> str:
    match block:
        case Text(text):
            return f"<p>{escape(text)}</p>"
        case Facts(items):
            return "<ul>" + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>"
        case Code(text):
            return f"<pre>{escape(text)}</pre>"
        case Table():
            return _table(block)
        case Pictures(pictures):
            shown = "".join(
                f"<figure>{inline_svg(p.figure, p.name, p.caption)}"
                f"<figcaption>{escape(p.caption)}</figcaption></figure>"
                for p in pictures
            )
            return f'<div class="pictures">{shown}</div>'
        case Example():
            return _example(block)


def _table(table: Table) -> str:
    head = "".join(_cell("th", title, at < table.words) for at, title in enumerate(table.header))
    lines = []
    for number, row in enumerate(table.rows):
        cells = "".join(
            _cell("td", text, at < table.words, (number, at) in table.strong)
            for at, text in enumerate(row)
        )
        lines.append(f"<tr{' class=new' if number in table.breaks else ''}>{cells}</tr>")
    grid = (
        f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )
    if len(table.rows) > MAX_ROWS:
        grid = f"<details><summary>{len(table.rows)} rows</summary>{grid}</details>"
    # A caption outside the scrolled box stays readable on a narrow screen.
    return f"<figure><figcaption>{escape(table.caption)}</figcaption>{grid}</figure>"


def _cell(tag: str, text: str, word: bool, strong: bool = False) -> str:
    names = " ".join(name for name, there in (("word", word), ("strong", strong)) if there)
    attribute = f' class="{names}"' if names else ""
    return f"<{tag}{attribute}>{escape(text)}</{tag}>"


def _example(example: Example) -> str:
    answers = "".join(
        f"<li{' class=right' if answer.right else ''}>{escape(answer.text)} <span"
        f' class="score">{answer.score:.3f}</span></li>'
        for answer in example.answers
    )
    return (
        f'<div class="example"><strong>{escape(example.query)}</strong> <span'
        f' class="note">{escape(example.note)}</span><ol>{answers}</ol></div>'
    )


def inline_svg(figure: Figure, name: str, label: str) -> str:
    """A figure as an SVG element, as wide as its place and with the page's text colour as ink.

    Names inside it begin with `name`, so that figures on one page do not clash.
    """
    buffer = StringIO()
    save(figure, buffer, "svg", name, transparent=True)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*">', "<g>", text)
    text = re.sub(r'(<svg[^>]*?) (?:width|height)="[^"]*"', r"\1", text)
    text = re.sub(r'(<svg[^>]*?) (?:width|height)="[^"]*"', r"\1", text)
    text = re.sub(r' xmlns:xlink="[^"]*"| version="[^"]*"', "", text).replace("xlink:href", "href")
    return text.replace(INK, "currentColor").replace(
        "<svg", f'<svg role="img" aria-label="{escape(label)}"', 1
    )
