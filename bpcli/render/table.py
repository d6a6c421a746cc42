"""Tables for people: columns under headings, with sentences above, notes and then refusals below.

A table too wide for the terminal is cut between columns, and every part repeats the labels. Numbers are folded last.
Text is wrapped to the terminal. Without one every row, sentence and note is a line, for programs such as grep.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rich.box import Box
from rich.cells import cell_len
from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text

from bpcli.errors import format_diagnostic, printable
from bpcli.render import Column, Document, Look

_BOX = Box("    \n    \n -  \n    \n    \n    \n    \n    \n", ascii=True)
"""A line of dashes under the headings and nothing else; ASCII, which any terminal and any log can show."""
_GAP = 3
"""Characters between two columns."""
_REMARK = 20
"""Least width of a column of remarks, which wrap."""
_PROSE = 110
"""Width of a legend at most."""
_LABEL = 8
"""Least width of a label where labels would leave no room for a number."""


def render_table(document: Document, look: Look) -> str:
    """The main columns, or all of them when `look.verbose`."""
    blocks = [_lines(document.sentences, look.width)]
    if document.rows:
        blocks += [_columns(document, look), _lines([document.legend], min(look.width or _PROSE, _PROSE))]
    blocks.append(_lines(document.notes, look.width))
    blocks += [format_diagnostic(d) for d in document.errors]
    text = "\n\n".join(b for b in blocks if b)
    return text + "\n" if text else ""


def _lines(texts: Sequence[str], width: int | None) -> str:
    """The texts, wrapped to `width`; lines that begin with a space, such as commands to copy, stay as they are."""
    shown = [printable(text, 2000) for text in texts]
    if width is None:
        return "\n".join(shown)
    wrapper = textwrap.TextWrapper(width, break_long_words=False, break_on_hyphens=False)
    return "\n".join(text if text.startswith(" ") else wrapper.fill(text) for text in shown)


def _columns(document: Document, look: Look) -> str:
    shown = [_shown(c, document) for c in document.columns if look.verbose or not c.wide]
    parts = [shown] if look.width is None else _parts(shown, look.width)
    styles = [document.style(row) if look.color else "" for row in document.rows]
    return "\n\n".join(_drawn(part, styles, look) for part in parts)


@dataclass(frozen=True, eq=False)
class _Shown:
    """A column's cells as text, with its natural and its least width in characters."""

    column: Column
    cells: Sequence[str]
    natural: int
    least: int


def _shown(column: Column, document: Document) -> _Shown:
    cells = [printable(column.show(column.get(row)), 500) for row in document.rows]
    widest = max(map(cell_len, cells), default=0)
    least = widest if column.right or column.label else min(widest, _REMARK)
    heading = max(map(cell_len, column.heading.split()), default=0)
    return _Shown(column, cells, max(widest, cell_len(column.heading), 1), max(least, heading, 1))


def _parts(shown: Sequence[_Shown], width: int) -> list[list[_Shown]]:
    """The columns in as few tables as fit, each with the labels; empty columns are dropped first."""
    if _room([s.natural for s in shown]) > width:
        shown = [s for s in shown if any(s.cells)]
    named = [s for s in shown if s.column.label] or list(shown[:1])
    most = max((s.least for s in shown if s.column.right and s not in named), default=0)
    while (excess := _room([*(s.least for s in named), most]) - width) > 0:
        widest = max(range(len(named)), key=lambda i: named[i].least)
        if named[widest].least <= _LABEL:
            break
        narrower = replace(named[widest], least=max(_LABEL, named[widest].least - excess))
        shown = [narrower if s is named[widest] else s for s in shown]
        named[widest] = narrower
    parts: list[list[_Shown]] = [[]]
    for one in (s for s in shown if s not in named):
        if parts[-1] and _room([s.least for s in [*named, *parts[-1], one]]) > width:
            parts.append([])
        parts[-1].append(one)
    return [[s for s in shown if s in named or s in part] for part in parts]


def _room(widths: Sequence[int]) -> int:
    return sum(widths) + _GAP * (len(widths) - 1)


def _narrowed(widths: Sequence[int], least: Sequence[int], room: int) -> list[int]:
    """The widths with the widest reduced, down to `least`, until all fit or none can be reduced."""
    found = list(widths)
    while _room(found) > room and found != list(least):
        found[max((w, i) for i, w in enumerate(found) if w > least[i])[1]] -= 1
    return found


def _drawn(shown: Sequence[_Shown], styles: Sequence[str], look: Look) -> str:
    widths = [s.natural for s in shown]
    if look.width is not None:
        widths = _narrowed(widths, [s.least for s in shown], look.width)
        # Where even that is too wide, remarks fold, then labels, then numbers; no character is lost.
        order = [2 if s.column.right else 1 if s.column.label else 0 for s in shown]
        for turn in range(3):
            least = [1 if place <= turn else w for place, w in zip(order, widths, strict=True)]
            widths = _narrowed(widths, least, look.width)
    table = Table(box=_BOX, show_edge=False, pad_edge=False, header_style="bold" if look.color else "")
    for one, width in zip(shown, widths, strict=True):
        justify: JustifyMethod = "right" if one.column.right else "left"
        table.add_column(Text(one.column.heading), justify=justify, width=width, overflow="fold")
    for style, *cells in zip(styles, *(s.cells for s in shown), strict=True):
        table.add_row(*map(Text, cells), style=style)
    needed = _room(widths)
    console = _console(look, needed if look.width is None else min(needed, look.width))
    console.print(table)
    drawn = console.file
    assert isinstance(drawn, io.StringIO)
    return "\n".join(line.rstrip() for line in drawn.getvalue().splitlines())


def _console(look: Look, width: int) -> Console:
    """A console that writes to a string. Rich honours `width` only when it is given a height too."""
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
