"""The lines of a tape with a barrier before them, and those that only the leader runs (see `bpcli.kernels.lockstep`).

Both follow from what each instruction reads and writes, step after step, as ranges of the trace: two members may be
anywhere between two barriers, so there one must not write what the other writes or reads.
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
    MODE_ADDEND,
    MODE_B,
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

MOST_LINES = 62
"""Most lines of a tape that a group can run: each has a bit."""
_WHOLE = frozenset(OPERATIONS[name].opcode for name in (*DENSE, "concat"))
"""Operations of which an entry of the result is not made of the entries at its place."""
_STEPS = 3
"""Steps in which every way that instructions follow each other occurs."""


class _Use(NamedTuple):
    """The entries of a node that an instruction reads or writes: each member its share, or all of them."""

    node: int
    entries: int
    shared: bool
    written: bool


class _Line(NamedTuple):
    """An instruction: whether members share it, and what it reads and writes."""

    shared: bool
    uses: Sequence[_Use]


class _Stretch(NamedTuple):
    """A use at some step: the entries of the trace from `start` to before `stop`; `leaders`: the leader's alone."""

    start: int
    stop: int
    shared: bool
    leaders: bool
    written: bool


def forward_barriers(code: Integers, places: Integers, steps: int) -> tuple[int, int]:
    """The lines with a barrier before them, and those that only the leader runs, a bit each, of a tape's lines.

    They are run for at most so many steps in a row.
    """
    return _barriers([_forward_line(row) for row in code.tolist()], places, range(min(steps, _STEPS)))


def reverse_barriers(code: Integers, cotangent_places: Integers, steps: int) -> tuple[int, int]:
    """The same of lines of the reverse tape."""
    return _barriers([_reverse_line(row) for row in code.tolist()], cotangent_places, range(min(steps, _STEPS))[::-1])


def _forward_line(row: Sequence[int]) -> _Line:
    """An instruction of the tape."""
    op, n = row[OP], row[SIZE]
    if op == MATMUL:
        uses = [_Use(row[B], row[SIZE_B], False, False), _Use(row[OUT], n, True, True)]
        return _Line(True, uses + [_Use(row[ADDEND], n, True, False)] * (row[ADDEND] >= 0))
    shared = op not in _WHOLE
    arguments = [(row[A], row[SIZE_A]), (row[B], row[SIZE_B])]
    uses = [_Use(node, size, shared and size == n, False) for node, size in arguments if node >= 0]
    return _Line(shared, [*uses, _Use(row[OUT], n, shared, True)])


def _reverse_line(row: Sequence[int]) -> _Line:
    """An instruction of the reverse tape, which uses cotangents."""
    op, n = row[OP], row[SIZE]
    taken = [(row[A], row[SIZE_A], MODE_A), (row[B], row[SIZE_B], MODE_B), (row[ADDEND], n, MODE_ADDEND)]
    targets = [(node, size) for node, size, mode in taken if row[mode] != NONE]
    if op == MATMUL and row[MODE_A] == NONE:
        return _Line(True, [_Use(row[OUT], n, False, False), *(_Use(*target, True, True) for target in targets)])
    shared = op not in _WHOLE and all(size == n for _, size in targets)
    uses = [_Use(row[OUT], n, shared, op == ZERO), *(_Use(*target, shared, True) for target in targets)]
    return _Line(shared, uses)


def _barriers(found: Sequence[_Line], places: Integers, steps: Sequence[int]) -> tuple[int, int]:
    """As many barriers as it takes for no two uses between them to conflict.

    An instruction of which members would be in each other's way is the leader's.
    """
    lines = [line if _shareable(line, places, steps) else _leaders(line) for line in found]
    before: set[int] = set()
    while (missing := _first_missing(lines, before, places, steps)) is not None:
        before.add(missing)
    whole = sum(1 << number for number, line in enumerate(lines) if not line.shared)
    return sum(1 << number for number in before), whole


def _first_missing(lines: Sequence[_Line], before: set[int], places: Integers, steps: Iterable[int]) -> int | None:
    """The first line that lacks a barrier, if any."""
    since: list[_Stretch] = []
    for t in steps:
        for number, line in enumerate(lines):
            if number in before:
                since.clear()
            here = _stretches(line, places, t)
            if any(_in_the_way(one, other) for one in here for other in since):
                return number
            since += here
    return None


def _shareable(line: _Line, places: Integers, steps: Iterable[int]) -> bool:
    """Whether no member writes what another writes or reads while they run an instruction together."""
    pairs = (pair for t in steps for pair in combinations(_stretches(line, places, t), 2))
    return line.shared and not any(_in_the_way(*pair) for pair in pairs)


def _leaders(line: _Line) -> _Line:
    """The instruction run by the leader alone."""
    return _Line(False, [use._replace(shared=False) for use in line.uses])


def _stretches(line: _Line, places: Integers, t: int) -> list[_Stretch]:
    """What an instruction uses at step t."""
    found = []
    for use in line.uses:
        start = int(places[use.node, BASE] + t * places[use.node, STEP])
        found.append(_Stretch(start, start + use.entries, use.shared, not line.shared, use.written))
    return found


def _in_the_way(one: _Stretch, other: _Stretch) -> bool:
    """Whether two uses by two members may meet: not if both keep to the same shares, or the leader is alone in both."""
    overlap = one.start < other.stop and other.start < one.stop
    shares = one.shared and other.shared and one[:2] == other[:2]
    return overlap and (one.written or other.written) and not shares and not (one.leaders and other.leaders)
