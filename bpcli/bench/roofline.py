"""Rates of the machine, and control kernels that contain none of bp's code.

Rates of matrix products and of copies put times into proportion: the larger of their shares of a time is its limit
(the roofline model of Williams, Waterman & Patterson 2009). Control kernels run between measurements; where their
speed changes, the machine was busy with something else.
"""

from __future__ import annotations

import math
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from bpcli.bench.profiling import block

GEMM, MEMORY, OVERHEAD = "gemm", "memory", "overhead"
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


@dataclass(frozen=True)
class Rates:
    """Rates of the machine: `gemm` flops of matrix products a second, `copy` bytes read and written a second."""

    gemm: float
    copy: float

    def shares(self, seconds: float, flops: float, moved: float) -> dict[str, float]:
        """The times of `flops` alone and of `moved` bytes alone, as fractions of `seconds`.

        The bytes' share may exceed 1, since caches are faster than a copy in memory.
        """
        return {GEMM: flops / self.gemm / seconds, MEMORY: moved / self.copy / seconds}


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
