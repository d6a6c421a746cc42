"""A document as a fragment of HTML, for notebooks: sentences, the table, notes; no script, and no style but its own."""

from __future__ import annotations

import html

from bpcli.errors import format_diagnostic, printable
from bpcli.render.document import Column, Document

_COLOURS = {"red": "#c62828", "yellow": "#b26a00"}


def fragment(document: Document) -> str:
    """The main columns of every row, as a table in the terminal has them; every string is escaped."""
    columns = [c for c in document.columns if not c.wide]
    parts = [f"<p>{_escape(sentence)}</p>" for sentence in document.sentences]
    if document.rows:
        head = "".join(f"<th{_aligned(c)}>{_escape(c.heading)}</th>" for c in columns)
        body = "".join(
            f"<tr{_coloured(document.style(row))}>"
            + "".join(f"<td{_aligned(c)}>{_escape(c.show(c.get(row)))}</td>" for c in columns)
            + "</tr>"
            for row in document.rows
        )
        parts.append(f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")
    if document.notes:
        parts.append(f"<ul>{''.join(f'<li>{_escape(note)}</li>' for note in document.notes)}</ul>")
    parts += [f"<pre>{html.escape(format_diagnostic(error))}</pre>" for error in document.errors]
    return f"<div>{''.join(parts)}</div>"


def _escape(text: str) -> str:
    return html.escape(printable(text, 2000))


def _aligned(column: Column) -> str:
    return f' style="text-align: {"right" if column.right else "left"}"'


def _coloured(style: str) -> str:
    """A row in the colour that a terminal gives it; good news is in the colour of the text."""
    return next((f' style="color: {code}"' for name, code in _COLOURS.items() if name in style), "")
