"""The compiled kernels: how many threads they use, where they are kept, and who hears that they are being compiled."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bpcli.commands.options import Common


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
