"""The crew: threads that take jobs which share nothing off the hands of the one that has them.

Whoever has a call with several jobs leads: it puts the call on the desk and takes one job after another. Threads that
are awake see the call and take jobs too, each beginning at a place of its own, so that the same thread gets the same
job in the next call and finds its numbers in cache. Nobody is waited for but who has taken a job: where other programs
have the cores, the leader has done the work before a thread that sleeps gets to run.

A thread that has seen no call for a while sleeps. The desk's number of the call is odd while the call is being written;
a job is taken by writing the call's number to the job's place, which holds a smaller one until then. So who comes late
finds nothing left, whatever has been put on the desk meanwhile.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from bpcli.kernels import mode
from bpcli.kernels.atomics import advance, exchange, read, wait, write
from bpcli.kernels.jit import inner, vector, vector_at

MOST_THREADS = 64
MOST_PARTS = 256
"""Parts of a call, of one job or several, that are taken one by one."""
PATIENCE = 16000
"""Pauses, 20 to 50 ns each, that a thread waits for the next call before it sleeps."""
_LINES = 16
"""Integers in two cache lines: processors fetch lines in pairs."""
_NUMBER, _KERNEL, _DONE, _ASLEEP = 0, _LINES, 2 * _LINES, 3 * _LINES
_JOBS, _COUNT, _STRIDE, _VALUES, _MEMBERS = range(_KERNEL + 1, _KERNEL + 6)
_TAKEN = _ASLEEP + MOST_THREADS * _LINES
"""The call's number; the call; how many of its parts are done; which threads sleep; which call took each part last."""
_DESK = _TAKEN + MOST_PARTS

DESK, MEMBER, CALLED, JOBS, COUNT, STRIDE, VALUES, MEMBERS = range(8)
"""Fields of a job: the desk's address; which thread this is, 0 leads; of the leader's call the kernel's address and the
jobs', their count and stride, where values begin, and how many threads may take part."""
JOB = MEMBERS + 1

if mode.compiling:
    from llvmlite import ir
    from numba import types
    from numba.core import cgutils
    from numba.extending import intrinsic

    @intrinsic
    def _call(typingctx, kernel, jobs, count, stride, values):  # type: ignore[no-untyped-def]
        """Call the machine code at an address with some jobs."""

        def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
            pointer, integer = cgutils.voidptr_t, ir.IntType(64)
            kind = ir.FunctionType(ir.VoidType(), [pointer, integer, integer, pointer])
            function = builder.inttoptr(args[0], kind.as_pointer())
            first, numbers = (builder.inttoptr(args[k], pointer) for k in (1, 4))
            builder.call(function, [first, args[2], args[3], numbers])
            return context.get_dummy_value()

        return types.void(*[types.int64] * 5), codegen

else:

    def _call(kernel, jobs, count, stride, values):  # type: ignore[no-untyped-def]
        """The same where this module is not compiled."""
        ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 4)(kernel)(jobs, count, stride, values)


def crew_span(job, values):  # type: ignore[no-untyped-def]
    """Lead through one call, or wait for calls and take part in them until there has been none for a while."""
    ints = job
    job = vector(job, JOB)
    desk = vector_at(ints, job[DESK], _DESK)
    if job[MEMBER] == 0:
        _lead(desk, job)
    else:
        _follow(desk, job[MEMBER])


@inner
def _lead(desk, job):
    number = read(desk, _NUMBER) + 2
    write(desk, _NUMBER, number - 1)
    for field in range(MEMBERS - CALLED + 1):
        write(desk, _KERNEL + field, job[CALLED + field])
    write(desk, _DONE, 0)
    write(desk, _NUMBER, number)
    take_part(desk, number, 0)
    parts, waited = min(job[COUNT], MOST_PARTS), 0
    while read(desk, _DONE) < parts:
        waited += 1
        wait(waited)


@inner
def _follow(desk, member):
    last, waited = 0, 0
    while waited < PATIENCE:
        number = read(desk, _NUMBER)
        if number % 2 == 0 and number != last:
            take_part(desk, number, member)
            last, waited = number, 0
        else:
            waited += 1
            wait(waited)
    write(desk, _ASLEEP + member * _LINES, 1)


@inner
def take_part(desk, number, member):
    """Take parts of the call of this number until there are none; nothing where it is not on the desk any more."""
    kernel, jobs, count = read(desk, _KERNEL), read(desk, _JOBS), read(desk, _COUNT)
    stride, values, members = read(desk, _STRIDE), read(desk, _VALUES), read(desk, _MEMBERS)
    if member >= members or read(desk, _NUMBER) != number:
        return
    parts = min(count, MOST_PARTS)
    for k in range(parts):
        part = (parts * member // members + k) % parts
        held = read(desk, _TAKEN + part)
        if held < number and exchange(desk, _TAKEN + part, held, number):
            first, last = count * part // parts, count * (part + 1) // parts
            _call(kernel, jobs + first * stride, last - first, stride, values)
            advance(desk, _DONE, 1)


class Crew:
    """The threads of this process; `call` is the compiled `crew_span`. A thread is made when it is first wanted."""

    def __init__(self, call: Callable[..., None]) -> None:
        self._call = call
        room = np.zeros(_DESK + _LINES, np.int64)
        self._desk = room[-room.ctypes.data // room.itemsize % _LINES :][:_DESK]
        self._job = self._job_of(0)
        self._leading, self._alarms = threading.Lock(), [threading.Lock()]

    def run(self, kernel: int, jobs: int, count: int, stride: int, values: int, threads: int) -> bool:
        """Run the kernel at an address with `count` jobs, `stride` bytes apart, on so many threads, or fewer.

        False, and nothing is done, where another thread of Python's leads already.
        """
        members = min(threads, count, MOST_THREADS)
        if not self._leading.acquire(blocking=False):
            return False
        try:
            while len(self._alarms) < members:
                self._hire()
            for member in range(1, members):
                if self._desk[_ASLEEP + member * _LINES]:
                    self._desk[_ASLEEP + member * _LINES] = 0
                    self._alarms[member].release()
            self._job[CALLED:] = kernel, jobs, count, stride, values, members
            self._call(self._job.ctypes.data, 1, 0, 0)
        finally:
            self._leading.release()
        return True

    def _job_of(self, member: int) -> NDArray[np.int64]:
        job = np.zeros(JOB, np.int64)
        job[DESK], job[MEMBER] = self._desk.ctypes.data, member
        return job

    def _hire(self) -> None:
        member, alarm = len(self._alarms), threading.Lock()
        alarm.acquire()
        self._alarms.append(alarm)
        self._desk[_ASLEEP + member * _LINES] = 1
        threading.Thread(target=self._serve, args=(alarm, self._job_of(member)), name="bp", daemon=True).start()

    def _serve(self, alarm: threading.Lock, job: NDArray[np.int64]) -> None:
        while alarm.acquire():
            self._call(job.ctypes.data, 1, 0, 0)
