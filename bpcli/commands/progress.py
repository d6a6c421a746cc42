"""Progress of long commands, shown on a terminal: compilation, the current target, the time left."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from bpcli.commands.output import lively
from bpcli.errors import printable

if TYPE_CHECKING:
    from bpcli.commands.shared_options import Common


def announce(common: Common) -> None:
    """Note on stderr when kernels are compiled, which happens once per machine and takes half a minute."""
    from bpcli.commands.output import note
    from bpcli.runtime import kernel_loader

    kernel_loader.announce = lambda text: note(text, common)


def prepare(common: Common) -> None:
    """Announce compilation, and compile the kernels of a check that are not cached yet, two at a time."""
    from bpcli.runtime import kernel_loader

    announce(common)
    kernel_loader.prepare(kernel_loader.CHECKING)


@contextmanager
def progress(common: Common) -> Iterator[Callable[[str], None]]:
    """A function that replaces the status line on stderr; it does nothing when quiet or without a terminal."""
    if common.quiet or not lively():
        yield lambda text: None
        return
    from rich.console import Console
    from rich.text import Text

    with Console(stderr=True).status("") as status:
        yield lambda text: status.update(Text(printable(text)))


@contextmanager
def remaining(weights: Sequence[float], labels: Sequence[str], common: Common) -> Iterator[Callable[[int], None]]:
    """A function to call with the index of each finished cell; it shows the number of cells and the time left.

    `weights` are the predicted seconds of each cell; the time left is scaled by the speed of the cells so far.
    """
    start, done = time.monotonic(), set[int]()
    with progress(common) as say:

        def count(number: int) -> None:
            done.add(number)
            expected = sum(weights[i] for i in done)
            left = (time.monotonic() - start) / expected * (sum(weights) - expected)
            say(f"{len(done)} of {len(weights)} cells, {duration(left)} left; last: {labels[number]}")

        say(f"0 of {len(weights)} cells, about {duration(sum(weights))}")
        yield count


def duration(seconds: float) -> str:
    """`40 s`, `3 min 5 s`, `2 h 10 min`."""
    whole = round(seconds)
    if whole < 100:
        return f"{whole} s"
    if whole < 6000:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
