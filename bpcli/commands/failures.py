"""Exceptions that end a command, translated to refusals and exit codes."""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Sequence

import click

from bpcli.commands.output import silence, tell, wanted_format
from bpcli.errors import USAGE, BpError, Diagnostic, nearest
from bpcli.render import FORMATS, Document, render

INTERRUPTED = 130


def report(error: Exception, args: Sequence[str]) -> int:
    """Report the exception that ended the command called with `args`; returns the exit code.

    The text goes to stderr. Where the output format is one for programs, a document with the refusals goes to stdout.
    """
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        click.echo(error.format_message(), err=True)
        return USAGE
    if isinstance(error, BrokenPipeError):  # the flush at the very end
        silence()
        return 0
    known = translate(error)
    tell(known.diagnostics)
    try:
        _document(known, args)
        sys.stdout.flush()
    except Exception:  # stderr has the message; the document most likely failed for the same reason
        silence()
    return known.exit_code


def translate(error: Exception) -> BpError:
    """Any exception as a BpError; with `BP_TRACEBACK=1` the traceback of an unexpected one goes to stderr."""
    if isinstance(error, BpError):
        return error
    if isinstance(error, click.UsageError):
        return BpError([_usage(error)])
    if isinstance(error, click.Abort):
        return BpError(
            [Diagnostic("interrupted", "interrupted", help="run it again; --resume continues an interrupted bp bench")],
            INTERRUPTED,
        )
    if isinstance(error, click.ClickException):
        return BpError([Diagnostic("usage", _sentence(error.format_message()), help="`bp --help` lists the commands")])
    if isinstance(error, MemoryError):
        advice = "use smaller sizes, a smaller batch or a method that needs less memory; --max-memory refuses such runs"
        return BpError([Diagnostic("memory", "out of memory", help=advice)])
    if isinstance(error, OSError):
        advice = "check that the file or folder exists and is accessible, and that the disk is not full"
        return BpError([Diagnostic("system", _system(error), help=advice)])
    return BpError([_internal(error)])


def _system(error: OSError) -> str:
    what = error.strerror or str(error) or type(error).__name__
    return f"{error.filename}: {what}" if error.filename else what


def _internal(error: Exception) -> Diagnostic:
    if os.environ.get("BP_TRACEBACK") == "1":
        traceback.print_exception(error)
    where = "".join(f" ({f.name}, {f.filename}:{f.lineno})" for f in traceback.extract_tb(error.__traceback__)[-1:])
    what = f"{type(error).__name__}: {error}{where}"
    return Diagnostic("internal", what, help="this is a bug in bp, please report it; BP_TRACEBACK=1 shows where")


def _usage(error: click.UsageError) -> Diagnostic:
    """A usage error of click as a refusal."""
    path = error.ctx.command_path if error.ctx else "bp"
    seek = f"`{path} --help` lists its options and arguments"
    if isinstance(error, click.NoSuchOption):
        known = [o for p in error.ctx.command.get_params(error.ctx) for o in p.opts if o[0] == "-"] if error.ctx else []
        advice = nearest(error.option_name, known)
        if (name := error.option_name.lstrip("-")) in ("T", "batch", "n") and "--set" in known:
            advice = f"write --set {name}=5, for example"
        return Diagnostic("usage", f'{path} has no option "{error.option_name}"', help=advice)
    if isinstance(error, click.MissingParameter):
        return Diagnostic("usage", f"{path} needs {_names(error.param)}", help=seek)
    if isinstance(error, click.BadParameter):
        return _bad_value(error, seek)
    return Diagnostic("usage", _sentence(error.format_message()), help=seek)


def _bad_value(error: click.BadParameter, seek: str) -> Diagnostic:
    from bpcli.commands.settings import came_from, place_of

    source = came_from(error.ctx, error.param)
    what = f"{_names(error.param)}{f' ({source})' if source else ''}: {_sentence(error.message)}"
    return Diagnostic("usage", what, place_of(error.ctx, error.param), help=getattr(error, "hint", "") or seek)


def _names(parameter: click.Parameter | None) -> str:
    if parameter is None:
        return "a value"
    if isinstance(parameter, click.Argument):
        return parameter.metavar or str(parameter.name).upper()
    return "/".join(parameter.opts)


def _sentence(text: str) -> str:
    """A message of click without its capital letter and full stop."""
    text = text.strip().removesuffix(".").replace("is not a valid integer range", "is not an integer")
    text = re.sub(r"the range (\S+)<=x<=(\S+)$", r"the range \1 to \2", text)
    text = re.sub(r"the range x>=(\S+)$", r"the range from \1 up", text)
    return text[:1].lower() + text[1:]


def _document(error: BpError, args: Sequence[str]) -> None:
    """Print an empty document with the refusals, where the output format is one for programs."""
    from bpcli.commands import COMMANDS

    wanted = wanted_format(args)
    if not FORMATS[wanted].machine:
        return
    entry = next((COMMANDS[a] for a in args if a in COMMANDS), None)
    rows_key, summary = (entry.rows_key, entry.summary) if entry else ("rows", {})
    click.echo(render(Document("", rows_key, (), (), summary=summary, errors=error.diagnostics), wanted), nl=False)
