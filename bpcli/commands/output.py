"""What every result says about the machine and the call that it came from.

Where results go: one document on stdout in the format asked for, and the same rows in each `--output` file.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from bpcli.commands.streams import silence, tell
from bpcli.errors import USAGE, BpError, printable

if TYPE_CHECKING:
    from bpcli.commands.common import Common
    from bpcli.errors import Diagnostic
    from bpcli.render.document import Document


def describe(command: str, common: Common, **more: Any) -> Mapping[str, Any]:
    """Version, machine and settings; the same call on the same machine gives the same mapping."""
    from bpcli.api.provenance import describe as described

    options = {"threads": common.threads, "strict": common.strict}
    return described(command, **{**options, "set": dict(common.overrides), "wrt": list(common.wrt), **more})


def wanted_format(args: Sequence[str]) -> str:
    """The format that a command line asks for, read without parsing it: it may be the very thing that is wrong."""
    from bpcli.commands.settings import default_format
    from bpcli.render import known_formats

    found = os.environ.get("BP_FORMAT") or default_format()
    for here, after in zip(args, [*args[1:], ""], strict=True):
        if here == "--format" or here.startswith("--format="):
            found = here.partition("=")[2] or after
    return found if found in known_formats() else "table"


def emit(document: Document, common: Common, brief: Document | None = None, silent: bool = False) -> int:
    """Print `document` and write the `--output` files; its errors go to stderr too.

    `brief` is what a table on stdout shows in place of `document` unless verbose; no table is shown when `silent`.
    Returns the exit code: 0, or 2 where a file could not be written, which hides none of the results.
    """
    from bpcli.render import Look, render, renderer

    unwritten = _files(document, common)
    document = replace(document, errors=(*document.errors, *unwritten))
    if document.errors:
        tell(document.errors)
    shown = document
    if not renderer(common.format).MACHINE:
        shown = replace(document if brief is None or common.verbose else brief, errors=())
    text = render(shown, common.format, Look(common.verbose, _width(), _color()))
    if not (silent and shown is not document):
        _print(text)
    return USAGE if unwritten else 0


def _files(document: Document, common: Common) -> list[Diagnostic]:
    """Write the `--output` files; what went wrong."""
    from bpcli.render import write

    unwritten: list[Diagnostic] = []
    for name, path in common.outputs:
        try:
            write(document, name, path)
            note(f"wrote {path}", common)
        except BpError as error:
            unwritten += error.diagnostics
    return unwritten


def _print(text: str) -> None:
    try:
        click.echo(text, nl=False, color=True)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has seen enough; the verdict stands
        silence()


def note(text: str, common: Common) -> None:
    """A remark on stderr, unless quiet."""
    if not common.quiet:
        click.echo(printable(text, 2000), err=True)


def lively() -> bool:
    """Whether stderr is a terminal that somebody watches."""
    return sys.stderr.isatty() and "CI" not in os.environ and os.environ.get("TERM") != "dumb"


def _width() -> int | None:
    """Columns of the terminal; None off a terminal, where a table takes the width it needs."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def _color() -> bool:
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
