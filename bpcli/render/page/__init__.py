"""Documents as HTML: the page of `bp report`, which is one file that needs nothing else, and fragments for notebooks.

Every string of a document is escaped.
"""

from __future__ import annotations

import base64
import hashlib
import html
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from bpcli.errors import format_diagnostic, printable
from bpcli.render import Column, Document
from bpcli.render.columns import COLUMNS
from bpcli.render.page.figure import Figure, svg

MENU_AT_MOST = 12
"""Words of a column up to which a menu offers them."""
PHONE = ("verdict", "cosine")
PHONE_WITHOUT_VERDICT = ("time_s", "bias", "cosine")
"""The columns beside labels that a phone shows to begin with."""
LINE_AT_MOST = 24
"""Characters of a cell that never breaks into lines."""
_COLOURS = {"red": "#c62828", "yellow": "#b26a00"}


@dataclass(frozen=True)
class Group:
    """Figures that belong together; a menu shows one group of a `kind` at a time, the first to begin with."""

    name: str
    kind: str
    figures: Sequence[Figure]


@dataclass(frozen=True)
class Section:
    """One run: its document, the keys of the columns that `show` to begin with, and its figures."""

    name: str
    document: Document
    show: frozenset[str]
    groups: Sequence[Group]


def page(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """The whole file. It loads nothing, and runs no script but its own."""
    script, style = _asset("script.js"), _asset("style.css")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    counter = itertools.count(1)
    body = "".join(_section(s, number, counter) for number, s in enumerate(sections, start=1))
    contents = "".join(f'<li><a href="#run{i}">{escape(s.name)}</a></li>' for i, s in enumerate(sections, start=1))
    nav = f'<nav aria-label="Runs"><ul>{contents}</ul></nav>' if len(sections) > 1 else ""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n"
        f'<header><div><h1>{escape(title)}</h1><p class="about">{escape(subtitle)}</p></div>'
        '<button id="theme" type="button" class="tool" aria-pressed="false">Dark</button></header>\n'
        f"{nav}<main>{body}</main>\n<script>{script}</script>\n</body>\n</html>\n"
    )


