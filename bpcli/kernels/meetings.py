"""Which lines of a tape a team meets before, and which its leader runs by itself (see `bpcli.kernels.team`).

Read off what each instruction reads and writes, a step after the other, as stretches of the trace: two members may be
anywhere between two meetings, so there one must not write what the other writes or reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from bpcli.graph.tape import (
    ADDEND,
    MODE_A,
    MODE_ADDEND,
    MODE_B,
    NONE,
    OP,
    OUT,
    SIZE,
    SIZE_A,
    SIZE_B,
    ZERO,
    A,
    B,
    Integers,
)
from bpcli.kernels.codes import (
    ADD,
    CONCAT,
    DIVIDE,
    DOT,
    LOG_SOFTMAX,
    LOGSUMEXP,
    MATMAT,
    MATMUL,
    MULTIPLY,
    SOFTMAX,
    SUBTRACT,
    SUM,
    TRANSPOSE,
)
from bpcli.kernels.rows import BASE, STEP

MOST_LINES = 62
"""Lines of a tape that a team can run: each has a bit."""
_OPERATORS = frozenset({ADD, SUBTRACT, MULTIPLY, DIVIDE})
_WHOLE = frozenset({MATMAT, TRANSPOSE, SUM, DOT, LOGSUMEXP, SOFTMAX, LOG_SOFTMAX, CONCAT})
"""Operations of which an entry of the result is not made of the entries at its place."""
_STEPS = 3
"""Steps in which every way that instructions follow each other occurs."""


class _Use(NamedTuple):
    """The entries of a node that an instruction reads or writes: each member its share, or all of them."""

    node: int
    entries: int
    shared: bool
    written: bool


def forward_meetings(code: Integers, places: Integers, steps: int) -> tuple[int, int]:
    """The lines before which a team meets, and those that the leader runs by itself, a bit each, of a tape's lines.

    They are run for at most so many steps in a row.
    """
    return _meetings([_forward_uses(row) for row in code.tolist()], places, range(min(steps, _STEPS)))


def reverse_meetings(code: Integers, cotangent_places: Integers, steps: int) -> tuple[int, int]:
    """The same of lines of the reverse tape."""
    return _meetings([_reverse_uses(row) for row in code.tolist()], cotangent_places, range(min(steps, _STEPS))[::-1])


def _forward_uses(row: Sequence[int]) -> tuple[bool, list[_Use]]:
    """Whether members share an instruction, and what it reads and writes."""
    op, n = row[OP], row[SIZE]
    if op == MATMUL:
        uses = [_Use(row[B], row[SIZE_B], False, False), _Use(row[OUT], n, True, True)]
        return True, uses + [_Use(row[ADDEND], n, True, False)] * (row[ADDEND] >= 0)
    shared = op not in _WHOLE
    arguments = [(row[A], row[SIZE_A]), (row[B], row[SIZE_B])]
    uses = [_Use(node, size, shared and size == n, False) for node, size in arguments if node >= 0]
    return shared, [*uses, _Use(row[OUT], n, shared, True)]


def _reverse_uses(row: Sequence[int]) -> tuple[bool, list[_Use]]:
    """The same of cotangents."""
    op, n = row[OP], row[SIZE]
    taken = [(row[A], row[SIZE_A], MODE_A), (row[B], row[SIZE_B], MODE_B), (row[ADDEND], n, MODE_ADDEND)]
    targets = [(node, size) for node, size, mode in taken if row[mode] != NONE]
    if op == MATMUL and row[MODE_A] == NONE:
        return True, [_Use(row[OUT], n, False, False), *(_Use(*target, True, True) for target in targets)]
    shared = op != MATMUL and op not in _WHOLE and all(size == n for _, size in targets)
    return shared, [_Use(row[OUT], n, shared, op == ZERO), *(_Use(*target, shared, True) for target in targets)]


def _meetings(lines: Sequence[tuple[bool, Iterable[_Use]]], places: Integers, steps: Iterable[int]) -> tuple[int, int]:
    """As many meetings as it takes for no two uses between them to be in each other's way."""
    before: set[int] = set()
    while (missing := _first_missing(lines, before, places, steps)) is not None:
        before.add(missing)
    whole = sum(1 << line for line, (shared, _) in enumerate(lines) if not shared)
    return sum(1 << line for line in before), whole


def _first_missing(
    lines: Sequence[tuple[bool, Iterable[_Use]]], before: set[int], places: Integers, steps: Iterable[int]
) -> int | None:
    """The first line before which there has to be a meeting that is not among those there are."""
    since: list[tuple[int, int, bool, bool, bool]] = []
    for t in steps:
        for line, (everyone, uses) in enumerate(lines):
            if line in before:
                since.clear()
            here = []
            for use in uses:
                start = int(places[use.node, BASE] + t * places[use.node, STEP])
                here.append((start, start + use.entries, use.shared, everyone, use.written))
            if any(_in_the_way(one, other) for one in here for other in since):
                return line
            since += here
    return None


def _in_the_way(one: tuple[int, int, bool, bool, bool], other: tuple[int, int, bool, bool, bool]) -> bool:
    """Whether two uses by two members may meet: not if both keep to the same shares, or the leader is alone in both."""
    apart = one[1] <= other[0] or other[1] <= one[0]
    reads = not (one[4] or other[4])
    shares = one[2] and other[2] and one[:2] == other[:2]
    leaders = not one[3] and not other[3]
    return not (apart or reads or shares or leaders)
