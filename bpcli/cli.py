"""The `bp` command, a click group that imports the module of a command only when it is called."""

from __future__ import annotations

import gc
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from bpcli import __version__
from bpcli.commands import COMMANDS, option_name

# Kernels run in parallel themselves, and BLAS threads would compete with them. BLAS reads this once, on import.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
# Absolute, so that processes in other folders find the compiled kernels.
if os.environ.get("NUMBA_CACHE_DIR"):
    os.environ["NUMBA_CACHE_DIR"] = os.path.abspath(os.path.expanduser(os.environ["NUMBA_CACHE_DIR"]))


class LazyGroup(click.Group):
    """A group of the commands in `COMMANDS`, with defaults from `BP_*` variables and `[tool.bp]`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the order of `COMMANDS`."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command; each of its options can be set by a variable `BP_<OPTION>`."""
        if cmd_name not in COMMANDS:
            return None
        command = getattr(importlib.import_module(COMMANDS[cmd_name].module), cmd_name)
        assert isinstance(command, click.Command)
        for parameter in command.params:
            if isinstance(parameter, click.Option) and parameter.envvar is None:
                parameter.envvar = f"BP_{option_name(parameter).upper()}"
        if ctx.resilient_parsing:
            from bpcli.commands.completion import attach

            attach(command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command to run, with defaults from the nearest `pyproject.toml`."""
        if args[0] not in COMMANDS and not args[0].startswith("-") and not ctx.resilient_parsing:
            from bpcli.errors import fail, nearest

            advice = nearest(args[0], COMMANDS)
            if args[0] == "version":
                advice = "`bp --version` prints the version"
            fail("usage", f'bp has no command "{args[0]}"', help=advice)
        name, command, rest = super().resolve_command(ctx, args)
        if command is not None and not ctx.resilient_parsing and not {"-h", "--help"} & set(rest):
            from bpcli.commands.settings import defaults

            ctx.default_map = {str(name): defaults(command)}
        return name, command, rest

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands and their help from `COMMANDS`, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in COMMANDS.items()])

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        """Make the context; this also prints help and version, to a pipe that may be closed."""
        try:
            return super().make_context(*args, **extra)
        except BrokenPipeError as error:
            raise click.exceptions.Exit(_gone()) from error

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; returns its exit code."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            return _gone()

    def main(  # type: ignore[override]
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = "bp",
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run and exit; without `standalone_mode`, return the exit code and propagate errors."""
        given = sys.argv[1:] if args is None else list(args)
        gc.set_threshold(100_000, 20, 20)  # imported objects stay alive; collecting them takes a tenth
        if os.environ.get("_BP_COMPLETE"):
            from bpcli.commands.completion import register

            register()
        if not standalone_mode:
            return super().main(given, prog_name, standalone_mode=False, **extra)
        silent = sys.stdout is None
        if silent or sys.stderr is None:
            from bpcli.commands.output import reopen

            reopen()
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):  # print characters that the encoding lacks as escapes
                stream.reconfigure(errors="backslashreplace")
        try:
            if silent:
                raise click.UsageError("stdout is closed, so the results would be lost")
            code = super().main(given, prog_name, standalone_mode=False, **extra)
            sys.stdout.flush()
        except Exception as error:
            from bpcli.commands.failures import report

            code = report(error, given)
        sys.exit(code if isinstance(code, int) else 0)


def _gone() -> int:
    """The exit code for a closed stdout; that of click, 1, would mean a wrong gradient."""
    from bpcli.commands.output import silence

    silence()
    return 0


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 success, 1 wrong gradient, 2 usage or spec error, 3 regression, "
    "4 inconclusive (with --strict), 5 nothing measured or compared, 130 interrupted.",
)
@click.version_option(__version__, prog_name="bp", message="%(prog)s %(version)s")
def main() -> None:
    """Check and benchmark gradients of networks that are written as equations."""
