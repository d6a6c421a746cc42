"""The page itself: sections of sentences, figures and tables in one HTML file; every string is escaped."""

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
from bpcli.render.document import Column, Document
from bpcli.render.page.figure import Figure, svg

# A column of words is offered as a menu when it has so few of them.
MENU_AT_MOST = 12
# Longer words than these may break.
LINE_AT_MOST = 24


@dataclass(frozen=True)
class Group:
    """Figures that belong together; of several groups of one `kind`, a menu shows one at a time, the first at first."""

    name: str
    kind: str
    figures: Sequence[Figure]


@dataclass(frozen=True)
class Section:
    """One run: its document, the keys of the columns to `show` at first, and its figures."""

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


def escape(text: str) -> str:
    """`text` as it may stand anywhere in the page, without control characters."""
    return html.escape(printable(text, 4000))


def _asset(name: str) -> str:
    return resources.files("bpcli.render.page").joinpath(name).read_text(encoding="utf-8")


def _section(section: Section, number: int, counter: Iterator[int]) -> str:
    document = section.document
    parts = [f'<section id="run{number}" aria-labelledby="h{number}"><h2 id="h{number}">{escape(section.name)}</h2>']
    parts += [_sentences(document.sentences)]
    parts += [f'<pre class="error">{html.escape(format_diagnostic(d))}</pre>' for d in document.errors]
    parts += [_figures(section.groups, counter)]
    parts += [_table(section, number) if document.rows else ""]
    if document.notes:
        parts.append(f'<ul class="notes">{"".join(f"<li>{escape(n)}</li>" for n in document.notes)}</ul>')
    parts += [_context(document.context), "</section>"]
    return "".join(parts)


def _sentences(sentences: Sequence[str]) -> str:
    if not sentences:
        return ""
    rest = "".join(f"<li>{escape(s)}</li>" for s in sentences[1:])
    return f'<p class="lead">{escape(sentences[0])}</p>' + (f'<ul class="said">{rest}</ul>' if rest else "")


def _figures(groups: Sequence[Group], counter: Iterator[int]) -> str:
    """Groups of figures; those of one kind are alternatives."""
    kinds: dict[str, list[Group]] = {}
    for group in groups:
        kinds.setdefault(group.kind, []).append(group)
    return "".join(_alternatives(g, counter) for g in kinds.values())


def _alternatives(groups: Sequence[Group], counter: Iterator[int]) -> str:
    """One group shown at a time."""
    options = "".join(f'<option value="{i}">{escape(g.name)}</option>' for i, g in enumerate(groups))
    menu = f'<label class="choice">Shown: <select data-choose>{options}</select></label>' if len(groups) > 1 else ""
    parts = []
    for i, group in enumerate(groups):
        drawn = "".join(_figure(f, next(counter)) for f in group.figures)
        parts.append(f'<div class="figures" data-choice="{i}"{" hidden" if i else ""}>{drawn}</div>')
    return f'<div class="group">{menu}{"".join(parts)}</div>'


def _figure(figure: Figure, number: int) -> str:
    return (
        f"<figure><h3>{escape(figure.title)}</h3>{svg(figure, number)}"
        f"<figcaption>{escape(figure.caption)}</figcaption></figure>"
    )


def _table(section: Section, number: int) -> str:
    document = section.document
    columns = sorted(document.columns, key=lambda c: c.key not in section.show)
    head = "".join(_heading(c, section) for c in columns)
    body = "".join(
        f"<tr{_marked(document.style(row))}>{''.join(_cell(c, row, section) for c in columns)}</tr>"
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
    menus = []
    for place, column in enumerate(columns):
        words = {column.show(column.get(row)) for row in document.rows} - {""}
        if not column.right and 1 < len(words) <= MENU_AT_MOST and not column.wide:
            options = "".join(f"<option>{escape(w)}</option>" for w in sorted(words))
            name = escape(column.heading)
            menus.append(
                f'<label>{name} <select data-column="{place}"><option value="">all</option>{options}</select></label>'
            )
    return "".join(menus)


def _classes(column: Column, section: Section, shown: str = "") -> str:
    long = not column.right and len(shown) > LINE_AT_MOST
    marks = {"n": column.right, "more": column.key not in section.show, "long": long}
    names = [name for name, holds in marks.items() if holds]
    return f' class="{" ".join(names)}"' if names else ""


def _heading(column: Column, section: Section) -> str:
    return (
        f'<th scope="col" aria-sort="none"{_classes(column, section)}>'
        f'<button type="button">{escape(column.heading)}</button></th>'
    )


def _cell(column: Column, row: Mapping[str, Any], section: Section) -> str:
    value = column.get(row)
    shown = escape(column.show(value))
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else None
    if isinstance(value, Mapping) and isinstance(value.get("median"), int | float):
        number = value["median"]
    sort = "" if number is None or (math.isfinite(number) and str(number) == shown) else f' data-v="{_plain(number)}"'
    return f"<td{_classes(column, section, shown)}{sort}>{shown}</td>"


def _plain(number: float) -> str:
    """As JavaScript's Number() reads it."""
    return (
        "NaN" if math.isnan(number) else f"{'-' if number < 0 else ''}Infinity" if math.isinf(number) else f"{number!r}"
    )


def _marked(style: str) -> str:
    """Rows that a terminal shows in red or yellow."""
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
