"""The machine that a run was made on: who it is, and two rates that put its times into proportion."""

from __future__ import annotations

import os
import platform
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

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
