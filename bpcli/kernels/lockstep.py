"""Teams: threads that share every step of one sample's recurrence.

With one sample there is nothing in a recurrence to cut but its vectors, and a large matrix is read as fast as the
caches of one core allow. So every member of a team runs the same instructions for the same steps, each for a share of
the entries of what they write, and reads of a matrix only the rows or columns of its share, which stay in its core's
caches from step to step. What reads a whole vector that members have written parts of is preceded by a meeting (see
`bpcli.tape.barriers`), where nobody goes on before all have come. Who computes an entry makes no difference to its
bits.

The first thread to come leads: it begins alone, and at every meeting takes in those who have come after it. Where it
has had to wait long it goes on alone: threads that are not left in peace cost more than they bring.

Members speak through an array of integers, the desk. All of them count themselves on its first line; every other line
is written by one of them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bpcli.kernels.atomics import advance, read, wait, write
from bpcli.kernels.jit import inner

LEAST_STEP = 1 << 16
"""Entries of matrices of `LEAST_MATRIX` entries or more at a step from which a team pays: a meeting, and what is read
after it of what others wrote, take as long as reading two hundred thousand bytes that are in cache."""
LEAST_READ = 1 << 19
"""Entries of matrices that a job reads, for a team to get it: waking threads takes some ten microseconds."""
PIECE_BYTES = 256
"""Shares are made of pieces of so many bytes: whole blocks of any product with one vector, see `bpcli.kernels.matvec`,
and whole lines of cache."""
MOST_MEMBERS = 8
PATIENCE, DEBT = 2000, 40000
"""Pauses, 20 to 50 ns each, that a leader waits at a meeting as a matter of course; and what longer waits may add up to
in a call before it goes on alone. Who has just woken finds nothing in its cache."""
_LINE = 8
"""Integers in a cache line."""
_CAME, _MOST, _OWED, _AGREED, _MEMBERS = 0, _LINE, _LINE + 1, 2 * _LINE, 4 * _LINE
_INVITED, _BEFORE, _AFTER, _STEP, _AT = range(5)
"""What a thread that comes later is told: the number of the meeting from which it is a member, how many members there
were before and are after that, and with which step and line they went on."""
_NEVER = 1 << 60
"""The number of no meeting: it is too late to become a member."""
DESK = _MEMBERS + 2 * MOST_MEMBERS * _LINE
"""Integers on a desk: how many threads have come; how many members there may be, and how much longer than it should the
leader has waited; for a meeting and the one after it, in turns, its number and how many members there are from then on;
for each member a line of what it is told and a line with the last meeting to which it came."""
_SCALE = 1 << 4
"""What numbers of meetings are multiplied by, so that a number of members can be added."""


def desk_for(members: int) -> NDArray[np.int64]:
    """An empty desk for a team of so many threads, at most MOST_MEMBERS."""
    desk = np.zeros(DESK + _LINE, np.int64)
    desk = desk[-desk.ctypes.data // desk.itemsize % _LINE :][:DESK]
    desk[_MOST] = members
    return desk


@inner
def join(desk, step, line, over):
    """A thread's seat (which member it is, 0 leads, of how many, after which meeting); the step and line to begin with.

    A job that a team may run begins with `step` and `line`; who comes too late begins with the step `over`, which is
    none. Who has a desk without entries is alone.
    """
    member = advance(desk, _CAME, 1) if len(desk) > 0 else 0
    if member == 0:
        return (0, 1, 0), step, line
    told = _told(member)
    _await(desk, told + _INVITED, 1)
    meeting = read(desk, told + _INVITED)
    if meeting == _NEVER:
        return (member, 1, 0), over, line
    _await_others(desk, member, desk[told + _BEFORE], meeting)
    return (member, desk[told + _AFTER], meeting), desk[told + _STEP], desk[told + _AT]


@inner
def attend(desk, meets, whole, newcomer, seat, step, line, n, itemsize):
    """The seat after a meeting before `line`, if it `meets` there (no members: let go); which of the n entries that the
    line writes this member takes: the first, and how many, -1 where it leaves it, as the leader alone runs a whole one.

    `newcomer`: a member that comes in with this line has been to the meeting before it.
    """
    member, members, meeting = seat
    if meets and not (newcomer and member > 0):
        meeting += 1
        members = meet(desk, member, members, meeting, step, line)
    if member > 0 and (whole or members == 0):
        return (member, members, meeting), 0, -1
    low, entries = (0, n) if whole else share(n, member, members, itemsize)
    return (member, members, meeting), low, entries


@inner
def meet(desk, member, members, meeting, step, line):
    """Come to the meeting of this number, after which `step` goes on with `line`; how many members there are from then
    on, none for a member who is let go.

    What any member wrote before it all can read after it.
    """
    agreed = _AGREED + meeting % 2 * _LINE
    if member > 0:
        write(desk, _came(member), meeting)
        _await(desk, agreed, meeting * _SCALE)
        _await_others(desk, member, members, meeting)
        after = read(desk, agreed) % _SCALE
        return after if member < after else 0
    after = 1 if desk[_OWED] > DEBT else max(members, min(read(desk, _CAME), desk[_MOST]))
    if members > 1:
        write(desk, agreed, meeting * _SCALE + after)
    for guest in range(members, after):
        told = _told(guest)
        desk[told + _BEFORE], desk[told + _AFTER], desk[told + _STEP], desk[told + _AT] = members, after, step, line
        write(desk, told + _INVITED, meeting)
    if members > 1:
        desk[_OWED] += max(0, _await_others(desk, 0, members, meeting) - PATIENCE)
        if after == 1:
            desk[_MOST] = 1
            dismiss(desk, (0, members, meeting))
    return after


@inner
def dismiss(desk, seat):
    """Where the leader sits, let those go who have not become members; a desk without entries has none."""
    if len(desk) > 0 and seat[0] == 0:
        for guest in range(seat[1], MOST_MEMBERS):
            write(desk, _told(guest) + _INVITED, _NEVER)


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
def part_of(place, size, n, low, entries):
    """Of an argument the entries that go with those from `low` on of a result of n: where they begin, and how many."""
    return (place + low, entries) if size == n else (place, size)


@inner
def _told(member):
    return _MEMBERS + 2 * _LINE * member


@inner
def _came(member):
    return _MEMBERS + 2 * _LINE * member + _LINE


@inner
def _await_others(desk, member, members, meeting):
    """Wait for the members but the leader and this one; for how many pauses."""
    waited = 0
    for other in range(1, members):
        if other != member:
            waited += _await(desk, _came(other), meeting)
    return waited


@inner
def _await(desk, place, number):
    """Wait until there is no less at a place; for how many pauses."""
    waited = 0
    while read(desk, place) < number:
        waited += 1
        wait(waited)
    return waited
