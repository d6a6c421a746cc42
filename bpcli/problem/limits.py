"""Limits on the memory and time of a run, both predicted from sizes before anything is allocated."""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from bpcli.errors import Place, fail, printable
from bpcli.problem.definition import Setup
from bpcli.spec.specification import ArrayDecl

FREE_SHARE = 0.8
FALLBACK = 2 << 30
"""Bytes taken as free where the system reports nothing."""
FLOPS_PER_SECOND = 5e9
SECONDS_PER_STEP = 2e-5
"""Overhead of a step beside its arithmetic, each time that it is taken."""
PASSES = 2
"""Passes of a method over its steps: forwards, and backwards or for the influence."""
MOST_MEMORY = 1 << 47
"""Bytes that a process can address, whatever the limit."""
_GROUP = Path("/sys/fs/cgroup")
_DECIMAL = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_UNITS = {**_DECIMAL, "ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30, "ti": 1 << 40}


def default_memory() -> int:
    """80% of free memory, in bytes."""
    return int(FREE_SHARE * free_memory())


@dataclass(frozen=True)
class Limits:
    """`max_memory` in bytes, `max_time` in seconds; `allow_outside` lets a spec read files outside its own folder."""

    max_memory: int = field(default_factory=default_memory)
    max_time: float = 3600.0
    allow_outside: bool = False

    @property
    def most_memory(self) -> int:
        """`max_memory`, or the bytes that a process can address where these are fewer."""
        return min(self.max_memory, MOST_MEMORY)


def free_memory() -> int:
    """Bytes that can be allocated without swapping, in the machine and in the control group.

    Of control groups (version 2) only the one mounted as the root counts, as in a container, not a limit above it.
    """
    available = _meminfo()
    if available is None:
        try:
            available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (AttributeError, ValueError, OSError):
            available = FALLBACK
    left = _group_memory()
    return available if left is None else min(available, left)


def _group_memory() -> int | None:
    """Bytes left in the control group: its limit less its use, without caches that can be dropped."""
    try:
        limit = int((_GROUP / "memory.max").read_text(encoding="ascii"))  # "max" is no number
        used = int((_GROUP / "memory.current").read_text(encoding="ascii"))
        stat = (_GROUP / "memory.stat").read_text(encoding="ascii")
    except (OSError, ValueError):
        return None
    found = re.search(r"^inactive_file (\d+)$", stat, re.MULTILINE)
    return max(0, limit - used + (int(found[1]) if found else 0))


def _meminfo() -> int | None:
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
    except (OSError, ValueError):
        return None
    found = re.search(r"^MemAvailable:\s*(\d+) kB", text, re.MULTILINE)
    return int(found[1]) << 10 if found else None


def parse_bytes(text: str) -> int:
    """`500MB`, `2GiB`, `1.5G` or a plain number of bytes; `BpError` for anything else and for less than one byte."""
    found = re.fullmatch(r"\s*(\d{1,18}(?:\.\d{1,9})?)\s*([kmgt]i?)?b?\s*", text, re.ASCII | re.IGNORECASE)
    size = int(float(found[1]) * _UNITS[(found[2] or "").lower()]) if found else 0
    if size < 1:
        what = f'"{printable(text)}" is not an amount of memory'
        fail("bad-size", what, help="give bytes, or a number with a unit: 500MB, 2GiB")
    return size


def format_bytes(size: float) -> str:
    """`size` bytes in the largest decimal unit of which there is at least one."""
    for unit in ("B", "kB", "MB", "GB", "TB", "PB"):
        if size < 999.5:  # three digits would round the rest up to 1e+03
            return f"{size:.3g} {unit}" if unit != "B" else f"{size:.0f} B"
        size /= 1000
    return f"{size:.3g} EB"


def array_bytes(setup: Setup) -> dict[str, int]:
    """Bytes of each array while it is drawn, with its density pattern and the workspace of a factorisation."""
    sizes = {}
    for name, decl in _declarations(setup).items():
        sizes[name] = setup.dtype.itemsize * math.prod(setup.array_shape(decl))
        if decl.kind == "param":
            sizes[name] += decl.size * (9 * (decl.density is not None) + 24 * (decl.init == "orthogonal"))
    return sizes


def _declarations(setup: Setup) -> dict[str, ArrayDecl]:
    return {**setup.spec.params, **setup.spec.inputs, **setup.spec.states}


def check_arrays(setup: Setup, limits: Limits) -> None:
    """Refuse arrays beyond the memory limit, at the declaration of the largest."""
    total = sum(array_bytes(setup).values())
    if total > limits.most_memory:
        name, place = _largest(setup)
        _refuse_size(f'the arrays need {_amount(total)}, most of it "{name}"', place, limits)


def check_cost(setup: Setup, method_text: str, method_bytes: int, flops: float, limits: Limits, steps: int = 0) -> None:
    """Refuse a method that needs more memory (with the arrays) or time than is allowed, at the largest array.

    `steps` counts those of the recurrence in all passes over it; small ones take longer than their arithmetic.
    """
    place = _largest(setup)[1]
    total = sum(array_bytes(setup).values()) + int(method_bytes)
    if total > limits.most_memory:
        _refuse_size(f"{printable(method_text)} and the arrays need {_amount(total)}", place, limits)
    seconds = predicted_seconds(flops, steps)
    if seconds > limits.max_time:
        what = f"{printable(method_text)} would take about {format_duration(seconds)}"
        limit = f", the limit is {format_duration(limits.max_time)}"
        fail("too-long", what + limit, place, help="make it smaller, choose a cheaper method, or raise --max-time")


def predicted_seconds(flops: float, steps: float = 0) -> float:
    """Seconds for so many operations, and `steps` of the recurrence, as of `check_cost`."""
    return flops / FLOPS_PER_SECOND + steps * SECONDS_PER_STEP


def _largest(setup: Setup) -> tuple[str, Place]:
    sizes = array_bytes(setup)
    if not sizes:
        return "", setup.spec.source.key("data")
    name = max(sizes, key=lambda n: sizes[n])
    return name, _declarations(setup)[name].place


def _refuse_size(what: str, place: Place, limits: Limits) -> None:
    advice = "make it smaller, or raise --max-memory"
    fail("too-large", f"{what}, the limit is {_amount(limits.most_memory)}", place, help=advice)


def _amount(size: int) -> str:
    return f"{size} bytes ({format_bytes(size)})"


def format_duration(seconds: float) -> str:
    """`seconds` in the largest unit of which there are at least two."""
    for unit, length in (("years", 31_557_600), ("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.3g} seconds"
