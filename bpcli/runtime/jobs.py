"""Jobs, the rows of integers that kernels run with, and calls of kernels on one thread or many.

A job's fields are described in its kernel's module. A perturbed copy's product with a matrix is the shared product
plus, at each changed row, change · v[column]: a rank-one update, which is part of a forward job.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bpcli import kernels
from bpcli.kernels import forward as forward_kernel
from bpcli.kernels import reverse as reverse_kernel
from bpcli.kernels.lockstep import MOST_MEMBERS, new_group
from bpcli.runtime.kernel_loader import Jobs, code, plain, thread_pool, thread_settings
from bpcli.tape.instructions import Forward


@dataclass(frozen=True, eq=False)
class Call:
    """A kernel with every row of `jobs`, which share nothing and run in `parallel` on several threads.

    `ordered` jobs run one after another, in order. Jobs hold addresses: `keeps` are the arrays that they point to. A
    single job that names its field for a `group` may be run in lockstep by several threads (see
    `bpcli.kernels.lockstep`).
    """

    name: str
    jobs: Jobs
    parallel: bool = True
    ordered: bool = False
    keeps: tuple[NDArray[Any], ...] = ()
    group: int | None = None

    @cached_property
    def _rows(self) -> tuple[int, int, int]:
        """Address, count and stride."""
        return self.jobs.ctypes.data, len(self.jobs), self.jobs.strides[0]

    def run(self, values: NDArray[Any], address: int) -> None:
        """Run on `values`, which begin at `address`."""
        threads = thread_settings()
        if kernels.plain:
            for job in self.jobs[:: -1 if threads.backwards and not self.ordered else 1]:
                plain(self.name)(job, values)
            return
        kernel, (jobs, count, stride) = code((self.name, values.dtype)), self._rows
        together = self.group is not None or (self.parallel and count > 1 and not self.ordered)
        if threads.backwards and not self.ordered:
            kernel.call(jobs + (count - 1) * stride, count, -stride, address)
        elif threads.count == 1 or not together:
            kernel.call(jobs, count, stride, address)
        elif self.group is not None:
            job, members = self.jobs[0].copy(), min(threads.count, MOST_MEMBERS)
            group = new_group(members)
            job[self.group] = group.ctypes.data
            if not thread_pool().run(kernel.address, job.ctypes.data, members, 0, address, members):
                kernel.call(jobs, count, stride, address)
        elif not thread_pool().run(kernel.address, jobs, count, stride, address, threads.count):
            kernel.call(jobs, count, stride, address)


def run(name: str, jobs: Jobs, values: NDArray[Any]) -> None:
    """Run a kernel with every row of `jobs` on `values`, in parallel where there are several rows and threads."""
    Call(name, jobs).run(values, values.ctypes.data)


class RankOneUpdates(NamedTuple):
    """Changes of single matrix entries, copy by copy.

    `slots[node]` is a matrix's slot or -1; the changes of copy o in slot s are entries `ends[s, o]` to `ends[s, o + 1]`
    of the three lists `rows`, `columns` and `changes`.
    """

    slots: NDArray[np.int64]
    ends: NDArray[np.int64]
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    changes: NDArray[Any]


class EntryChanges(NamedTuple):
    """Changes of one matrix's entries, as lists sorted by copy."""

    copies: NDArray[np.int64]
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    changes: NDArray[Any]


def no_updates(nodes: int, dtype: np.dtype) -> RankOneUpdates:
    """The updates of copies whose matrices are all as they stand."""
    return rank_one_updates(nodes, 0, {}, dtype)


def rank_one_updates(nodes: int, copies: int, changed: Mapping[int, EntryChanges], dtype: np.dtype) -> RankOneUpdates:
    """The updates for the changes of matrices, by node."""
    slots = np.full(nodes, -1, np.int64)
    ends = np.zeros((max(1, len(changed)), copies + 1), np.int64)
    start = 0
    for slot, (node, entries) in enumerate(changed.items()):
        slots[node] = slot
        ends[slot] = start + np.searchsorted(entries.copies, np.arange(copies + 1))
        start += len(entries.copies)
    rows, columns, changes = (np.concatenate([e[i] for e in changed.values()] or [np.zeros(0)]) for i in (1, 2, 3))
    dtypes = np.dtype(np.int64), np.dtype(np.int64), dtype
    lists = (np.ascontiguousarray(x, dtype=d) for x, d in zip((rows, columns, changes), dtypes, strict=True))
    return RankOneUpdates(slots, ends, *lists)


def joined(lists: Sequence[EntryChanges]) -> EntryChanges:
    """Lists of changes one after another."""
    return EntryChanges(*(np.concatenate(parts) for parts in zip(*lists, strict=True)))


def forward_job(program: Forward, numbers: NDArray[Any], places: Jobs, entries: int, updates: RankOneUpdates) -> Jobs:
    """A job of the forward kernel on `entries` values, with everything but lines, steps and rows."""
    slots, ends, rows, columns, changes = updates
    job = np.zeros(forward_kernel.JOB, np.int64)
    job[forward_kernel.CODE], job[forward_kernel.LINES] = program.code.ctypes.data, len(program.code)
    job[forward_kernel.NUMBERS], job[forward_kernel.NODES] = numbers.ctypes.data, len(numbers)
    job[forward_kernel.PLACES], job[forward_kernel.LENGTH] = places.ctypes.data, entries
    job[forward_kernel.SLOTS], job[forward_kernel.ENDS] = slots.ctypes.data, ends.ctypes.data
    job[forward_kernel.SLOT_COUNT], job[forward_kernel.COPIES] = ends.shape[0], ends.shape[1] - 1
    job[forward_kernel.UPDATE_ROWS], job[forward_kernel.UPDATE_COLUMNS] = rows.ctypes.data, columns.ctypes.data
    job[forward_kernel.UPDATE_CHANGES], job[forward_kernel.UPDATE_COUNT] = changes.ctypes.data, changes.size
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
    """`job` once for each of `parts` even parts of `first` to `last`, written to `field` and the one after it."""
    if parts == 1:
        job[field], job[field + 1] = first, last
        return job[None]
    jobs = np.repeat(job[None], parts, axis=0)
    ends = first + (last - first) * np.arange(parts + 1) // parts
    jobs[:, field], jobs[:, field + 1] = ends[:-1], ends[1:]
    return jobs
