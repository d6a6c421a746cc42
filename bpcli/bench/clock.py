"""Time of a call: blocks of calls long enough for the clock, their median, and an interval for it.

A block is a number of calls in a row, chosen so that it lasts at least `BLOCK_SECONDS`; its time divided by the
number of calls is one sample. Whoever compares several callables takes blocks of each in turn, so that what the
machine does meanwhile meets them all alike.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

BLOCK_SECONDS = 0.01
MOST_BLOCKS = 1000

Work = Callable[[], object]
Timer = Callable[[], float]


@dataclass(frozen=True)
class Timing:
    """Seconds a call. `low` and `high` hold the median with a confidence of 95% at least; `samples` are as taken."""

    median: float
    low: float
    high: float
    minimum: float
    calls_per_block: int
    samples: tuple[float, ...]


def take(work: Work, calls: int, blocks: int, timer: Timer = time.perf_counter) -> list[float]:
    """Seconds a call in each of some blocks of `calls` calls, one block after another."""
    if calls > 1:
        work()  # another process has had the caches meanwhile
    enabled = gc.isenabled()
    gc.disable()
    try:
        return [block(work, calls, timer) / calls for _ in range(blocks)]
    finally:
        if enabled:
            gc.enable()


def blocks_in(seconds: float, each: float, rounds: int) -> int:
    """How many blocks that last `each` seconds fill `seconds`: one at least, and no more than makes sense in all."""
    return max(1, min(round(seconds / max(each, 1e-9)), MOST_BLOCKS // rounds))


def calibrate(work: Work, timer: Timer = time.perf_counter) -> int:
    """How many calls make a block that lasts `BLOCK_SECONDS` or more."""
    count = 1
    while (elapsed := block(work, count, timer)) < BLOCK_SECONDS:
        # A fifth more than the last block says, so that two or three rounds do; tenfold where it says nothing.
        wanted = 1.2 * BLOCK_SECONDS / elapsed * count if elapsed > 0 else math.inf
        count = max(count + 1, math.ceil(min(wanted, 10.0 * count)))
    return count


def block(work: Work, count: int, timer: Timer = time.perf_counter) -> float:
    """Seconds that `count` calls in a row take."""
    start = timer()
    for _ in range(count):
        work()
    return timer() - start


def summarise(samples: Sequence[float], calls_per_block: int) -> Timing:
    """The Timing of some samples."""
    low, high = interval(samples)
    return Timing(statistics.median(samples), low, high, min(samples), calls_per_block, tuple(samples))


def interval(samples: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Order statistics that hold the median of the distribution with the given confidence, whatever the distribution.

    The k-th smallest and k-th largest of n samples miss it with probability 2 P(Binomial(n, 1/2) < k): k is the
    largest that stays within 1 - confidence. Fewer than six samples can't reach 95%; their range is returned.
    """
    ordered = sorted(samples)
    n, k, missed = len(ordered), 0, 0.0
    while True:
        missed += 2.0 * math.comb(n, k) / 2**n if n < 1000 else 2.0 * _binomial(n, k)
        if missed > 1.0 - confidence or 2 * (k + 1) > n:
            break
        k += 1
    k = max(k, 1)
    return ordered[k - 1], ordered[n - k]


def ratio(top: Sequence[float], bottom: Sequence[float]) -> tuple[float, float, float]:
    """exp of the median of ln(top/bottom) over pairs of samples taken side by side, and its interval."""
    logs = [math.log(a / b) for a, b in zip(top, bottom, strict=True)]
    low, high = interval(logs)
    return math.exp(statistics.median(logs)), math.exp(low), math.exp(high)


def _binomial(n: int, k: int) -> float:
    """P(Binomial(n, 1/2) = k) where 2**n is beyond floating point."""
    return math.exp(math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) - n * math.log(2.0))
