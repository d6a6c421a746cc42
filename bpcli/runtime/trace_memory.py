"""Memory of traces, kept from one gradient to the next.

What is fresh from the system is made zero page by page as it is first written, which takes as long as many a pass. An
allocator keeps what is freed for the next array, but gives a large one back to the system at once. So the last of these
is kept here; and of small ones a few, as they were laid out, since laying them out takes as long as their kernels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

LEAST_KEPT, MOST_KEPT = 1 << 25, 1 << 28
"""Bytes that are kept: no fewer than glibc's allocator gives back, and no more than nobody will miss."""
LINES = 128
"""Bytes: arrays begin with two cache lines, which processors fetch together. A vector that lies across lines takes
twice as long, and lines that two threads write should not be neighbours."""

MOST_READY, READY = 1 << 22, 4
"""Bytes of each that is kept as it was laid out, and how many of these."""

_NONE = np.empty(0, np.uint8)
_kept: list[NDArray[np.uint8]] = []
_ready: dict[object, Any] = {}


def lend(entries: int, dtype: np.dtype) -> tuple[NDArray[Any], int]:
    """An uninitialised array and its address, in memory that was given back if there is as much."""
    size = entries * dtype.itemsize + LINES
    try:
        held = _kept.pop()
    except IndexError:
        held = _NONE
    if held.size != size:
        del held  # before there is another
        held = np.empty(size, np.uint8)
    address = held.ctypes.data
    start = -address % LINES
    return held[start : start + entries * dtype.itemsize].view(dtype), address + start


def give_back(numbers: NDArray[Any]) -> None:
    """Keep the memory of an array that was lent; nobody reads or writes it, or any part of it, from now on."""
    held = numbers.base
    if held is not None and LEAST_KEPT <= held.nbytes <= MOST_KEPT:
        _kept[:] = [held]


def borrow(key: object) -> Any:
    """What was left under a key, which nobody else gets meanwhile; None where there is nothing."""
    return _ready.pop(key, None)


def leave(key: object, thing: object) -> None:
    """Keep something, and forget what was left first where there is more than a few."""
    _ready[key] = thing
    for old in list(_ready)[:-READY]:  # threads of Python may leave something at any time
        _ready.pop(old, None)


def release() -> None:
    """Keep nothing."""
    _kept.clear()
    _ready.clear()
