"""What every output format renders.

Rows under columns, with sentences above and the context, errors and notes beside.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bpcli.errors import Diagnostic, Place

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Column:
    """A column.

    `key` names it in CSV; `heading` in tables; `get` takes the value from a row; `show` formats it for people. `wide`
    columns are left out of tables unless verbose; every format for programs has them. A `label` says what its row is
    about, and stands in every part of a table that is cut.
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
    """What a row says where rows are tests: the test `name` of `suite` with its verdict, as `bp check` has them.

    `message` is one line, `lines` are all there is to know of what does not pass. `badness` ranks: a z, larger is
    worse. `seconds` is what the row measured, `place` the line to look at; both None where there is none. `said` is the
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
        """The message and all lines, for whoever shows them together."""
        return [*([self.message] if self.message else []), *self.lines]

    def where(self) -> list[str]:
        """The place in a line, as refusals have it; no line where there is none."""
        return [f" --> {self.place.file}:{self.place.line}:{self.place.column}"] if self.place else []


@dataclass(frozen=True)
class Document:
    """One command's result. `rows_key` is the rows' name in JSON ("findings", "cells"); `rows` are JSON-ready mappings.

    `sentences` stand above a table, `notes` below it; `summary` is a mapping for programs. `style` takes a row to a
    rich style for its line ("" for none), `case` to what it says as a test; without it every row is one that passes.
    """

    title: str
    rows_key: str
    columns: Sequence[Column]
    rows: Sequence[Mapping[str, Any]]
    context: Mapping[str, Any] = field(default_factory=dict)
    summary: Mapping[str, Any] = field(default_factory=dict)
    sentences: Sequence[str] = ()
    notes: Sequence[str] = ()
    errors: Sequence[Diagnostic] = ()
    style: Callable[[Mapping[str, Any]], str] = lambda row: ""
    case: Callable[[Mapping[str, Any]], Case] | None = None

    def cases(self) -> list[Case]:
        """Every row as a test."""
        return [self.case(row) if self.case else self._plain_case(row) for row in self.rows]

    def _plain_case(self, row: Mapping[str, Any]) -> Case:
        return Case(self.title, self.columns[0].show(self.columns[0].get(row)))
