"""What a process says of itself, and whether another one may work with it: results must not depend on the worker."""

from __future__ import annotations

import functools
import hashlib
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import bpcli
from bpcli.bench.machine import Machine, describe

_ENOUGH = 16


@dataclass(frozen=True)
class Facts:
    """A process: its `host`, the machine with its versions, and a digest of the sources of bp (`sources`)."""

    host: str
    machine: Machine
    sources: str


def facts(packages: tuple[str, ...] = ()) -> Facts:
    """Those of this process, with the versions of `packages` beside the usual ones."""
    return Facts(platform.node(), describe(packages), _sources())


def differences(here: Facts, there: Facts) -> list[str]:
    """What makes a process unfit to work for another: `numba 0.68.1 (0.69.0 here)`, an item for each package."""
    own, other = ({"python": f.machine.python, **f.machine.versions} for f in (here, there))
    names = dict.fromkeys((*own, *other))
    found = [f"{n} {other.get(n, 'missing')} ({own.get(n, 'none')} here)" for n in names if own.get(n) != other.get(n)]
    if not found and here.sources != there.sources:
        return [f"another bp {bpcli.__version__}: its sources differ"]
    return found


def together(machines: Sequence[Machine]) -> Machine:
    """One description of several machines: what differs is listed, as `2 or 64` cores."""
    first = machines[0]

    def listed(name: str) -> str:
        return " or ".join(sorted({str(getattr(m, name)) for m in machines}))

    cores = first.cores if len({m.cores for m in machines}) == 1 else listed("cores")
    return Machine(listed("cpu"), cores, listed("system"), first.python, first.versions)  # type: ignore[arg-type]


@functools.cache
def _sources() -> str:
    """A digest of all modules of bp: versions do not tell two checkouts apart."""
    home = Path(bpcli.__file__).parent
    total = hashlib.sha256()
    for path in sorted(home.rglob("*.py")):
        total.update(path.relative_to(home).as_posix().encode() + b"\0" + path.read_bytes())
    return total.hexdigest()[:_ENOUGH]
