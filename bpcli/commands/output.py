"""Output of commands: results on stdout and in the `--output` files; notes, refusals and progress on stderr."""

from __future__ import annotations

import io
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from bpcli.errors import USAGE, BpError, Diagnostic, format_diagnostic, printable
from bpcli.render import FORMATS, Document, Look, render, write

if TYPE_CHECKING:
    from bpcli.commands.shared_options import Common


Say = Callable[[str | Callable[[], str]], None]
"""Takes a status, or a function that gives it whenever it is shown."""
QUIET_SECONDS = 30.0
"""Without a terminal, the status is written this often."""


def describe(command: str, common: Common, **more: Any) -> Mapping[str, Any]:
    """The context of a document: version, machine and settings, the same whenever the same call is repeated."""
    from bpcli.api.check_report import describe as described

    options = {"threads": common.threads, "strict": common.strict}
    return described(command, **{**options, "set": dict(common.overrides), "wrt": list(common.wrt), **more})


def wanted_format(args: Sequence[str]) -> str:
    """The output format that a command line asks for; the line may be invalid, and is searched rather than parsed."""
    from bpcli.commands.settings import default_format

    found = os.environ.get("BP_FORMAT") or default_format()
    for here, after in zip(args, [*args[1:], ""], strict=True):
        if here == "--format" or here.startswith("--format="):
            found = here.partition("=")[2] or after
    return found if found in FORMATS else "table"


def emit(document: Document, common: Common, brief: Document | None = None, silent: bool = False) -> int:
    """Print `document`, write it to the `--output` files, and its errors to stderr.

    A table shows `brief` in place of `document` unless verbose, and nothing when `silent`. Returns the exit code: 0, or
    2 where a file could not be written, in which case the results are still printed.
    """
    unwritten: list[Diagnostic] = []
    for name, path in common.outputs:
        try:
            write(document, name, path)
            common.note(f"wrote {path}")
        except BpError as error:
            unwritten += error.diagnostics
    document = replace(document, errors=(*document.errors, *unwritten))
    if document.errors:
        tell(document.errors)
    shown = document
    if not FORMATS[common.format].machine:
        shown = replace(document if brief is None or common.verbose else brief, errors=())
    text = render(shown, common.format, Look(common.verbose, _width(), _color()))
    if not (silent and shown is not document):
        _print(text)
    return USAGE if unwritten else 0


def _print(text: str) -> None:
    try:
        click.echo(text, nl=False, color=True)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has seen enough; the exit code stands
        silence()


def lively() -> bool:
    """Whether stderr is an interactive terminal."""
    return sys.stderr.isatty() and "CI" not in os.environ and os.environ.get("TERM") != "dumb"


def _width() -> int | None:
    """The width of the terminal; None where stdout is not one, so that tables are not folded."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def _color() -> bool:
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def tell(diagnostics: Sequence[Diagnostic]) -> None:
    """Write refusals to stderr, separated by blank lines."""
    click.echo("\n\n".join(format_diagnostic(d) for d in diagnostics), err=True)


def reopen() -> None:
    """Point closed standard streams at the null device: files opened later would get their descriptors."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, number)
            if nothing != number:
                os.close(nothing)
            setattr(sys, name, os.fdopen(number, "w", encoding="utf-8"))


def silence() -> None:
    """Point stdout at the null device, so that flushing its buffer at exit cannot fail."""
    try:
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, sys.stdout.fileno())
        os.close(nothing)
    except (OSError, ValueError):  # stdout has no descriptor
        sys.stdout = io.StringIO()


def announce(common: Common) -> None:
    """Note on stderr when kernels are compiled, which happens once per machine and takes half a minute."""
    from bpcli.runtime import kernel_loader

    kernel_loader.announce = common.note


def prepare(common: Common) -> None:
    """Announce compilation, and compile the kernels of a check that are not cached yet, two at a time."""
    from bpcli.runtime import kernel_loader

    announce(common)
    kernel_loader.prepare(kernel_loader.CHECKING)


@contextmanager
def progress(common: Common) -> Iterator[Say]:
    """A function that sets the status on stderr: the last line of a terminal, elsewhere a line every half minute.

    It does nothing when quiet.
    """
    if common.quiet:
        yield lambda text: None
        return
    if not lively():
        start = time.monotonic()
        with _repeated(QUIET_SECONDS, lambda text: common.note(f"{duration(time.monotonic() - start)}: {text}")) as say:
            yield say
        return
    from rich.console import Console
    from rich.text import Text

    with (
        Console(stderr=True).status("") as status,
        _repeated(1.0, lambda text: status.update(Text(printable(text)))) as say,
    ):

        def now(text: str | Callable[[], str]) -> None:
            say(text)
            status.update(Text(printable(text if isinstance(text, str) else text())))

        yield now


@contextmanager
def _repeated(pause: float, show: Callable[[str], None]) -> Iterator[Say]:
    """A function that sets a status, shown from a thread after every `pause` seconds."""
    latest: list[str | Callable[[], str]] = []
    over = threading.Event()

    def run() -> None:
        while not over.wait(pause):
            for text in latest[-1:]:
                show(text if isinstance(text, str) else text())

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield latest.append
    finally:
        over.set()
        thread.join()


@contextmanager
def remaining(weights: Sequence[float], labels: Sequence[str], common: Common) -> Iterator[Callable[[int], None]]:
    """A function to call with the index of each finished cell; it shows the number of cells and the time left.

    `weights` are the predicted seconds of each cell; the time left is scaled by the speed of the cells so far.
    """
    start, done = time.monotonic(), set[int]()
    with progress(common) as say:

        def tell(end: float, last: str) -> None:
            count = f"{len(done)} of {len(weights)} cells"
            say(lambda: f"{count}, about {duration(max(0.0, end - time.monotonic()))} left{last}")

        def finish(number: int) -> None:
            done.add(number)
            expected, now = sum(weights[i] for i in done), time.monotonic()
            tell(now + (now - start) / expected * (sum(weights) - expected), f"; last: {labels[number]}")

        tell(start + sum(weights), "")
        yield finish


def duration(seconds: float) -> str:
    """`40 s`, `3 min 5 s`, `2 h 10 min`."""
    whole = round(seconds)
    if whole < 100:
        return f"{whole} s"
    if whole < 6000:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
