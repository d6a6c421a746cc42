"""Markdown: a pipe table, with sentences above, notes and refusals below."""

from __future__ import annotations

import re

from bpcli.errors import format_diagnostic, printable
from bpcli.render import Look
from bpcli.render.document import Document

SUMMARY = "a table for a page or a comment"
MACHINE = True

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~])")


def render(document: Document, look: Look) -> str:
    """Every row and column of the document."""
    blocks = [escape(s) for s in document.sentences]
    if document.rows:
        blocks.append(_table(document))
    if document.notes:
        blocks.append("\n".join(f"- {escape(n)}" for n in document.notes))
    blocks += [_fenced(format_diagnostic(d)) for d in document.errors]
    return "\n\n".join(blocks) + "\n" if blocks else ""


def escape(text: str) -> str:
    """`text` on one line, escaped so that Markdown reads it as plain text."""
    return _SPECIAL.sub(r"\\\1", printable(text, 2000))


def _table(document: Document) -> str:
    lines = [[c.heading for c in document.columns]]
    lines.append(["---:" if c.right else "---" for c in document.columns])
    lines += [[escape(c.show(c.get(row))) for c in document.columns] for row in document.rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _fenced(text: str) -> str:
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text}\n{fence}"
