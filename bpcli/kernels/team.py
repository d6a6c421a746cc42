"""Teams: threads that share the products of one vector with large matrices, step after step.

With one sample there is nothing in a recurrence to cut but its products, and a large matrix is read as fast as the
caches of one core allow. Of the threads that are given the same job the first to arrive leads: it runs the tape, and
hands each of those who have arrived after it the same share of every product, which stays in that core's caches from
step to step. A leader who had to wait long goes on alone: threads that are not left in peace cost more than they bring.
Who computes which part of a result makes no difference to its bits.

Leader and helpers speak through an array of integers, the desk. Every line of the desk is written by one of them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bpcli.kernels.atomics import address_of, advance, pause, read, write
from bpcli.kernels.blas import vector_product
from bpcli.kernels.jit import inner, vector_at

LEAST_SHARED = 1 << 15
"""Entries of a matrix whose products are shared."""
LEAST_STEP = 1 << 17
"""Entries of such matrices at a step from which a team pays. It takes a microsecond to tell others of a product and to
get at what they wrote: as long as reading a hundred thousand bytes that are in cache, but few that are not."""
LEAST_READ = 1 << 19
"""Entries of such matrices that a job reads, for a team to get it: waking threads takes some ten microseconds."""
AHEAD = 1 << 13
"""Entries that the leader gets through before a helper has heard of a product, and after it has heard of its end."""
PIECE_BYTES = 256
"""Size of a piece of the result: whole blocks of any product with one vector, see `bpcli.kernels.matvec`."""
MOST_MEMBERS = 8
PATIENCE, DEBT = 2000, 40000
"""Pauses, 20 to 50 ns each, that a leader waits for helpers at a product as a matter of course; and what longer waits
may add up to in a call before it goes on alone. Who has just woken finds nothing in its cache."""
_LINE = 8
"""Integers in a cache line."""
_ARRIVED, _MEMBERS, _PRODUCT, _OWED, _LINES = 0, _LINE, _LINE + 1, _LINE + 2, 2 * _LINE
_TASK, _KIND, _N, _K, _LDW, _X, _W, _Y = range(_LINE)
"""What a helper is told: the number of the product (-1: go), how it is made, sizes, and the addresses of the numbers;
of the n entries of a result it is told of its own alone."""
DESK = _LINES + 2 * MOST_MEMBERS * _LINE
"""Integers on a desk: how many have arrived; members, the number of the product (-1 where the leader is alone), and how
much longer than it should the leader has waited; for each member a line of what it is told and a line that says which
product it has done: 0 before it arrives."""
_TURNED, _ADD, _BACKWARDS = 1, 2, 4


def desk_for(members: int) -> NDArray[np.int64]:
    """An empty desk for a team of so many threads, at most MOST_MEMBERS."""
    desk = np.zeros(DESK + _LINE, np.int64)
    desk = desk[-desk.ctypes.data // desk.itemsize % _LINE :][:DESK]
    desk[_MEMBERS], desk[_PRODUCT] = members, 1
    return desk


@inner
def helped(desk, like):
    """Join the team whose desk this is; whether this thread was a helper, and is done. A desk without entries has none.

    Numbers are of the dtype that the pointer `like` points to.
    """
    member = arrive(desk) if len(desk) > 0 else 0
    if member > 0:
        assist(desk, like, member)
    return member > 0


@inner
def arrive(desk):
    """Which member this thread is: 0 leads."""
    member = advance(desk, _ARRIVED, 1)
    write(desk, _done(member), 1)
    return member


@inner
def dismiss(desk):
    """Let the helpers go, those too that have not arrived yet; there are none where the desk has no entries."""
    if len(desk) == 0:
        return
    desk[_PRODUCT] = -1
    for member in range(desk[_MEMBERS]):
        write(desk, _told(member) + _TASK, -1)


@inner
def assist(desk, like, member):
    """Help until dismissed, with products of the dtype that the pointer `like` points to."""
    line, last, task = _told(member), 1, 0
    while task >= 0:
        task = read(desk, line + _TASK)
        if task > last:
            kind, n, k, ldw = desk[line + _KIND], desk[line + _N], desk[line + _K], desk[line + _LDW]
            tb, add, backwards = kind & _TURNED != 0, kind & _ADD != 0, kind & _BACKWARDS != 0
            X, Y = vector_at(like, desk[line + _X], k), vector_at(like, desk[line + _Y], n)
            W = vector_at(like, desk[line + _W], n * ldw if tb else (k - 1) * ldw + n)
            vector_product(tb, n, k, X, 0, W, 0, ldw, add, Y, 0, backwards)
            write(desk, _done(member), task)
            last = task
        else:
            pause()


@inner
def team_product(desk, tb, n, k, A, a, B, b, ldb, add, C, c, backwards):
    """What `vector_product` computes, by the team whose desk this is; by this thread where the desk has no entries."""
    helpers, share = 0, 0
    if len(desk) > 0 and desk[_PRODUCT] > 0 and n * k >= LEAST_SHARED:
        for member in range(1, desk[_MEMBERS]):
            helpers += int(read(desk, _done(member)) > 0) << member
        share = _share(n, k, helpers, PIECE_BYTES // C.itemsize)
    given = 0
    if share > 0:
        desk[_PRODUCT] += 1
        kind = tb * _TURNED + add * _ADD + backwards * _BACKWARDS
        for member in range(1, desk[_MEMBERS]):
            if helpers >> member & 1:
                line = _told(member)
                desk[line + _KIND], desk[line + _N], desk[line + _K], desk[line + _LDW] = kind, share, k, ldb
                desk[line + _X], desk[line + _Y] = address_of(A, a), address_of(C, c + given)
                desk[line + _W] = address_of(B, b + given * (ldb if tb else 1))
                write(desk, line + _TASK, desk[_PRODUCT])
                given += share
    rest = b + given * (ldb if tb else 1)
    vector_product(tb, n - given, k, A, a, B, rest, ldb, add, C, c + given, backwards)
    if share > 0:
        desk[_OWED] += max(0, _wait(desk, helpers) - PATIENCE)
        if desk[_OWED] > DEBT:
            dismiss(desk)


@inner
def _told(member):
    return _LINES + 2 * _LINE * member


@inner
def _done(member):
    return _LINES + 2 * _LINE * member + _LINE


@inner
def _share(n, k, helpers, piece):
    """Entries of a result (n) of n k multiplications for each of the helpers, in whole pieces."""
    members = 1
    while helpers:
        members, helpers = members + (helpers & 1), helpers >> 1
    return (n - AHEAD // k) // (members * piece) * piece if members > 1 else 0


@inner
def _wait(desk, helpers):
    """Wait for the helpers who share the product; for how many pauses."""
    waited = 0
    for member in range(1, desk[_MEMBERS]):
        if helpers >> member & 1:
            while read(desk, _done(member)) < desk[_PRODUCT]:
                pause()
                waited += 1
    return waited
