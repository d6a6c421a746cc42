"""Time and memory of a function call.

Time is taken in blocks: enough calls in a row to last `BLOCK_SECONDS`, so that the resolution of the clock does not
matter. One block gives one sample, its seconds a call. Memory is measured in passes of its own, since tracing slows
every allocation down.
"""

from __future__ import annotations

import ctypes
import gc
import math
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

from bpcli.runtime.trace import MEMORY

BLOCK_SECONDS = 0.01
MAX_BLOCKS = 1000
_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # proc(5): resets the peak resident set size to the current value

Work = Callable[[], object]
Timer = Callable[[], float]


def calibrate(work: Work, timer: Timer = time.perf_counter) -> int:
    """The number of calls whose block lasts `BLOCK_SECONDS` or more."""
    count = 1
    while (elapsed := block(work, count, timer)) < BLOCK_SECONDS:
        # A fifth more than the last block suggests, so that two or three blocks suffice; tenfold where it shows zero.
        wanted = 1.2 * BLOCK_SECONDS / elapsed * count if elapsed > 0 else math.inf
        count = max(count + 1, math.ceil(min(wanted, 10.0 * count)))
    return count


def block(work: Work, count: int, timer: Timer = time.perf_counter) -> float:
    """Seconds of `count` calls in a row."""
    start = timer()
    for _ in range(count):
        work()
    return timer() - start


def take(work: Work, calls: int, blocks: int, timer: Timer = time.perf_counter) -> list[float]:
    """Seconds a call in each of `blocks` blocks of `calls` calls, without garbage collection."""
    if calls > 1:
        work()  # refills the caches after another process had them
    enabled = gc.isenabled()
    gc.disable()
    try:
        return [block(work, calls, timer) / calls for _ in range(blocks)]
    finally:
        if enabled:
            gc.enable()


def blocks_in(seconds: float, each: float, rounds: int) -> int:
    """The number of blocks of `each` seconds that fill `seconds`: at least 1, at most `MAX_BLOCKS` over all rounds."""
    return max(1, min(round(seconds / max(each, 1e-9)), MAX_BLOCKS // rounds))


def allocated_bytes(work: Work) -> int:
    """Peak bytes that `work` allocates, its result included, after releasing buffers kept from earlier calls.

    tracemalloc sees the arrays of NumPy and Numba, not the buffers of BLAS or XLA.
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


def peak_growth(work: Work) -> int | None:
    """Growth in bytes of the resident set at its peak during `work`; None where the system does not report it.

    Free memory is returned to the system first, since reused memory does not count. Without Linux's /proc the peak
    cannot be reset, and only growth beyond the largest resident set so far is seen. A call that does nothing shows the
    floor of this measurement.
    """
    gc.collect()
    _return_free_memory()
    before = _status("VmRSS")
    resettable = before is not None and _reset_peak()
    if not resettable:
        before = max_resident()
    result = work()
    peak = _status("VmHWM") if resettable else max_resident()
    del result
    return None if peak is None or before is None else max(0, peak - before)


def max_resident() -> int | None:
    """The largest resident set of this process so far, in bytes; None where the system is not a Unix."""
    try:
        import resource
    except ImportError:
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _status(field: str) -> int | None:
    """A field of /proc/self/status, in bytes."""
    try:
        text = _STATUS.read_text()
    except OSError:
        return None
    line = next((x for x in text.splitlines() if x.startswith(f"{field}:")), None)
    return int(line.split()[1]) * 1024 if line else None


def _reset_peak() -> bool:
    try:
        _CLEAR.write_text(_RESET_PEAK)
    except OSError:
        return False
    return True


def _return_free_memory() -> None:
    """Release buffers kept from earlier calls and trim the heap, where the C library is glibc."""
    MEMORY.clear()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
