"""Output formats: a `Document` as text."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path

from bpcli.render.document import Document


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
    "csv": Format("a line of column names, then a row a line", "data"),
    "github": Format("annotations for GitHub Actions, the worst ten first", "ci"),
    "json": Format("one object with context, the rows (findings, cells, …), errors and summary", "data"),
    "jsonl": Format('an object a line: the rows, then {"error": …} for each refusal', "data"),
    "junit": Format("JUnit XML, a test a row, for test reports", "ci"),
    "markdown": Format("a table for a page or a comment", "ci"),
    "table": Format("columns for people, in colour on a terminal", "table", machine=False),
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
