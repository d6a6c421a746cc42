"""Calls of kernels: on one thread or many, in order or against it.

Jobs: the rows of integers that kernels are run with; see the fields that each kernel's module names.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bpcli.kernels import forward as forward_kernel
from bpcli.kernels import mode
from bpcli.kernels import reverse as reverse_kernel
from bpcli.kernels.lockstep import MOST_MEMBERS, desk_for
from bpcli.runtime.kernel_loader import Jobs, code, crew, plain, pool
from bpcli.runtime.rank_one_updates import Fix
from bpcli.tape.instructions import Forward


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
    keeps: tuple[NDArray[Any], ...] = ()
    desk: int | None = None

    @cached_property
    def _rows(self) -> tuple[int, int, int]:
        """Address, count and stride."""
        return self.jobs.ctypes.data, len(self.jobs), self.jobs.strides[0]

    def run(self, values: NDArray[Any], address: int) -> None:
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


def run(name: str, jobs: Jobs, values: NDArray[Any]) -> None:
    """Run a kernel with every row of `jobs` on `values`, in parallel where there are several rows and threads."""
    Call(name, jobs).run(values, values.ctypes.data)


def forward_job(program: Forward, numbers: NDArray[Any], places: Jobs, entries: int, fix: Fix) -> Jobs:
    """A job of the forward kernel on `entries` values, with everything but lines, steps and rows."""
    slots, ends, rows, columns, changes = fix
    job = np.zeros(forward_kernel.JOB, np.int64)
    job[forward_kernel.CODE], job[forward_kernel.LINES] = program.code.ctypes.data, len(program.code)
    job[forward_kernel.NUMBERS], job[forward_kernel.NODES] = numbers.ctypes.data, len(numbers)
    job[forward_kernel.PLACES], job[forward_kernel.LENGTH] = places.ctypes.data, entries
    job[forward_kernel.SLOTS], job[forward_kernel.ENDS] = slots.ctypes.data, ends.ctypes.data
    job[forward_kernel.SLOT_COUNT], job[forward_kernel.COPIES] = ends.shape[0], ends.shape[1] - 1
    job[forward_kernel.FIX_ROWS], job[forward_kernel.FIX_COLUMNS] = rows.ctypes.data, columns.ctypes.data
    job[forward_kernel.FIX_CHANGES], job[forward_kernel.FIX_COUNT] = changes.ctypes.data, changes.size
    job[forward_kernel.O1] = 1
    return job


def reverse_job(code: Jobs, numbers: NDArray[Any], places: Jobs, cplaces: Jobs, rounding: bool) -> Jobs:
    """A job of the reverse kernel with everything but arrays, lines, steps and rows."""
    job = np.zeros(reverse_kernel.JOB, np.int64)
    job[reverse_kernel.CODE], job[reverse_kernel.LINES] = code.ctypes.data, len(code)
    job[reverse_kernel.NUMBERS], job[reverse_kernel.NODES] = numbers.ctypes.data, len(numbers)
    job[reverse_kernel.PLACES], job[reverse_kernel.COTANGENT_PLACES] = places.ctypes.data, cplaces.ctypes.data
    job[reverse_kernel.O1], job[reverse_kernel.ROUNDING] = 1, rounding
    return job


def cut(job: Jobs, field: int, first: int, last: int, parts: int) -> Jobs:
    """`job` once for each of `parts` even stretches of `first` to `last`, written to `field` and the one after it."""
    if parts == 1:
        job[field], job[field + 1] = first, last
        return job[None]
    jobs = np.repeat(job[None], parts, axis=0)
    ends = first + (last - first) * np.arange(parts + 1) // parts
    jobs[:, field], jobs[:, field + 1] = ends[:-1], ends[1:]
    return jobs
