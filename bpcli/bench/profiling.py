"""Time and memory of a function call, and the rates of the machine beside it.

Time is taken in blocks: enough calls in a row to last `BLOCK_SECONDS`, so that the resolution of the clock does not
matter. One block gives one sample, its seconds a call. Memory is measured in passes of its own, since tracing slows
every allocation down.

Rates of matrix products and of copies put times into proportion: the larger of their shares of a time is its limit
(the roofline model of Williams, Waterman & Patterson 2009). Control kernels, which contain none of bp's code, run
between measurements; where their speed changes, the machine was busy with something else.
"""

from __future__ import annotations

import ctypes
import gc
import math
import statistics
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from bpcli.runtime.trace import MEMORY

BLOCK_SECONDS = 0.01
MAX_BLOCKS = 1000
_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # proc(5): resets the peak resident set size to the current value
GEMM, COPY, OVERHEAD = "gemm", "memory", "overhead"
MIN_SHARE = 0.5
"""The least share of a time that makes a rate its limit."""
QUIET = 0.05
"""The most that control kernels may move in a run of a quiet machine."""
_RATE_GEMM_SIZE = 512
_RATE_COPY_BYTES = 1 << 25
_RATE_ROUNDS = 5
_CONTROL_GEMM_SIZE = 256
_CONTROL_COPY_BYTES = 1 << 23
_CONTROL_REPEATS = 7

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


@dataclass(frozen=True)
class Rates:
    """Rates of the machine: `gemm` flops of matrix products a second, `copy` bytes read and written a second."""

    gemm: float
    copy: float

    def shares(self, seconds: float, flops: float, moved: float) -> dict[str, float]:
        """The times of `flops` alone and of `moved` bytes alone, as fractions of `seconds`.

        The bytes' share may exceed 1, since caches are faster than a copy in memory.
        """
        return {GEMM: flops / self.gemm / seconds, COPY: moved / self.copy / seconds}


def measure_rates(dtype: str, threads: int, seconds: float = math.inf) -> Rates:
    """The rates now, with one product or copy in each of `threads` threads at a time, each in about `seconds` at most.

    The kernels use cores in the same way: a shard a thread, on a single-threaded BLAS.
    """
    return Rates(gemm_rate(dtype, threads, seconds), copy_rate(threads, seconds))


def gemm_rate(dtype: str, threads: int, seconds: float = math.inf) -> float:
    """Flops a second of square matrix products."""
    a = np.random.default_rng(0).standard_normal((_RATE_GEMM_SIZE, _RATE_GEMM_SIZE)).astype(dtype)

    def product() -> None:
        out = np.empty_like(a)
        np.dot(a, a, out)

    product()
    return threads * 2.0 * _RATE_GEMM_SIZE**3 / _quickest(product, threads, seconds)


def copy_rate(threads: int, seconds: float = math.inf) -> float:
    """Bytes a second that copies in memory read and write."""
    idle = [(np.zeros(_RATE_COPY_BYTES, np.uint8), np.ones(_RATE_COPY_BYTES, np.uint8)) for _ in range(threads)]

    def copy() -> None:
        target, source = idle.pop()
        np.copyto(target, source)
        idle.append((target, source))

    return threads * 2.0 * _RATE_COPY_BYTES / _quickest(copy, threads, seconds)


def _quickest(work: Callable[[], None], threads: int, seconds: float) -> float:
    """Seconds of a call in the quickest round, of which none begins after `seconds`; a thread calls `work` twice."""
    taken = [_round(work, threads)]
    while len(taken) < _RATE_ROUNDS and sum(taken) < seconds:
        taken.append(_round(work, threads))
    return min(taken) / 2.0


def _round(work: Callable[[], None], threads: int) -> float:
    def twice() -> None:
        work()
        work()

    helpers = [threading.Thread(target=twice) for _ in range(threads - 1)]
    start = time.perf_counter()
    for helper in helpers:
        helper.start()
    twice()
    for helper in helpers:
        helper.join()
    return time.perf_counter() - start


def usual_shares(
    rates: Sequence[Rates], samples: Sequence[Sequence[float]], flops: float, moved: float
) -> dict[str, float]:
    """Medians of the shares over rounds: a slow phase of the machine affects rates and times of a round alike."""
    rounds = [r.shares(statistics.median(s), flops, moved) for r, s in zip(rates, samples, strict=True) if s]
    return {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}


def limit(shares: Mapping[str, float]) -> str:
    """The rate with the largest share, or `OVERHEAD` where that is below `MIN_SHARE`."""
    largest = max(shares, key=lambda name: shares[name])
    return largest if shares[largest] >= MIN_SHARE else OVERHEAD


def sample_controls() -> dict[str, float]:
    """Seconds of each control kernel, the quickest of a few calls."""
    return {name: min(block(work, 1) for _ in range(_CONTROL_REPEATS)) for name, work in _warm_controls().items()}


def movement(samples: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """For each control kernel, its slowest sample over its quickest, less one."""
    taken = list(samples)
    names = taken[0] if taken else {}
    return {name: max(s[name] for s in taken) / min(s[name] for s in taken) - 1.0 for name in names}


def contaminated(moved: Mapping[str, float]) -> bool:
    """Whether a control kernel moved by more than on a quiet machine."""
    return any(value > QUIET for value in moved.values())


@cache
def _warm_controls() -> Mapping[str, Callable[[], Any]]:
    a = np.random.default_rng(0).standard_normal((_CONTROL_GEMM_SIZE, _CONTROL_GEMM_SIZE))
    product, source = np.empty_like(a), np.ones(_CONTROL_COPY_BYTES, dtype=np.uint8)
    target = np.empty_like(source)
    works: dict[str, Callable[[], Any]] = {
        "gemm": lambda: np.dot(a, a, product),
        "copy": lambda: np.copyto(target, source),
    }
    for work in works.values():
        work()
    return works
