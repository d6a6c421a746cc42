"""Jobs: the rows of integers that kernels are run with; see the fields that each kernel's module names."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bpcli.kernels import forward as forward_kernel
from bpcli.kernels import reverse as reverse_kernel
from bpcli.kernels.fixes import Fix
from bpcli.kernels.library import Jobs
from bpcli.tape.instructions import Forward


def forward_job(program: Forward, numbers: NDArray, places: Jobs, entries: int, fix: Fix) -> Jobs:
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


def reverse_job(code: Jobs, numbers: NDArray, places: Jobs, cplaces: Jobs, rounding: bool) -> Jobs:
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
