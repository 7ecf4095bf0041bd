"""Write a document as one self-contained HTML file, or as Markdown with its pictures beside it."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from html import escape

from expressive_losses.verify.report.document import Card, Document, Picture, Section, Table

STYLE = """
:root { --ink: #1f2430; --soft: #667085; --line: #e4e7ec; --paper: #ffffff; --ground: #f6f7f9; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .25rem; }
h2 { font-size: 1.15rem; margin: 0 0 .5rem; }
p { margin: 0 0 1rem; max-width: 46rem; } .subtitle, figcaption, .note { color: var(--soft); }
section, .card { background: var(--paper); border: 1px solid var(--line); border-radius: 10px; }
section, .card { padding: 1.25rem 1.5rem; }
section { margin-top: 1.25rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(15rem, 1fr)); gap: 1.25rem; margin-top: 1.5rem; }
.card .title { color: var(--soft); } .card .value { font-size: 2rem; font-weight: 650; line-height: 1.25; }
.card .note { font-size: .85rem; }
.bar { position: relative; height: 8px; border-radius: 4px; background: var(--line); margin: .6rem 0; }
.bar .fill { position: absolute; inset: 0 auto 0 0; border-radius: 4px; }
.bar .interval { position: absolute; top: -3px; bottom: -3px; border: solid var(--ink); border-width: 0 1.5px; }
.scroll { overflow-x: auto; } .scroll + .scroll { margin-top: 1rem; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .9rem .35rem 0; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { font-weight: 600; color: var(--soft); } th:first-child, td:first-child, .text td, .text th { text-align: left; }
.text td { white-space: normal; overflow-wrap: anywhere; }
figure { margin: 0 0 1rem; } figure img { max-width: 100%; height: auto; display: block; }
figcaption { font-size: .85rem; margin-top: .35rem; }
"""


def html_of(document: Document) -> str:
    """Return the whole page: no script, nothing loaded from elsewhere."""
    parts = [
        f"<header><h1>{escape(document.title)}</h1><p class=subtitle>{escape(document.subtitle)}</p></header>",
        f"<div class=cards>{''.join(map(_html_card, document.cards))}</div>",
        *map(_html_section, document.sections),
    ]
    return (
        "<!doctype html>\n<html lang=en><head><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width, initial-scale=1'>"
        f"<title>{escape(document.title)}</title><style>{STYLE}</style></head>\n"
        "<body><main>\n" + "\n".join(parts) + "\n</main></body></html>\n"
    )


def _html_card(card: Card) -> str:
    interval = f"left:{card.low:.2f}%;width:{max(card.high - card.low, 0.3):.2f}%"
    return (
        f"<div class=card><div class=title>{escape(card.title)}</div><div class=value>{escape(card.value)}</div>"
        f"<div class=bar><div class=fill style='width:{card.percent:.2f}%;background:{card.color}'></div>"
        f"<div class=interval style='{interval}'></div></div><div class=note>{escape(card.note)}</div></div>"
    )


def _html_section(section: Section) -> str:
    text = f"<p>{escape(section.text)}</p>" if section.text else ""
    inside = "".join([*map(_html_picture, section.pictures), *map(_html_table, section.tables)])
    return f"<section><h2>{escape(section.title)}</h2>{text}{inside}</section>"


def _html_picture(picture: Picture) -> str:
    data = base64.b64encode(picture.png).decode()
    caption = escape(picture.caption, quote=True)
    image = f"<img alt='{caption}' src='data:image/png;base64,{data}'>"
    return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"


def _html_table(table: Table) -> str:
    head = _html_row("th", table.header)
    body = "".join(_html_row("td", row) for row in table.rows)
    kind = " class=text" if table.textual else ""
    return f"<div class=scroll><table{kind}><thead>{head}</thead><tbody>{body}</tbody></table></div>"


def _html_row(tag: str, cells: Iterable[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"


def markdown_of(document: Document, pictures: str) -> str:
    """Return the text; it refers to the pictures as ``pictures/name.png``."""
    lines = [f"# {document.title}", "", document.subtitle, ""]
    if document.cards:
        rows = [(card.title, card.value, card.note) for card in document.cards]
        lines += _markdown_table(Table(("accuracy", "%", "95 % interval"), rows))
    for section in document.sections:
        lines += [f"## {section.title}", ""]
        lines += [section.text, ""] if section.text else []
        for picture in section.pictures:
            lines += [f"![{picture.caption}]({pictures}/{picture.name}.png)", ""]
        for table in section.tables:
            lines += _markdown_table(table)
    return "\n".join(lines)


def _markdown_table(table: Table) -> list[str]:
    ruler = ["---" if table.textual or at == 0 else "---:" for at in range(len(table.header))]
    return [*(f"| {' | '.join(map(_cell, row))} |" for row in (table.header, ruler, *table.rows)), ""]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
