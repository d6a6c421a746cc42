"""The machine that a process runs on, with the versions of its software."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path

from bpcli import __version__

_PACKAGES = ("numpy", "numba", "scipy", "llvmlite")


@dataclass(frozen=True)
class Machine:
    """A machine and its software.

    `versions` maps packages to versions, `cores` counts those of this process, `vectors` is the path of its kernels.
    """

    cpu: str
    cores: int
    vectors: str
    system: str
    python: str
    versions: Mapping[str, str]


def describe(packages: tuple[str, ...] = ()) -> Machine:
    """This machine, with the versions of bp's dependencies and of `packages` where they are installed."""
    from bpcli.kernels.simd import VECTOR_PATH  # once it is known whether this process compiles

    versions = {"bp": __version__} | {p: v for p in (*_PACKAGES, *packages) if (v := _version(p))}
    system = f"{platform.system()} {platform.release()}"
    return Machine(_cpu(), cores(), VECTOR_PATH, system, platform.python_version(), versions)


def cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _cpu() -> str:
    """The processor's name, as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()
