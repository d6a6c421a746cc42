"""`bp help`: short pages that ship with bp, and the help of commands."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from bpcli.commands import COMMANDS
from bpcli.commands.shared_options import one_of

PAGES = Path(__file__).resolve().parents[1] / "help"


def topics() -> dict[str, str]:
    """The title of each page, by its topic."""
    return {path.stem: _title(path) for path in sorted(PAGES.glob("*.md"))}


def _title(path: Path) -> str:
    return path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")


@click.command()
@click.argument("topic", required=False, callback=one_of(lambda: ["bp", *topics(), *COMMANDS]))
@click.pass_context
def help(context: click.Context, topic: str | None) -> int:
    """Show the page on TOPIC, or the options of a command; without TOPIC, list both."""
    group = context.parent
    assert group is not None and isinstance(group.command, click.Group)
    if topic in (None, "bp"):
        click.echo(group.get_help() + "\n")
        formatter = group.make_formatter()
        with formatter.section("Topics of bp help"):
            formatter.write_dl(list(topics().items()))
        click.echo(formatter.getvalue(), nl=False)
    elif topic in COMMANDS:
        command = group.command.get_command(group, topic)
        assert command is not None
        click.echo(command.get_help(click.Context(command, group, topic)))
    else:
        _show((PAGES / f"{topic}.md").read_text(encoding="utf-8"))
    return 0


def _show(text: str) -> None:
    """Print Markdown, laid out on a terminal, as it is elsewhere."""
    if not sys.stdout.isatty():
        click.echo(text, nl=False)
        return
    from rich.console import Console
    from rich.markdown import Markdown

    Console(width=min(Console().width, 100)).print(Markdown(text))
