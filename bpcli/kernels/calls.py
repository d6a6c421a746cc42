"""Calls of kernels: on one thread or many, in order or against it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from numpy.typing import NDArray

from bpcli.kernels import mode
from bpcli.kernels.library import Jobs, code, crew, plain, pool
from bpcli.kernels.lockstep import MOST_MEMBERS, desk_for


@dataclass(frozen=True, eq=False)
class Call:
    """A kernel with every row of `jobs`, which share nothing and run in `parallel` where there are threads.

    `ordered` jobs run one after another, as they stand. Jobs hold addresses: `keeps` are the arrays that they point to.
    A single job whose field `desk` is given may be run by a team of threads (see `bpcli.kernels.lockstep`).
    """

    name: str
    jobs: Jobs
    parallel: bool = True
    ordered: bool = False
    keeps: tuple[NDArray, ...] = ()
    desk: int | None = None

    @cached_property
    def _rows(self) -> tuple[int, int, int]:
        """Address, count and stride."""
        return self.jobs.ctypes.data, len(self.jobs), self.jobs.strides[0]

    def run(self, values: NDArray, address: int) -> None:
        """Run on `values`, which begin at `address`."""
        threads = pool()
        if mode.plain:
            for job in self.jobs[:: -1 if threads.backwards and not self.ordered else 1]:
                plain(self.name)(job, values)
            return
        kernel, (jobs, count, stride) = code((self.name, values.dtype)), self._rows
        together = self.desk is not None or (self.parallel and count > 1 and not self.ordered)
        if threads.backwards and not self.ordered:
            kernel.call(jobs + (count - 1) * stride, count, -stride, address)
        elif threads.count == 1 or not together:
            kernel.call(jobs, count, stride, address)
        elif self.desk is not None:
            job, members = self.jobs[0].copy(), min(threads.count, MOST_MEMBERS)
            desk = desk_for(members)
            job[self.desk] = desk.ctypes.data
            if not crew().run(kernel.address, job.ctypes.data, members, 0, address, members):
                kernel.call(jobs, count, stride, address)
        elif not crew().run(kernel.address, jobs, count, stride, address, threads.count):
            kernel.call(jobs, count, stride, address)


def run(name: str, jobs: Jobs, values: NDArray) -> None:
    """Run a kernel with every row of `jobs` on `values`, in parallel where there are several rows and threads."""
    Call(name, jobs).run(values, values.ctypes.data)
