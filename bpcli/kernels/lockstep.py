"""Lockstep: a group of threads shares every step of one sample's recurrence.

With one sample, nothing in a recurrence can be cut but its vectors, and one core reads a large matrix no faster than
its caches allow. So every member of a group runs the same instructions for the same steps, each for its share of the
entries of the result, and reads only the rows or columns of a matrix that belong to its share, which stay in its core's
caches from step to step. An instruction that reads entries written by other members is preceded by a barrier (see
`bpcli.tape.barriers`). Which thread computes an entry does not change its bits.

The first thread to arrive leads. It starts alone, and at each barrier admits the threads that have arrived since. After
long waits it continues alone: on a busy machine the others cost more than they bring.

Members communicate through an array of integers, the group. Its first line counts arrivals and is written by all; every
other line has one writer.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bpcli.kernels.atomics import advance, read, wait, write
from bpcli.kernels.jit import inner

LEAST_STEP = 1 << 16
"""Entries of matrices of `LEAST_MATRIX` entries or more at a step from which a group pays: a barrier, and reading what
others wrote before it, take as long as reading two hundred thousand bytes from cache."""
LEAST_READ = 1 << 19
"""Entries of matrices that a job reads from which a group pays: waking threads takes some ten microseconds."""
PIECE_BYTES = 256
"""Shares are whole pieces of so many bytes: whole blocks of any product with one vector (see `bpcli.kernels.matvec`),
and whole cache lines."""
MOST_MEMBERS = 8
PATIENCE, DEBT = 2000, 40000
"""Pauses, 20 to 50 ns each, that the leader waits at a barrier as a matter of course; and the sum of longer waits in a
call after which it continues alone. A thread that has just woken has cold caches, so one long wait is forgiven."""
_LINE = 8
"""Integers in a cache line."""
_ARRIVED = 0
"""Place of the number of threads that have arrived."""
_CAPACITY, _OVERDUE = _LINE, _LINE + 1
"""Places of the most members that are admitted, and of the pauses that the leader has waited beyond its patience."""
_RELEASED = 2 * _LINE
"""Place, for odd and even barriers in turns, of the last barrier's number and the members from then on."""
_MEMBERS = 4 * _LINE
"""Place of two lines for each member: its admission, and the last barrier at which it has arrived."""
_FROM_BARRIER, _BEFORE, _AFTER, _STEP, _AT = range(5)
"""Fields of an admission: the barrier from which the thread is a member, the members before and after it, and the step
and line that follow."""
_NEVER = 1 << 60
"""The barrier of a thread that arrived too late to be admitted."""
GROUP_SIZE = _MEMBERS + 2 * MOST_MEMBERS * _LINE
"""Integers of a group."""
_SCALE = 1 << 4
"""Factor of a barrier's number, so that a number of members can be added to it."""


def new_group(members: int) -> NDArray[np.int64]:
    """The shared integers of a group of at most so many threads, themselves at most MOST_MEMBERS."""
    group = np.zeros(GROUP_SIZE + _LINE, np.int64)
    group = group[-group.ctypes.data // group.itemsize % _LINE :][:GROUP_SIZE]
    group[_CAPACITY] = members
    return group


@inner
def join(group, step, line, end):
    """A thread's membership and where it begins: `(member, members, barriers passed), step, line`; member 0 leads.

    A job begins with `step` and `line`. A thread that is not admitted begins with the step `end`, which is none. An
    empty group has one member.
    """
    member = advance(group, _ARRIVED, 1) if len(group) > 0 else 0
    if member == 0:
        return (0, 1, 0), step, line
    admission = _admission(member)
    _await(group, admission + _FROM_BARRIER, 1)
    number = read(group, admission + _FROM_BARRIER)
    if number == _NEVER:
        return (member, 1, 0), end, line
    _await_others(group, member, group[admission + _BEFORE], number)
    return (member, group[admission + _AFTER], number), group[admission + _STEP], group[admission + _AT]


@inner
def synchronise(group, waits, alone, newcomer, membership, step, line, n, itemsize):
    """The membership after the barrier before `line`, if there is one (`waits`); this member's share of n entries.

    No members are left where the thread is released. The share is its first entry and how many, -1 where a
    line is run by the leader `alone`. A `newcomer`, admitted with this line, has passed its barrier.
    """
    member, members, number = membership
    if waits and not (newcomer and member > 0):
        number += 1
        members = barrier(group, member, members, number, step, line)
    if member > 0 and (alone or members == 0):
        return (member, members, number), 0, -1
    low, entries = (0, n) if alone else share(n, member, members, itemsize)
    return (member, members, number), low, entries


@inner
def barrier(group, member, members, number, step, line):
    """Wait at a barrier, after which `step` continues with `line`; the members from then on, 0 for a released member.

    All that any member wrote before the barrier is visible to all after it.
    """
    released = _RELEASED + number % 2 * _LINE
    if member > 0:
        write(group, _arrival(member), number)
        _await(group, released, number * _SCALE)
        _await_others(group, member, members, number)
        after = read(group, released) % _SCALE
        return after if member < after else 0
    after = 1 if group[_OVERDUE] > DEBT else max(members, min(read(group, _ARRIVED), group[_CAPACITY]))
    if members > 1:
        write(group, released, number * _SCALE + after)
    for new in range(members, after):
        admission = _admission(new)
        group[admission + _BEFORE], group[admission + _AFTER] = members, after
        group[admission + _STEP], group[admission + _AT] = step, line
        write(group, admission + _FROM_BARRIER, number)
    if members > 1:
        group[_OVERDUE] += max(0, _await_others(group, 0, members, number) - PATIENCE)
        if after == 1:
            group[_CAPACITY] = 1
            dismiss(group, (0, members, number))
    return after


@inner
def dismiss(group, membership):
    """Let the leader turn away the threads that have not been admitted; an empty group has none."""
    if len(group) > 0 and membership[0] == 0:
        for late in range(membership[1], MOST_MEMBERS):
            write(group, _admission(late) + _FROM_BARRIER, _NEVER)


@inner
def share(n, member, members, itemsize):
    """The first of a member's share of n entries, and how many they are."""
    if members == 1:
        return 0, n
    piece = PIECE_BYTES // itemsize
    pieces = -(-n // piece)
    first, last = pieces * member // members * piece, min(n, pieces * (member + 1) // members * piece)
    return first, max(0, last - first)


@inner
def share_of_argument(place, size, n, low, entries):
    """Where the entries of an argument that belong to a share of a result of n begin, and how many they are."""
    return (place + low, entries) if size == n else (place, size)


@inner
def _admission(member):
    return _MEMBERS + 2 * _LINE * member


@inner
def _arrival(member):
    return _MEMBERS + 2 * _LINE * member + _LINE


@inner
def _await_others(group, member, members, number):
    """Wait for the members but the leader and this one; return the pauses taken."""
    waited = 0
    for other in range(1, members):
        if other != member:
            waited += _await(group, _arrival(other), number)
    return waited


@inner
def _await(group, place, number):
    """Wait until the number at a place is no smaller; return the pauses taken."""
    waited = 0
    while read(group, place) < number:
        waited += 1
        wait(waited)
    return waited
