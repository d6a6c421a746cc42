"""The thread pool: threads that take jobs which share nothing from the thread that has them.

The thread that calls a kernel with several jobs leads: it publishes the call and takes one part of it after another.
Pool threads that are awake see the call and take parts too, each starting at a place of its own, so that a thread gets
the same part in the next call and finds its numbers in cache. The leader waits only for parts that a thread has taken:
where other programs hold the cores, it has done the work before a sleeping thread gets to run.

A pool thread that has seen no call for a while sleeps. A call's number is odd while the call is being written; a part
is taken by writing the call's number to the part's place, which holds a smaller one until then. So a thread that comes
late finds nothing left, whatever call has been published meanwhile.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from bpcli import kernels
from bpcli.kernels.atomics import advance, exchange, read, wait, write
from bpcli.kernels.jit import inner, vector, vector_at

MOST_THREADS = 64
MOST_PARTS = 256
"""Parts of a call, each of one job or several, that are taken one by one."""
PATIENCE = 16000
"""Pauses, 20 to 50 ns each, that a thread waits for the next call before it sleeps."""
_LINES = 16
"""Integers in two cache lines: processors fetch lines in pairs."""
_NUMBER, _KERNEL, _DONE, _ASLEEP = 0, _LINES, 2 * _LINES, 3 * _LINES
_JOBS, _COUNT, _STRIDE, _VALUES, _MEMBERS = range(_KERNEL + 1, _KERNEL + 6)
_TAKEN = _ASLEEP + MOST_THREADS * _LINES
"""Places of the call's number, the call, the number of its parts that are done, for each thread whether it sleeps, and
for each part the last call in which it was taken."""
_BOARD_SIZE = _TAKEN + MOST_PARTS
"""Integers that the threads share, the board."""

(
    BOARD,  # address of the board, int64 (_BOARD_SIZE,)
    MEMBER,  # number of this thread, 0: the leader
    CALLED,  # address of the kernel to call
    JOBS,  # address of its first job
    COUNT,  # jobs
    STRIDE,  # from one job to the next, bytes
    VALUES,  # address of the values
    MEMBERS,  # most threads that may take part, with the leader
) = range(8)
"""Fields of a job; the first two are written when a thread starts, the others (the leader's) by `ThreadPool.run`."""
JOB = MEMBERS + 1

if kernels.compiling:
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
        """As compiled."""
        ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 4)(kernel)(jobs, count, stride, values)


def pool_span(job, values):  # type: ignore[no-untyped-def]
    """Lead through one call, or wait for calls and take part in them until there has been none for a while."""
    ints = job
    job = vector(job, JOB)
    board = vector_at(ints, job[BOARD], _BOARD_SIZE)
    if job[MEMBER] == 0:
        _lead(board, job)
    else:
        _follow(board, job[MEMBER])


@inner
def _lead(board, job):
    number = read(board, _NUMBER) + 2
    write(board, _NUMBER, number - 1)
    for field in range(MEMBERS - CALLED + 1):
        write(board, _KERNEL + field, job[CALLED + field])
    write(board, _DONE, 0)
    write(board, _NUMBER, number)
    take_part(board, number, 0)
    parts, waited = min(job[COUNT], MOST_PARTS), 0
    while read(board, _DONE) < parts:
        waited += 1
        wait(waited)


@inner
def _follow(board, member):
    last, waited = 0, 0
    while waited < PATIENCE:
        number = read(board, _NUMBER)
        if number % 2 == 0 and number != last:
            take_part(board, number, member)
            last, waited = number, 0
        else:
            waited += 1
            wait(waited)
    write(board, _ASLEEP + member * _LINES, 1)


@inner
def take_part(board, number, member):
    """Take parts of the call of this number until there are none; nothing if another call has replaced it."""
    kernel, jobs, count = read(board, _KERNEL), read(board, _JOBS), read(board, _COUNT)
    stride, values, members = read(board, _STRIDE), read(board, _VALUES), read(board, _MEMBERS)
    if member >= members or read(board, _NUMBER) != number:
        return
    parts = min(count, MOST_PARTS)
    for k in range(parts):
        part = (parts * member // members + k) % parts
        held = read(board, _TAKEN + part)
        if held < number and exchange(board, _TAKEN + part, held, number):
            first, last = count * part // parts, count * (part + 1) // parts
            _call(kernel, jobs + first * stride, last - first, stride, values)
            advance(board, _DONE, 1)


class ThreadPool:
    """The threads of this process; `call` is the compiled `pool_span`. A thread is started when it is first needed."""

    def __init__(self, call: Callable[..., None]) -> None:
        self._call = call
        room = np.zeros(_BOARD_SIZE + _LINES, np.int64)
        self._board = room[-room.ctypes.data // room.itemsize % _LINES :][:_BOARD_SIZE]
        self._job = self._job_of(0)
        self._leading, self._wakeups = threading.Lock(), [threading.Lock()]

    def run(self, kernel: int, jobs: int, count: int, stride: int, values: int, threads: int) -> bool:
        """Run the kernel at an address with `count` jobs, `stride` bytes apart, on at most so many threads.

        Return False, with nothing done, if another Python thread is leading a call.
        """
        members = min(threads, count, MOST_THREADS)
        if not self._leading.acquire(blocking=False):
            return False
        try:
            while len(self._wakeups) < members:
                self._start_thread()
            for member in range(1, members):
                if self._board[_ASLEEP + member * _LINES]:
                    self._board[_ASLEEP + member * _LINES] = 0
                    self._wakeups[member].release()
            self._job[CALLED:] = kernel, jobs, count, stride, values, members
            self._call(self._job.ctypes.data, 1, 0, 0)
        finally:
            self._leading.release()
        return True

    def _job_of(self, member: int) -> NDArray[np.int64]:
        job = np.zeros(JOB, np.int64)
        job[BOARD], job[MEMBER] = self._board.ctypes.data, member
        return job

    def _start_thread(self) -> None:
        member, wakeup = len(self._wakeups), threading.Lock()
        wakeup.acquire()
        self._wakeups.append(wakeup)
        self._board[_ASLEEP + member * _LINES] = 1
        threading.Thread(target=self._serve, args=(wakeup, self._job_of(member)), name="bp", daemon=True).start()

    def _serve(self, wakeup: threading.Lock, job: NDArray[np.int64]) -> None:
        while wakeup.acquire():
            self._call(job.ctypes.data, 1, 0, 0)
