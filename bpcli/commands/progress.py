"""The compiled kernels: how many threads they use, where they are kept, and who hears that they are being compiled.

What a long command is doing, on a terminal that somebody watches.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from bpcli.commands.output import lively
from bpcli.errors import printable

if TYPE_CHECKING:
    from bpcli.commands.common import Common


def use_threads(count: int) -> None:
    """Let kernels run on `count` threads; where none is imported yet, they find the number in the environment."""
    if "numba" not in sys.modules:
        os.environ["NUMBA_NUM_THREADS"] = str(count)
    if "bpcli.runtime.kernel_loader" in sys.modules:
        from bpcli.runtime import kernel_loader as library

        library.set_threads(count)


def cache_folder() -> Path:
    """Where compiled kernels are kept."""
    from bpcli.runtime.kernel_cache import cache_folder

    return cache_folder()


def compiled() -> int:
    """How many kernels the cache holds, counting each precision."""
    return len(list(cache_folder().glob("*.o")))


def announce(common: Common) -> None:
    """Have it said on stderr when kernels are compiled, which happens once on a machine and takes its time."""
    from bpcli.commands.output import note
    from bpcli.runtime import kernel_loader as library

    library.announce = lambda text: note(text, common)


def prepare(common: Common) -> None:
    """Announce, and compile what a check takes, two kernels at a time, where this machine has none of them yet."""
    from bpcli.runtime import kernel_loader as library

    announce(common)
    library.prepare(library.CHECKING)


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


@contextmanager
def remaining(weights: Sequence[float], labels: Sequence[str], common: Common) -> Iterator[Callable[[int], None]]:
    """A function to call with the number of a piece of work that is done; shows how much is left, and for how long.

    `weights` are the seconds that each piece was expected to take: those done tell how long the rest will.
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
