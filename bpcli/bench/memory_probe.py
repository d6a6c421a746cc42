"""Memory of a call, in bytes: what it allocates, and by how much the process grows.

Both are measured in passes of their own, never while the clock runs: tracing slows every allocation down.
"""

from __future__ import annotations

import ctypes
import gc
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

from bpcli.runtime.trace import MEMORY

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # proc(5): resets the peak resident set size to the current value


def allocated_bytes(work: Callable[[], object]) -> int:
    """The most bytes that `work` held at once beyond what was there before, its result included.

    Python's allocator counts: that covers NumPy's arrays and Numba's, not the buffers of a BLAS or of XLA. What is kept
    of an earlier call is let go first.
    """
    MEMORY.clear()
    started = not tracemalloc.is_tracing()
    if started:
        tracemalloc.start()
    try:
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        result = work()
        _, peak = tracemalloc.get_traced_memory()
        del result
    finally:
        if started:
            tracemalloc.stop()
    return max(0, peak - before)


def peak_growth(work: Callable[[], object]) -> int | None:
    """By how many bytes the resident set grew at its peak during `work`; a call that does nothing shows a floor.

    Memory that the process has already and reuses does not count, so free memory is handed back first. On systems
    without Linux's /proc the peak can't be reset: what is told is by how much it rises above all that was before. None
    where no system call tells.
    """
    gc.collect()
    _hand_back()
    before = _status("VmRSS")
    resettable = before is not None and _reset()
    if not resettable:
        before = most_resident()
    result = work()
    peak = _status("VmHWM") if resettable else most_resident()
    del result
    return None if peak is None or before is None else max(0, peak - before)


def most_resident() -> int | None:
    """The largest resident set of this process so far, in bytes, where the system is a Unix."""
    try:
        import resource
    except ImportError:
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _status(field: str) -> int | None:
    """A field of /proc/self/status in bytes."""
    try:
        text = _STATUS.read_text()
    except OSError:
        return None
    line = next((x for x in text.splitlines() if x.startswith(f"{field}:")), None)
    return int(line.split()[1]) * 1024 if line else None


def _reset() -> bool:
    try:
        _CLEAR.write_text(_RESET_PEAK)
    except OSError:
        return False
    return True


def _hand_back() -> None:
    """Let go what is kept of an earlier call, and give free memory back to the system, where the C library is glibc."""
    MEMORY.clear()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
