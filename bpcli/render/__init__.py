"""Output formats, one module each, which turns a `Document` into text."""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

from bpcli.errors import fail, nearest
from bpcli.render.document import Document


@dataclass(frozen=True)
class Look:
    """The look of a table: all columns (`verbose`) or the main ones, `width` in characters at most (None: any)."""

    verbose: bool = False
    width: int | None = None
    color: bool = False


PLAIN = Look()


class Renderer(Protocol):
    """A module of this package: a line about the format, and whether programs are meant to read it."""

    SUMMARY: str
    MACHINE: bool

    def render(self, document: Document, look: Look) -> str:
        """The document as text that ends in a newline, or is empty."""


def known_formats() -> tuple[str, ...]:
    """The names of all formats, sorted; they are the names of the files."""
    return tuple(sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.ispkg and m.name != "document"))


def renderer(name: str) -> Renderer:
    """The renderer called `name`; raises BpError with the nearest known one."""
    if name not in known_formats():
        fail("usage", f'unknown format "{name}"', help=nearest(name, known_formats()))
    return cast("Renderer", importlib.import_module(f"{__name__}.{name}"))


def render(document: Document, name: str, look: Look = PLAIN) -> str:
    """`document` in the format called `name`."""
    return renderer(name).render(document, look)


def write(document: Document, name: str, path: str | Path) -> None:
    """Write every row and column of `document` to `path`, whole or not at all; raises BpError where that fails."""
    from bpcli.problem.array_writer import replace_file

    text = render(document, name, Look(verbose=True)).encode("utf-8", errors="backslashreplace")
    replace_file(path, lambda stream: stream.write(text))
