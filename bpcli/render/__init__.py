"""The document that commands produce, rows under columns with sentences and errors, and the formats that render it."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bpcli.errors import Diagnostic, Place

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Column:
    """A column: its `key` in CSV and `heading` in tables, `get` takes its value from a row, `show` formats it.

    Tables leave out `wide` columns unless verbose; formats for programs have them all. A `label` names the subject of
    its row, and is repeated in every part of a table that is cut. `right` aligns numbers.
    """

    key: str
    heading: str
    get: Callable[[Mapping[str, Any]], Any]
    show: Callable[[Any], str]
    right: bool = True
    wide: bool = False
    label: bool = False


@dataclass(frozen=True)
class Case:
    """A row as a test: `name` of `suite`, with a verdict as of `bp check`.

    Of what does not pass, `message` is one line and `lines` are the details. `badness` ranks, a z: larger is worse.
    `seconds` is the time that the row measured and `place` the line to look at, None where there is none. `said` is the
    verdict in the row's own word, where it has one.
    """

    suite: str
    name: str
    verdict: str = "pass"
    message: str = ""
    lines: Sequence[str] = ()
    badness: float = 0.0
    seconds: float | None = None
    place: Place | None = None
    said: str = ""

    def text(self) -> list[str]:
        """The message and all lines."""
        return [*([self.message] if self.message else []), *self.lines]

    def where(self) -> list[str]:
        """The place as a line, in the form of refusals; no line where there is none."""
        return [f" --> {self.place.file}:{self.place.line}:{self.place.column}"] if self.place else []


@dataclass(frozen=True)
class Document:
    """The result of a command. `rows_key` names the rows in JSON ("findings", "cells"); `rows` are JSON-ready mappings.

    `sentences` stand above a table, `legend` and `notes` below it; `summary` is for programs. `style` takes a row to
    the rich style of its line, "" for none, and `case` to a test; without `case` every row is a test that passes.
    """

    title: str
    rows_key: str
    columns: Sequence[Column]
    rows: Sequence[Mapping[str, Any]]
    context: Mapping[str, Any] = field(default_factory=dict)
    summary: Mapping[str, Any] = field(default_factory=dict)
    sentences: Sequence[str] = ()
    legend: str = ""
    notes: Sequence[str] = ()
    errors: Sequence[Diagnostic] = ()
    style: Callable[[Mapping[str, Any]], str] = lambda row: ""
    case: Callable[[Mapping[str, Any]], Case] | None = None

    def cases(self) -> list[Case]:
        """Every row as a test."""
        case = self.case or self._plain_case
        return [case(row) for row in self.rows]

    def _plain_case(self, row: Mapping[str, Any]) -> Case:
        return Case(self.title, self.columns[0].show(self.columns[0].get(row)))


def words(value: Any) -> str:
    """A value as text, "" for None; floats with six digits."""
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def digits(count: int) -> Callable[[float | None], str]:
    """A formatter of numbers to `count` significant digits, "" for None."""
    return lambda value: "" if value is None else f"{value:.{count}g}"


def seconds(value: float | None) -> str:
    """Seconds to three digits in s, ms, us or ns, "" for None."""
    if value is None:
        return ""
    units = (("s", 1.0), ("ms", 1e-3), ("us", 1e-6), ("ns", 1e-9))
    # From 0.9995 on, three digits of the next smaller unit would be 1e+03.
    unit, size = next((u for u in units if value >= 0.9995 * u[1]), units[-1])
    return f"{value / size:.3g} {unit}"


def dims(shape: Sequence[int] | None) -> str:
    """A shape as `3x4`, or `scalar`; "" for None."""
    return "" if shape is None else "x".join(map(str, shape)) or "scalar"


@dataclass(frozen=True)
class Look:
    """The look of a table: all columns (`verbose`) or the main ones, `width` in characters at most (None: any)."""

    verbose: bool = False
    width: int | None = None
    color: bool = False


PLAIN = Look()


@dataclass(frozen=True)
class Format:
    """An output format: a line about it, and the module of this package whose function `render_<name>` writes it.

    That takes a Document and a Look, and returns text that ends in a newline or is empty. `machine` formats are meant
    for programs.
    """

    summary: str
    module: str
    machine: bool = True


FORMATS = {
    "csv": Format("a line of column names, then one line per row", "data"),
    "github": Format("annotations for GitHub Actions, the worst ten first", "ci"),
    "json": Format("one object with context, the rows (findings, cells, …), errors and summary", "data"),
    "jsonl": Format('one object per line: the rows, then {"error": …} for each error', "data"),
    "junit": Format("JUnit XML, one test per row, for test reports", "ci"),
    "markdown": Format("a table for a page or a comment", "ci"),
    "table": Format("columns for reading, in colour on a terminal", "table", machine=False),
}


def render(document: Document, name: str, look: Look = PLAIN) -> str:
    """`document` in the format called `name`."""
    module = importlib.import_module(f"{__name__}.{FORMATS[name].module}")
    text: str = getattr(module, f"render_{name}")(document, look)
    return text


def write(document: Document, name: str, path: str | Path) -> None:
    """Write every row and column of `document` to `path`, whole or not at all; raises BpError where that fails."""
    from bpcli.problem.array_files import replace_file

    text = render(document, name, Look(verbose=True)).encode("utf-8", errors="backslashreplace")
    replace_file(path, lambda stream: stream.write(text))
