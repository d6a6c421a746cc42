"""The side of the workers: the facts that make one fit for work, and the checks that run there before any work.

A worker is fit if it has the same versions and the same sources of bp: results must not depend on the worker.
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from distributed import WorkerPlugin

import bpcli
from bpcli.errors import BpError, Diagnostic, fail
from bpcli.problem.setup import SpecFile, digest
from bpcli.runtime.machine import Machine, describe


@dataclass(frozen=True)
class Facts:
    """A process: its `host`, the machine with its versions, and a digest of the sources of bp (`sources`)."""

    host: str
    machine: Machine
    sources: str


def facts(packages: tuple[str, ...] = ()) -> Facts:
    """The facts of this process, with the versions of `packages` beside the usual ones."""
    return Facts(platform.node(), describe(packages), _sources())


def differences(here: Facts, there: Facts) -> list[str]:
    """Reasons why a process is unfit to work for another: `numba 0.68.1 (0.69.0 here)`, one for each package."""
    own, other = ({"python": f.machine.python, **f.machine.versions} for f in (here, there))
    names = dict.fromkeys((*own, *other))
    found = [f"{n} {other.get(n, 'missing')} ({own.get(n, 'none')} here)" for n in names if own.get(n) != other.get(n)]
    if not found and here.sources != there.sources:
        return [f"another bp {bpcli.__version__}: its sources differ"]
    return found


def together(machines: Sequence[Machine]) -> Machine:
    """One description of several machines, in which values that differ are listed: `2 or 64` cores."""
    first = machines[0]

    def listed(name: str) -> str:
        return " or ".join(sorted({str(getattr(m, name)) for m in machines}))

    cores = first.cores if len({m.cores for m in machines}) == 1 else listed("cores")
    return Machine(listed("cpu"), cores, listed("system"), first.python, first.versions)  # type: ignore[arg-type]


@functools.cache
def _sources() -> str:
    """A digest of all modules of bp, as two checkouts may have one version."""
    home = Path(bpcli.__file__).parent
    total = hashlib.sha256()
    for path in sorted(home.rglob("*.py")):
        total.update(path.relative_to(home).as_posix().encode() + b"\0" + path.read_bytes())
    return total.hexdigest()[:16]


PLACE: Mapping[str, float] = {"bp": 1}
"""The resources that an order takes of a worker: all of them, so that no two run side by side."""

Answer = TypeVar("Answer")


class Reserve(WorkerPlugin):  # type: ignore[misc] # its sources are not read
    """Gives every worker, however late it joins, the resources for one order; an unfit worker gets none."""

    name = "bp"

    def __init__(self, here: Facts, packages: tuple[str, ...]) -> None:
        self.here, self.packages = here, packages

    async def setup(self, worker: Any) -> None:
        """Called by each worker as it joins."""
        fit = not differences(self.here, facts(self.packages))
        await worker.set_resources(**{name: float(fit and count) for name, count in PLACE.items()})


_SAME_FILES = "workers read specs, and the files these name, at the same paths as they are here"


def same_spec(spec: SpecFile, sha256: str) -> tuple[Diagnostic, ...]:
    """Why this worker cannot open the very same spec; empty where it can."""
    found = answered(lambda: require_same(spec, sha256))
    return found if isinstance(found, tuple) else ()


def require_same(spec: SpecFile, sha256: str) -> None:
    """Raise BpError where the spec, or a file that it names, is missing here or has other contents."""
    if not os.path.exists(spec.path):
        fail("other-files", f'there is no "{spec.path}"', help=_SAME_FILES)
    if digest(spec.open({}), spec.path) != sha256:
        fail("other-files", f'"{spec.path}", or a file that it names, is another one', help=_SAME_FILES)


def answered(work: Callable[[], Answer]) -> Answer | tuple[Diagnostic, ...]:
    """The result of `work`, or its diagnostics: exceptions lose their parts on the way to another process."""
    try:
        return work()
    except BpError as error:
        return error.diagnostics
    except MemoryError:
        return (Diagnostic("memory", "out of memory", help="smaller sizes, or workers with more memory"),)
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        return (Diagnostic("internal", what, help="a bug in bp: please report it"),)
