"""Kernels with none of our code, run between the measurements: where they change speed, the machine was not quiet."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any

import numpy as np

QUIET = 0.05
"""By how much the control kernels may move in a run that counts as quiet."""
_GEMM_SIZE = 256
_COPY_BYTES = 1 << 23
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
    a = np.random.default_rng(0).standard_normal((_GEMM_SIZE, _GEMM_SIZE))
    product = np.empty_like(a)
    source = np.ones(_COPY_BYTES, dtype=np.uint8)
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
