"""The standard streams of a command: refusals told, closed ones opened, broken ones silenced."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence

import click

from bpcli.errors import Diagnostic, format_diagnostic


def tell(diagnostics: Sequence[Diagnostic]) -> None:
    """Write refusals to stderr, a blank line between them."""
    click.echo("\n\n".join(format_diagnostic(d) for d in diagnostics), err=True)


def reopen() -> None:
    """Open what is closed of stdout and stderr, on nothing: a file that is opened later would be taken for it."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, number)
            if nothing != number:
                os.close(nothing)
            setattr(sys, name, os.fdopen(number, "w", encoding="utf-8"))


def silence() -> None:
    """Point stdout at nothing, so that what is still buffered can't fail when Python exits."""
    try:
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, sys.stdout.fileno())
        os.close(nothing)
    except (OSError, ValueError):  # a stdout that is no file
        sys.stdout = io.StringIO()
