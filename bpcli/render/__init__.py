"""Output formats, one module each: `SUMMARY` says what it is, `MACHINE` whether programs read it."""

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
    """How a table looks: all columns or the main ones, how wide at most (None: what it needs), in colour or not."""

    verbose: bool = False
    width: int | None = None
    color: bool = False


PLAIN = Look()
_NOT_FORMATS = frozenset({"document", "frame"})


class Renderer(Protocol):
    """A module of this package."""

    SUMMARY: str
    MACHINE: bool

    def render(self, document: Document, look: Look) -> str:
        """The document as text that ends in a newline, or is empty."""


def known_formats() -> tuple[str, ...]:
    """The names of all formats, sorted; read off the file names."""
    return tuple(sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.ispkg and m.name not in _NOT_FORMATS))


def renderer(name: str) -> Renderer:
    """The renderer called `name`; raises BpError with the nearest known one."""
    if name not in known_formats():
        fail("usage", f'unknown format "{name}"', help=nearest(name, known_formats()))
    return cast("Renderer", importlib.import_module(f"{__name__}.{name}"))


def render(document: Document, name: str, look: Look = PLAIN) -> str:
    """`document` in the format called `name`."""
    return renderer(name).render(document, look)


def write(document: Document, name: str, path: str | Path) -> None:
    """Write every row and column of `document` to `path`, whole or not at all; BpError where that can't be."""
    from bpcli.problem.array_writer import replace_file

    text = render(document, name, Look(verbose=True)).encode("utf-8", errors="backslashreplace")
    replace_file(path, lambda stream: stream.write(text))
