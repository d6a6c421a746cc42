"""What a long command is doing, on a terminal that somebody watches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from bpcli.commands.output import lively
from bpcli.errors import printable

if TYPE_CHECKING:
    from bpcli.commands.options import Common


@contextmanager
def progress(common: Common) -> Iterator[Callable[[str], None]]:
    """A function that shows a line on stderr in place of the one before; off a terminal or when quiet, nothing."""
    if common.quiet or not lively():
        yield lambda text: None
        return
    from rich.console import Console
    from rich.text import Text

    with Console(stderr=True).status("") as status:
        yield lambda text: status.update(Text(printable(text)))
