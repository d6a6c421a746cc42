"""What runs in a worker: the reservation of its one place, and the questions that are put to it before any work."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from distributed import WorkerPlugin

from bpcli.bench.cells import Target, digest
from bpcli.cluster.facts import Facts, differences, facts
from bpcli.errors import BpError, Diagnostic, fail

PLACE: Mapping[str, float] = {"bp": 1}
"""What a piece of work takes of a worker's resources: all there is, so that no two run side by side."""

Answer = TypeVar("Answer")


class Reserve(WorkerPlugin):  # type: ignore[misc] # its sources are not read
    """Gives every worker one place for work, those that join later too; a worker that is unfit gets none."""

    name = "bp"

    def __init__(self, here: Facts, packages: tuple[str, ...]) -> None:
        self.here, self.packages = here, packages

    async def setup(self, worker: Any) -> None:
        """Called by each worker as it joins."""
        fit = not differences(self.here, facts(self.packages))
        await worker.set_resources(**{name: float(fit and count) for name, count in PLACE.items()})


_SAME_FILES = "workers read specs, and the files these name, at the same paths as they are here"


def same_spec(target: Target, sha256: str) -> tuple[Diagnostic, ...]:
    """What stands in the way of this worker's opening a spec that is to be the very same; nothing where it can."""
    found = answered(lambda: require_same(target, sha256))
    return found if isinstance(found, tuple) else ()


def require_same(target: Target, sha256: str) -> None:
    """Raise BpError where the spec, or a file that it names, is not here or holds something else."""
    if not os.path.exists(target.path):
        fail("other-files", f'there is no "{target.path}"', help=_SAME_FILES)
    if digest(target.open({}), target.path) != sha256:
        fail("other-files", f'"{target.path}", or a file that it names, is another one', help=_SAME_FILES)


def answered(work: Callable[[], Answer]) -> Answer | tuple[Diagnostic, ...]:
    """What `work` gives, or what stood in its way: exceptions lose their parts on the way to another process."""
    try:
        return work()
    except BpError as error:
        return error.diagnostics
    except MemoryError:
        return (Diagnostic("memory", "out of memory", help="smaller sizes, or workers with more memory"),)
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        return (Diagnostic("internal", what, help="a bug in bp: please report it"),)