def fragment(document: Document) -> str:
    """The main columns of every row, as in a terminal, with sentences and notes; no script, no style sheet."""
    columns = [c for c in document.columns if not c.wide]
    parts = [f"<p>{escape(sentence)}</p>" for sentence in document.sentences]
    if document.rows:
        head = "".join(f"<th{_aligned(c)}{_titled(c)}>{escape(c.heading)}</th>" for c in columns)
        body = "".join(
            f"<tr{_coloured(document.style(row))}>"
            + "".join(f"<td{_aligned(c)}>{escape(c.show(c.get(row)))}</td>" for c in columns)
            + "</tr>"
            for row in document.rows
        )
        parts.append(f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")
    if document.notes:
        parts.append(f"<ul>{''.join(f'<li>{escape(note)}</li>' for note in document.notes)}</ul>")
    parts += [f"<pre>{html.escape(format_diagnostic(error))}</pre>" for error in document.errors]
    return f"<div>{''.join(parts)}</div>"


def _titled(column: Column) -> str:
    """The meaning of a column, which a browser shows where the pointer rests on its header."""
    known = COLUMNS.get(column.key)
    return f' title="{escape(known.text)}"' if known else ""


def escape(text: str) -> str:
    """`text` as it may stand anywhere in the page, without control characters."""
    return html.escape(printable(text, 4000))


def _asset(name: str) -> str:
    return resources.files("bpcli.render.page").joinpath(name).read_text(encoding="utf-8")


def _section(section: Section, number: int, counter: Iterator[int]) -> str:
    document = section.document
    kinds: dict[str, list[Group]] = {}
    for group in section.groups:
        kinds.setdefault(group.kind, []).append(group)
    parts = [
        f'<section id="run{number}" aria-labelledby="h{number}"><h2 id="h{number}">{escape(section.name)}</h2>',
        *(f'<p class="lead">{escape(s)}</p>' for s in document.sentences[:1]),
        _list("said", document.sentences[1:]),
        *(f'<pre class="error">{html.escape(format_diagnostic(d))}</pre>' for d in document.errors),
        *(_alternatives(groups, counter) for groups in kinds.values()),
        _table(section, number) if document.rows else "",
        _list("notes", document.notes),
        _context(document.context),
        "</section>",
    ]
    return "".join(parts)


def _list(name: str, texts: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(text)}</li>" for text in texts)
    return f'<ul class="{name}">{items}</ul>' if items else ""


def _alternatives(groups: Sequence[Group], counter: Iterator[int]) -> str:
    """Groups of figures of which a menu shows one at a time."""
    options = "".join(f'<option value="{i}">{escape(g.name)}</option>' for i, g in enumerate(groups))
    menu = f'<label class="choice">Shown: <select data-choose>{options}</select></label>' if len(groups) > 1 else ""
    parts = []
    for i, group in enumerate(groups):
        drawn = "".join(
            f"<figure><h3>{escape(figure.title)}</h3>{svg(figure, next(counter))}"
            f"<figcaption>{escape(figure.caption)}</figcaption></figure>"
            for figure in group.figures
        )
        parts.append(f'<div class="figures" data-choice="{i}"{" hidden" if i else ""}>{drawn}</div>')
    return f'<div class="group">{menu}{"".join(parts)}</div>'


def _table(section: Section, number: int) -> str:
    document, hidden = section.document, _hidden(section)
    columns = sorted(document.columns, key=lambda c: c.key not in section.show)
    head = "".join(
        f'<th scope="col" aria-sort="none"{_classes(c, hidden)}{_titled(c)}>'
        f'<button type="button">{escape(c.heading)}</button></th>'
        for c in columns
    )
    body = "".join(
        f"<tr{_marked(document.style(row))}>{''.join(_cell(c, row, hidden) for c in columns)}</tr>"
        for row in document.rows
    )
    more = any(c.key not in section.show for c in columns)
    toggle = '<label><input type="checkbox" data-more> all columns</label>' if more else ""
    count = len(document.rows)
    return (
        f'<div class="tools" data-for="t{number}"><label>Filter <input type="search" data-filter '
        f'placeholder="words in a row"></label>{_menus(document, columns)}{toggle}'
        f'<output role="status" aria-live="polite">{count} row{"s" if count != 1 else ""}</output></div>'
        f'<div class="wide" tabindex="0" role="region" aria-label="{escape(document.title)}: table">'
        f'<table id="t{number}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _menus(document: Document, columns: Sequence[Column]) -> str:
    """A menu for each column of few words."""
    menus = ""
    for place, column in enumerate(columns):
        words = {column.show(column.get(row)) for row in document.rows} - {""}
        if not column.right and 1 < len(words) <= MENU_AT_MOST and not column.wide:
            options = '<option value="">all</option>' + "".join(f"<option>{escape(w)}</option>" for w in sorted(words))
            menus += f'<label>{escape(column.heading)} <select data-column="{place}">{options}</select></label>'
    return menus


def _hidden(section: Section) -> Mapping[str, str]:
    """By key of a column, the class that hides it at first: `more` everywhere, `less` on a phone."""
    document, rows = section.document, section.document.rows
    kept = PHONE if any(c.key == "verdict" for c in document.columns) else PHONE_WITHOUT_VERDICT
    labels = [c for c in document.columns if c.label and c.key in section.show]
    varied = {c.key for c in labels if len({repr(c.get(r)) for r in rows}) > 1} or {c.key for c in labels[:1]}
    return {
        c.key: "more" if c.key not in section.show else "less" if c.key not in {*kept, *varied} else ""
        for c in document.columns
    }


def _classes(column: Column, hidden: Mapping[str, str], shown: str = "") -> str:
    long = not column.right and len(shown) > LINE_AT_MOST
    names = ["n" if column.right else "", hidden[column.key], "long" if long else ""]
    return f' class="{" ".join(filter(None, names))}"' if any(names) else ""


def _cell(column: Column, row: Mapping[str, Any], hidden: Mapping[str, str]) -> str:
    value = column.get(row)
    shown = escape(column.show(value))
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else None
    if isinstance(value, Mapping) and isinstance(value.get("median"), int | float):
        number = value["median"]
    sort = "" if number is None or (math.isfinite(number) and str(number) == shown) else f' data-v="{_plain(number)}"'
    return f"<td{_classes(column, hidden, shown)}{sort}>{shown}</td>"


def _plain(number: float) -> str:
    """A number as JavaScript's Number() reads it."""
    if math.isnan(number):
        return "NaN"
    return repr(number) if math.isfinite(number) else f"{'-' if number < 0 else ''}Infinity"


def _marked(style: str) -> str:
    """The class of a row that a terminal shows in red or yellow."""
    return ' class="bad"' if "red" in style else ' class="unsure"' if "yellow" in style else ""


def _context(context: Mapping[str, Any]) -> str:
    """The machine, versions and settings, folded."""
    pairs = list(_flat(context))
    if not pairs:
        return ""
    rows = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in pairs)
    return f"<details><summary>Machine, versions, settings</summary><dl>{rows}</dl></details>"


def _flat(context: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    for key, value in context.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{key} ")
        elif value not in (None, "", []):
            text = f"{value:.6g}" if isinstance(value, float) else value
            yield f"{before}{key}".replace("_", " "), ", ".join(map(str, text)) if isinstance(text, list) else str(text)


def _aligned(column: Column) -> str:
    return f' style="text-align: {"right" if column.right else "left"}"'


def _coloured(style: str) -> str:
    """The colour of a row in a fragment: that of a terminal, but green rows are in the colour of the text."""
    return next((f' style="color: {code}"' for name, code in _COLOURS.items() if name in style), "")
