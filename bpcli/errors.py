"""Refusals of the user's input: diagnostics with a place and a remedy, and the one exception that carries them.

A `Collector` gathers diagnostics, so that a user sees all that can be found wrong and not only the first.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import NoReturn

USAGE = 2
UNADVISED = "run it again with this version of bp"
"""Help for a refusal that an older version of bp saved without any."""


@dataclass(frozen=True)
class Place:
    """A token in a text file; line and column count from 1, column and width are in characters, `quote` is the line."""

    file: str
    line: int
    column: int
    quote: str = ""
    width: int = 1


@dataclass(frozen=True)
class Diagnostic:
    """One refusal: a short code in kebab case (`unknown-name`), a sentence without a full stop, and a remedy.

    `help`, the remedy, is never empty.
    """

    code: str
    what: str
    place: Place | None = None
    help: str = field(kw_only=True)

    def about(self, subject: str) -> Diagnostic:
        """The same with its subject, one of several specs, named in its sentence where no place names it."""
        return self if self.place else replace(self, what=f"{subject}: {self.what}")


class BpError(Exception):
    """One or more diagnostics and the exit code that the process ends with."""

    def __init__(self, diagnostics: Iterable[Diagnostic], exit_code: int = USAGE) -> None:
        self.diagnostics = tuple(diagnostics)
        self.exit_code = exit_code
        super().__init__("\n\n".join(format_diagnostic(d) for d in self.diagnostics))


def fail(code: str, what: str, place: Place | None = None, *, help: str) -> NoReturn:
    """Raise a `BpError` with one diagnostic."""
    raise BpError([Diagnostic(code, what, place, help=help)])


@dataclass
class Collector:
    """A list of diagnostics that `finish` raises together."""

    diagnostics: list[Diagnostic] = field(default_factory=list)

    def add(self, code: str, what: str, place: Place | None = None, *, help: str) -> None:
        """Note a refusal, once, without raising it."""
        diagnostic = Diagnostic(code, what, place, help=help)
        if diagnostic not in self.diagnostics:
            self.diagnostics.append(diagnostic)

    @contextmanager
    def gather(self) -> Iterator[None]:
        """Note the refusals of a `BpError` that ends the block, instead of raising it."""
        try:
            yield
        except BpError as error:
            self.diagnostics.extend(error.diagnostics)

    def finish(self) -> None:
        """Raise `BpError` with the refusals in the order of their places, where there are any."""
        if self.diagnostics:
            raise BpError(sorted(self.diagnostics, key=_order))


def _order(diagnostic: Diagnostic) -> tuple[str, int, int]:
    place = diagnostic.place
    return (place.file, place.line, place.column) if place else ("", 0, 0)


def nearest(
    name: str, known: Iterable[str], none: str = "there is none that could be named here", most: int = 20
) -> str:
    """Help for an unknown name: the nearest known one if any is near, and the first `most`; `none` where none is."""
    names = sorted(set(known))
    if not names:
        return none
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if not close:
        close = [k for k in names if k.casefold() == name.casefold()]
    hint = f'did you mean "{printable(close[0])}"? ' if close else ""
    shown = ", ".join(printable(k) for k in names[:most]) + (", …" if len(names) > most else "")
    return f"{hint}known: {shown}"


def printable(text: str, limit: int = 120) -> str:
    """`text` safe to print on a terminal: control characters escaped, cut to `limit` characters."""
    clean = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
    return clean if len(clean) <= limit else clean[: limit - 1] + "…"


def format_diagnostic(diagnostic: Diagnostic) -> str:
    """The text of one refusal: `error[CODE]: what`, the place, the quoted line with a caret, the help."""
    lines = [f"error[{diagnostic.code}]: {printable(diagnostic.what, 2000)}"]
    place = diagnostic.place
    if place:
        lines.append(f" --> {printable(place.file, 500)}:{place.line}:{place.column}")
        if place.quote.strip():
            lines += _quote(place)
    lines.append(f"help: {printable(diagnostic.help, 2000)}")
    return "\n".join(lines)


def _quote(place: Place, span: int = 100) -> list[str]:
    start = max(0, place.column - 1 - span // 2) if len(place.quote) > span else 0
    excerpt = place.quote[start : start + span]
    head = "…" if start else ""
    tail = "…" if start + span < len(place.quote) else ""
    before = head + printable(place.quote[start : place.column - 1], 10_000)
    shown = head + printable(excerpt, 10_000) + tail
    width = max(1, min(place.width, len(place.quote) - place.column + 1, span))
    number = str(place.line)
    return [f"{number} | {shown}", f"{' ' * len(number)} | {' ' * len(before)}{'^' * width}"]
