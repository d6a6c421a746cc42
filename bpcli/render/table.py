"""Tables for people: columns under headings, the sentences above, notes below, refusals last."""

from __future__ import annotations

import io

from rich.box import Box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bpcli.errors import format_diagnostic, printable
from bpcli.render import Look
from bpcli.render.document import Document

SUMMARY = "columns for people, in colour on a terminal"
MACHINE = False

# A line of dashes under the headings and nothing else; ASCII, so that any terminal and any log shows it.
_BOX = Box("    \n    \n -  \n    \n    \n    \n    \n    \n", ascii=True)
_UNBOUNDED = 1_000_000


def render(document: Document, look: Look) -> str:
    """The main columns, or all of them when `look.verbose`."""
    blocks = ["\n".join(printable(s, 2000) for s in document.sentences)]
    if document.rows:
        blocks.append(_columns(document, look))
    blocks.append("\n".join(printable(n, 2000) for n in document.notes))
    blocks += [format_diagnostic(d) for d in document.errors]
    text = "\n\n".join(b for b in blocks if b)
    return text + "\n" if text else ""


def _columns(document: Document, look: Look) -> str:
    columns = [c for c in document.columns if look.verbose or not c.wide]
    table = Table(box=_BOX, show_edge=False, pad_edge=False, header_style="bold" if look.color else "")
    for column in columns:
        table.add_column(Text(column.heading), justify="right" if column.right else "left", overflow="fold")
    for row in document.rows:
        style = document.style(row) if look.color else ""
        table.add_row(*(Text(printable(c.show(c.get(row)), 500)) for c in columns), style=style)
    needed = _console(look, _UNBOUNDED).measure(table).maximum
    console = _console(look, needed if look.width is None else min(needed, look.width))
    console.print(table)
    drawn = console.file
    assert isinstance(drawn, io.StringIO)
    return "\n".join(line.rstrip() for line in drawn.getvalue().splitlines())


def _console(look: Look, width: int) -> Console:
    """Rich takes `width` at its word only when it is given a height too."""
    return Console(
        file=io.StringIO(),
        width=max(width, 1),
        height=100,
        force_terminal=look.color,
        color_system="standard" if look.color else None,
        no_color=not look.color,
        highlight=False,
        markup=False,
        emoji=False,
        legacy_windows=False,
    )
