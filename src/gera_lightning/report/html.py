"""A report as one HTML file that opens offline: styles and figures inside, and one script of our
own, which sorts tables.

All text is escaped, and the page's policy lets no other script run and loads nothing.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from html import escape

from gera_lightning.report.document import (
    Block,
    Code,
    Example,
    Facts,
    Fold,
    Pictures,
    Report,
    Section,
    Table,
    Text,
)
from gera_lightning.report.figures import INK

MAX_ROWS = 12
"""Longer tables are folded."""
STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --soft: #59636e; --line: #d1d9e0;
  --page: #ffffff; --tint: #f3f5f8; --mark: #0a7d4f; --shade: #1f232838; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ee; --soft: #9aa4b0; --line: #39424d; --page: #12161b; --tint: #1c222a;
  --mark: #4cc38a; --shade: #000000d0; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1120px; padding: 1.2rem clamp(0.8rem, 3vw, 2rem) 4rem;
  color: var(--ink); background: var(--page);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
  overflow-wrap: break-word; }
main { min-width: 0; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0.6rem 0; }
h2 { font-size: 1.2rem; margin: 0; display: inline; }
section { margin-top: 2rem; padding-top: 0.8rem; border-top: 1px solid var(--line);
  scroll-margin-top: 2.5rem; }
p, ul { max-width: 46rem; margin: 0.5rem 0; }
a { color: inherit; text-decoration-color: var(--soft); }
nav a { display: block; padding: 0.15rem 0; text-decoration: none; }
nav a:hover { text-decoration: underline; }
.lead, figcaption { color: var(--soft); }
.finding { background: var(--tint); border-left: 4px solid var(--mark); border-radius: 4px;
  padding: 0.6rem 0.9rem; margin: 0.9rem 0; }
figcaption { font-size: 0.875rem; max-width: 46rem; }
.side { display: none; }
.contents { position: sticky; top: 0; z-index: 2; background: var(--page); padding: 0.3rem 0;
  border-bottom: 1px solid var(--line); font-size: 0.9rem; }
@media (min-width: 1100px) {
  body { max-width: 1400px; display: grid; grid-template-columns: 13rem minmax(0, 1fr);
    gap: 2.5rem; }
  .side { display: block; position: sticky; top: 1.2rem; align-self: start; font-size: 0.9rem;
    max-height: calc(100vh - 2.4rem); overflow-y: auto; }
  .contents { display: none; }
  section { scroll-margin-top: 0; }
}
.pictures { display: grid;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 320px), 1fr)); gap: 1.2rem;
  margin: 0.8rem 0; }
.pictures > figure { max-width: 470px; }
figure { margin: 0.8rem 0 0; min-width: 0; }
figure svg { width: 100%; height: auto; display: block; color: var(--ink); }
summary { cursor: pointer; padding: 0.3rem 0; }
.scroll { overflow: auto; max-height: min(34rem, 80vh); margin: 0.5rem 0; width: fit-content;
  max-width: 100%; background:
  linear-gradient(to right, var(--page) 40%, transparent) 0 0 / 3rem 100% local no-repeat,
  linear-gradient(to left, var(--page) 40%, transparent) 100% 0 / 3rem 100% local no-repeat,
  linear-gradient(to top, var(--page) 40%, transparent) 0 100% / 100% 2rem local no-repeat,
  linear-gradient(to top, var(--shade), transparent) 0 100% / 100% 0.7rem scroll no-repeat,
  linear-gradient(to right, var(--shade), transparent) 0 0 / 0.9rem 100% scroll no-repeat,
  linear-gradient(to left, var(--shade), transparent) 100% 0 / 0.9rem 100% scroll no-repeat; }
table { border-collapse: separate; border-spacing: 0; font-size: 0.875rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: 0.22rem 0.9rem 0.22rem 0; text-align: right; white-space: nowrap; }
th { font-weight: 600; border-bottom: 1px solid var(--line); vertical-align: bottom;
  position: sticky; top: 0; background: var(--page); }
th button { font: inherit; color: inherit; background: none; border: 0; padding: 0; cursor: pointer;
  text-align: inherit; }
th button::after { content: " ↕"; color: var(--soft); font-weight: 400; }
th[aria-sort=ascending] button::after { content: " ↑"; }
th[aria-sort=descending] button::after { content: " ↓"; }
.word { text-align: left; }
td.long { white-space: normal; min-width: 14rem; }
tr.new td { border-top: 1px solid var(--line); }
table.sorted tr.new td { border-top: 0; }
table:not(.sorted) td.again { color: transparent; }
td.strong { font-weight: 700; color: var(--mark); }
pre { background: var(--tint); padding: 0.7rem 0.9rem; border-radius: 6px; white-space: pre-wrap;
  overflow-wrap: anywhere; font-size: 0.85rem; }
.example { background: var(--tint); border-radius: 6px; padding: 0.2rem 0.9rem; margin: 0.4rem 0;
  font-size: 0.92rem; }
.example ol { margin: 0.2rem 0 0.5rem; padding-left: 1.4rem; }
.note, .score { color: var(--soft); font-size: 0.85rem; }
.right { font-weight: 700; color: var(--mark); }
"""
SCRIPT = """
for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, at) => {
    const button = document.createElement("button");
    button.append(...head.childNodes);
    head.append(button);
    const text = row => row.cells[at].textContent;
    const number = row => parseFloat(text(row).replace(/^[^-+.0-9]+/, ""));
    const word = head.classList.contains("word");
    button.onclick = () => {
      const first = word ? "ascending" : "descending", other = word ? "descending" : "ascending";
      const order = head.getAttribute("aria-sort") === first ? other : first;
      heads.forEach(one => one.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", order);
      table.classList.add("sorted");
      const sign = order === "ascending" ? 1 : -1;
      body.append(...[...body.rows].sort((a, b) => {
        if (word) return sign * text(a).localeCompare(text(b), "en", { numeric: true });
        const x = number(a), y = number(b);
        return isNaN(x) || isNaN(y) ? isNaN(x) - isNaN(y) : sign * (x - y);
      }));
    };
  });
}
for (const link of document.querySelectorAll(".contents a"))
  link.onclick = () => link.closest("details").removeAttribute("open");
"""
LONG = 40
"""Words of a cell beyond so many characters are broken into lines."""


