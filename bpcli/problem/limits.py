"""What a run may cost in memory and time; both are predicted from sizes alone, before anything is allocated."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from bpcli.errors import Place, fail, printable
from bpcli.problem.definition import Setup

FREE_SHARE = 0.8
FALLBACK = 2 << 30
FLOPS_PER_SECOND = 5e9
SECONDS_PER_STEP = 2e-5
"""What a step costs beside its arithmetic, each time that it is taken."""
PASSES = 2
"""How often a method goes over its steps: forwards, and backwards or for the influence."""
MOST_MEMORY = 1 << 47
"""Bytes that a process can address, whatever is allowed."""
_GROUP = Path("/sys/fs/cgroup")
DECIMAL = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
UNITS = {**DECIMAL, "ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30, "ti": 1 << 40}


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
    """Bytes that can be allocated without swapping, in the machine and in the control group; 2 GiB where nothing tells.

    Only the group (version 2) that is mounted as the root is seen, as in a container, not a limit of a group above.
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
    """What the control group has left: its limit less what it uses, caches that can be dropped not counted."""
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
    size = int(float(found[1]) * UNITS[(found[2] or "").lower()]) if found else 0
    if size < 1:
        what = f'"{printable(text)}" is no amount of memory'
        fail("bad-size", what, help="give bytes, or a number with a unit: 500MB, 2GiB")
    return size


def format_bytes(size: float) -> str:
    """`size` in the largest decimal unit that leaves at least one."""
    for unit in ("B", "kB", "MB", "GB", "TB", "PB"):
        if size < 999.5:  # three digits would round the rest up to 1e+03
            return f"{size:.3g} {unit}" if unit != "B" else f"{size:.0f} B"
        size /= 1000
    return f"{size:.3g} EB"


def array_bytes(setup: Setup) -> dict[str, int]:
    """Bytes of each array while the problem is drawn, patterns and the work space of a factorisation with it."""
    spec, item = setup.spec, setup.dtype.itemsize
    steps = setup.T if setup.graph.recurrent else 1
    sizes = {}
    for decl in spec.params.values():
        extra = 9 * decl.size if decl.density is not None else 0
        extra += 24 * decl.size if decl.init == "orthogonal" else 0
        sizes[decl.name] = item * decl.size + extra
    for decl in spec.inputs.values():
        sizes[decl.name] = item * decl.size * steps * setup.batch
    for decl in spec.states.values():
        sizes[decl.name] = item * decl.size * (1 if decl.name in setup.shared else setup.batch)
    return sizes


def check_arrays(setup: Setup, limits: Limits) -> None:
    """Refuse arrays beyond the memory limit, at the declaration of the largest; allocates nothing."""
    total = sum(array_bytes(setup).values())
    if total > limits.most_memory:
        largest = _largest(setup)
        _too_large(f'the arrays need {_amount(total)}, most of it "{largest[0]}"', largest[1], limits)


def check_cost(setup: Setup, method_text: str, method_bytes: int, flops: float, limits: Limits, steps: int = 0) -> None:
    """Refuse a method that needs more memory (with the arrays) or time than is allowed; at the largest array.

    `steps` are those of the recurrence in all passes over it: small ones take longer than their arithmetic.
    """
    place = _largest(setup)[1]
    total = sum(array_bytes(setup).values()) + int(method_bytes)
    if total > limits.most_memory:
        _too_large(f"{printable(method_text)} and the arrays need {_amount(total)}", place, limits)
    seconds = flops / FLOPS_PER_SECOND + steps * SECONDS_PER_STEP
    if seconds > limits.max_time:
        what = f"{printable(method_text)} would take about {format_duration(seconds)}"
        limit = f", the limit is {format_duration(limits.max_time)}"
        fail("too-long", what + limit, place, help="make it smaller, choose a cheaper method, or raise --max-time")


def _largest(setup: Setup) -> tuple[str, Place]:
    spec, sizes = setup.spec, array_bytes(setup)
    if not sizes:
        return "", spec.source.key("data")
    name = max(sizes, key=lambda n: sizes[n])
    return name, {**spec.inputs, **spec.params, **spec.states}[name].place


def _too_large(what: str, place: Place, limits: Limits) -> None:
    advice = "make it smaller, or raise --max-memory"
    fail("too-large", f"{what}, the limit is {_amount(limits.most_memory)}", place, help=advice)


def _amount(size: int) -> str:
    return f"{size} bytes ({format_bytes(size)})"


def format_duration(seconds: float) -> str:
    """`seconds` in the largest unit that leaves at least two."""
    for unit, length in (("years", 31_557_600), ("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.3g} seconds"
