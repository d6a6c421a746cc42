"""The machine that a run was made on: who it is, and two rates that put its times into proportion.

Kernels with none of our code, run between the measurements: where they change speed, the machine was not quiet.

What the machine could do at best: which of its rates a time is bound by (Williams, Waterman & Patterson 2009).
"""

from __future__ import annotations

import os
import platform
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from bpcli import __version__

_GEMM_SIZE = 512
_COPY_BYTES = 1 << 25
_ROUNDS = 5
_PACKAGES = ("numpy", "numba", "scipy", "llvmlite")


@dataclass(frozen=True)
class Machine:
    """`versions` takes a package to its version; `cores` are those that this process may use."""

    cpu: str
    cores: int
    system: str
    python: str
    versions: Mapping[str, str]


def describe(packages: tuple[str, ...] = ()) -> Machine:
    """The machine at hand, with the versions of `packages` beside the usual ones; absent ones are left out."""
    versions = {"bp": __version__} | {p: v for p in (*_PACKAGES, *packages) if (v := _version(p))}
    system = f"{platform.system()} {platform.release()}"
    return Machine(_cpu(), cores(), system, platform.python_version(), versions)


def gemm_rate(dtype: str, threads: int) -> float:
    """Floating-point operations a second of square matrix products, one in each of `threads` threads at a time.

    That is how the kernels use several cores: a shard a thread, BLAS on a single one.
    """
    rng = np.random.default_rng(0)
    a = rng.standard_normal((_GEMM_SIZE, _GEMM_SIZE)).astype(dtype)

    def product() -> None:
        out = np.empty_like(a)
        np.dot(a, a, out)

    product()
    return threads * 2.0 * _GEMM_SIZE**3 / _quickest(product, threads)


def copy_rate(threads: int) -> float:
    """Bytes a second that copies from memory to memory read and write, one in each of `threads` threads at a time."""
    idle = [(np.zeros(_COPY_BYTES, np.uint8), np.ones(_COPY_BYTES, np.uint8)) for _ in range(threads)]

    def copy() -> None:
        target, source = idle.pop()
        np.copyto(target, source)
        idle.append((target, source))

    return threads * 2.0 * _COPY_BYTES / _quickest(copy, threads)


def _quickest(work: Callable[[], None], threads: int) -> float:
    """Seconds of the quickest round in which every thread calls `work` twice, divided by the calls of one thread."""
    return min(_round(work, threads) for _ in range(_ROUNDS)) / 2.0


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


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu() -> str:
    """The processor's name, as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


QUIET = 0.05
"""By how much the control kernels may move in a run that counts as quiet."""
_CONTROL_GEMM_SIZE = 256
_CONTROL_COPY_BYTES = 1 << 23
_REPEATS = 7


def sample() -> dict[str, float]:
    """Seconds of a matrix product and of a copy in memory: the quickest of a few, so that one hiccup is not seen."""
    return {name: min(_seconds(work) for _ in range(_REPEATS)) for name, work in _works().items()}


def moved(samples: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """For each control kernel, its slowest sample over its quickest, less one."""
    taken = list(samples)
    names = taken[0] if taken else {}
    return {name: max(s[name] for s in taken) / min(s[name] for s in taken) - 1.0 for name in names}


def contaminated(movement: Mapping[str, float]) -> bool:
    """Whether any of them moved by more than a quiet machine lets it."""
    return any(value > QUIET for value in movement.values())


@cache
def _works() -> Mapping[str, Callable[[], Any]]:
    a = np.random.default_rng(0).standard_normal((_CONTROL_GEMM_SIZE, _CONTROL_GEMM_SIZE))
    product = np.empty_like(a)
    source = np.ones(_CONTROL_COPY_BYTES, dtype=np.uint8)
    target = np.empty_like(source)
    works: dict[str, Callable[[], Any]] = {
        "gemm": lambda: np.dot(a, a, product),
        "copy": lambda: np.copyto(target, source),
    }
    for work in works.values():
        work()
    return works


def _seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


GEMM, MEMORY, OVERHEAD = "gemm", "memory", "overhead"
EXPLAINS = 0.5
"""The share of a time that a limit explains at least."""


@dataclass(frozen=True)
class Rates:
    """What the machine does in a second: operations of matrix products, bytes that copies read and write."""

    gemm: float
    copy: float

    def shares(self, seconds: float, flops: float, moved: float) -> dict[str, float]:
        """What `flops` alone, and `moved` bytes alone, would take at these rates, as parts of `seconds`.

        The bytes may come to more than 1: what a cache holds is quicker than a copy in memory.
        """
        return {GEMM: flops / self.gemm / seconds, MEMORY: moved / self.copy / seconds}


def usual_shares(
    rates: Sequence[Rates], samples: Sequence[Sequence[float]], flops: float, moved: float
) -> dict[str, float]:
    """The medians of the shares in each round: a machine may be fast or slow for minutes, in its rates as in a time."""
    rounds = [r.shares(statistics.median(s), flops, moved) for r, s in zip(rates, samples, strict=True) if s]
    return {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}


def limit(shares: Mapping[str, float]) -> str:
    """The largest of the shares, or `OVERHEAD` where that explains too little: what is left is not counted."""
    largest = max(shares, key=lambda name: shares[name])
    return largest if shares[largest] >= EXPLAINS else OVERHEAD