def render(report: Report, drawn: Mapping[str, str]) -> str:
    """The whole page; `drawn` are the SVG files' texts by the figures' names."""
    title = escape(report.title)
    links = "".join(
        f'<a href="#s{number}">{escape(section.title)}</a>'
        for number, section in enumerate(report.sections)
    )
    body = [
        f'<nav class="side" aria-label="Contents">{links}</nav>\n<main>',
        f"<h1>{title}</h1>",
        *(f'<p class="lead">{escape(text)}</p>' for text in report.lead),
        f'<p class="finding">{escape(report.finding)}</p>',
        f'<details class="contents"><summary>Contents</summary><nav>{links}</nav></details>',
        *(_section(n, section, drawn) for n, section in enumerate(report.sections)),
        "</main>",
    ]
    sha = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{sha}'"
    head = (
        f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title>"
    )
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}<style>{STYLE}</style></head>\n<body>\n'
        + "\n".join(body)
        + f"\n<script>{SCRIPT}</script></body></html>\n"
    )


def _section(number: int, section: Section, drawn: Mapping[str, str]) -> str:
    head = f"<h2>{escape(section.title)}</h2>"
    inside = _blocks(section.blocks, drawn, section.folded)
    if section.folded:  # the link's target lies inside, so that a browser opens it
        inside = f'<div id="s{number}">{inside}</div>'
        return f"<section><details><summary>{head}</summary>{inside}</details></section>"
    return f'<section id="s{number}">{head}{inside}</section>'


def _blocks(blocks: Sequence[Block], drawn: Mapping[str, str], folded: bool) -> str:
    """Blocks one below the other; in what is `folded` itself, no table is."""
    return "\n".join(_block(block, drawn, folded) for block in blocks)


def _block(block: Block, drawn: Mapping[str, str], folded: bool) -> str:
    match block:
        case Text(text):
            return f"<p>{escape(text)}</p>"
        case Facts(items):
            return "<ul>" + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>"
        case Code(text):
            return f"<pre>{escape(text)}</pre>"
        case Table():
            return _table(block, folded)
        case Pictures(pictures):
            shown = "".join(
                f"<figure>{inline_svg(drawn[p.name], p.caption)}"
                f"<figcaption>{escape(p.caption)}</figcaption></figure>"
                for p in pictures
            )
            return f'<div class="pictures">{shown}</div>'
        case Example():
            return _example(block)
        case Fold(title, inside):
            return _details(title, _blocks(inside, drawn, folded=True))


def _details(title: str, inside: str) -> str:
    return f"<details><summary>{escape(title)}</summary>{inside}</details>"


def _table(table: Table, folded: bool) -> str:
    head = "".join(_cell("th", title, at < table.words) for at, title in enumerate(table.header))
    lines, group = [], ""
    for number, row in enumerate(table.rows):
        cells = ""
        for at, text in enumerate(row):
            # the group is named in all its rows, for a table that is sorted
            again = at == 0 and not text
            strong = (number, at) in table.strong
            cells += _cell("td", group if again else text, at < table.words, strong, again)
        group = row[0] or group
        lines.append(f"<tr{' class=new' if number in table.breaks else ''}>{cells}</tr>")
    grid = (
        f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )
    caption = f"<figcaption>{escape(table.caption)}</figcaption>"
    # A caption outside the scrolled box stays readable on a narrow screen.
    whole = f"<figure>{caption}{grid}</figure>"
    if len(table.rows) <= MAX_ROWS or table.unfolded or folded:
        return whole
    return _details(f"Table of {len(table.rows)} rows", whole)


def _cell(tag: str, text: str, word: bool, strong: bool = False, again: bool = False) -> str:
    kinds = {"word": word, "strong": strong, "again": again, "long": len(text) > LONG}
    names = " ".join(name for name, there in kinds.items() if there)
    attribute = f' class="{names}"' if names else ""
    return f"<{tag}{attribute}>{escape(text)}</{tag}>"


def _example(example: Example) -> str:
    answers = "".join(
        f"<li{' class=right' if answer.right else ''}>{escape(answer.text)} <span"
        f' class="score">{answer.score:.3f}</span></li>'
        for answer in example.answers
    )
    return (
        f'<details class="example"><summary><strong>{escape(example.query)}</strong> <span'
        f' class="note">{escape(example.note)}</span></summary><ol>{answers}</ol></details>'
    )


def inline_svg(text: str, label: str) -> str:
    """The text of an SVG file as an element, as wide as its place, on the page's ground and with
    its text colour as ink.
    """
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="patch_1">.*?</g>', "", text, count=1, flags=re.DOTALL)  # white ground
    text = re.sub(r'<g id="[^"]*">', "<g>", text)
    text = re.sub(r'(<svg[^>]*?) (?:width|height)="[^"]*"', r"\1", text)
    text = re.sub(r'(<svg[^>]*?) (?:width|height)="[^"]*"', r"\1", text)
    text = re.sub(r' xmlns:xlink="[^"]*"| version="[^"]*"', "", text).replace("xlink:href", "href")
    return text.replace(INK, "currentColor").replace(
        "<svg", f'<svg role="img" aria-label="{escape(label)}"', 1
    )
