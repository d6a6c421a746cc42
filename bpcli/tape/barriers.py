"""The lines of a tape with a barrier before them, and those that only the leader of a group runs.

A group shares every step of one sample's recurrence (see `bpcli.kernels.lockstep`). Between two barriers its members
may be at any two lines, so neither may write there what the other reads or writes. Which entries a line reads and
writes follows from the tape and the places, over as many steps as it takes for every order of two lines to occur.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import NamedTuple

from bpcli.graph.operations import OPERATIONS
from bpcli.tape.dependency import DENSE
from bpcli.tape.instructions import (
    ADDEND,
    BASE,
    MATMUL,
    MODE_A,
    NONE,
    OP,
    OUT,
    SIZE,
    SIZE_A,
    SIZE_B,
    STEP,
    ZERO,
    A,
    B,
    Integers,
)
from bpcli.tape.lowering import SLOTS

MOST_LINES = 62
"""Lines of a tape that a group can run: each has a bit of an integer."""
_WHOLE = frozenset(OPERATIONS[name].opcode for name in (*DENSE, "concat"))
"""Operations whose results are not made entry by entry from the entries at the same place."""
_STEPS = 3
"""Steps in which every order of two lines occurs."""


class _Use(NamedTuple):
    """The entries of a node that a line reads or writes: each member its share (`shared`), or all of them."""

    node: int
    entries: int
    shared: bool
    written: bool


class _Line(NamedTuple):
    """A line of a tape: whether members share its work, and what it reads and writes."""

    shared: bool
    uses: Sequence[_Use]


class _Access(NamedTuple):
    """A use at some step: entries `start` to `stop` of the trace; `alone`: by the leader alone."""

    start: int
    stop: int
    shared: bool
    alone: bool
    written: bool


def forward_barriers(code: Integers, places: Integers, steps: int) -> tuple[int, int]:
    """The lines of a forward tape with a barrier before them, and those that only the leader runs, one bit each.

    `steps` is the most that are run in a row.
    """
    return _barriers([_forward_line(row) for row in code.tolist()], places, range(min(steps, _STEPS)))


def reverse_barriers(code: Integers, cotangent_places: Integers, steps: int) -> tuple[int, int]:
    """The same of a reverse tape."""
    return _barriers([_reverse_line(row) for row in code.tolist()], cotangent_places, range(min(steps, _STEPS))[::-1])


def _forward_line(row: Sequence[int]) -> _Line:
    op, n = row[OP], row[SIZE]
    if op == MATMUL:
        uses = [_Use(row[B], row[SIZE_B], False, False), _Use(row[OUT], n, True, True)]
        return _Line(True, uses + [_Use(row[ADDEND], n, True, False)] * (row[ADDEND] >= 0))
    shared = op not in _WHOLE
    arguments = [(row[A], row[SIZE_A]), (row[B], row[SIZE_B])]
    uses = [_Use(node, size, shared and size == n, False) for node, size in arguments if node >= 0]
    return _Line(shared, [*uses, _Use(row[OUT], n, shared, True)])


def _reverse_line(row: Sequence[int]) -> _Line:
    """The cotangents that a line of the reverse tape reads and writes; values are written by none."""
    op, n = row[OP], row[SIZE]
    sizes = {A: row[SIZE_A], B: row[SIZE_B], ADDEND: n}
    targets = [(row[slot], sizes[slot]) for slot, mode in SLOTS if row[mode] != NONE]
    if op == MATMUL and row[MODE_A] == NONE:
        return _Line(True, [_Use(row[OUT], n, False, False), *(_Use(*target, True, True) for target in targets)])
    shared = op not in _WHOLE and all(size == n for _, size in targets)
    uses = [_Use(row[OUT], n, shared, op == ZERO), *(_Use(*target, shared, True) for target in targets)]
    return _Line(shared, uses)


def _barriers(lines: Sequence[_Line], places: Integers, steps: Sequence[int]) -> tuple[int, int]:
    """As many barriers as it takes for no two accesses between them to conflict.

    A line of which members would conflict with each other is the leader's.
    """
    lines = [
        line if _shareable(line, places, steps) else _Line(False, [use._replace(shared=False) for use in line.uses])
        for line in lines
    ]
    before: set[int] = set()
    while (missing := _first_missing(lines, before, places, steps)) is not None:
        before.add(missing)
    alone = sum(1 << number for number, line in enumerate(lines) if not line.shared)
    return sum(1 << number for number in before), alone


def _first_missing(lines: Sequence[_Line], before: set[int], places: Integers, steps: Iterable[int]) -> int | None:
    """The first line that conflicts with one since the last barrier, given barriers `before` some lines."""
    since: list[_Access] = []
    for t in steps:
        for number, line in enumerate(lines):
            if number in before:
                since.clear()
            here = _accesses(line, places, t)
            if any(_conflict(one, other) for one in here for other in since):
                return number
            since += here
    return None


def _shareable(line: _Line, places: Integers, steps: Iterable[int]) -> bool:
    """Whether no member writes what another reads or writes while they run a line together."""
    pairs = (pair for t in steps for pair in combinations(_accesses(line, places, t), 2))
    return line.shared and not any(_conflict(*pair) for pair in pairs)


def _accesses(line: _Line, places: Integers, t: int) -> list[_Access]:
    """The entries that a line reads and writes at step t."""
    starts = [int(places[use.node, BASE] + t * places[use.node, STEP]) for use in line.uses]
    return [
        _Access(start, start + use.entries, use.shared, not line.shared, use.written)
        for start, use in zip(starts, line.uses, strict=True)
    ]


def _conflict(one: _Access, other: _Access) -> bool:
    """Whether one of two members may write what the other uses: not in equal shares, nor if the leader runs both."""
    overlap = one.start < other.stop and other.start < one.stop
    shares = one.shared and other.shared and one[:2] == other[:2]
    return overlap and (one.written or other.written) and not shares and not (one.alone and other.alone)
