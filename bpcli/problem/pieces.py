"""How the work on perturbed copies is cut into blocks, which fit into cache and may be sent away one by one."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bpcli.kernels.reach import Reach
from bpcli.problem.elsewhere import Piece, Values

BLOCK_ENTRIES = 1 << 18
"""Numbers that the copies of one block may take: some megabytes."""
Indices = NDArray[np.int64]
Size = tuple[int, int, int]
"""The length of windows, with their rows and steps."""


@dataclass(frozen=True)
class Spot:
    """Where a node's value is changed in windows of one `length`: `step` steps after their start, or, where the length
    is 0, at each step by itself whose loss counts. `times (windows,)` are the steps that this comes to."""

    length: int
    step: int
    times: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Shift:
    """Copies of which each has one of the `entries` of a node's value changed at a spot, by its own of the `deltas`."""

    spot: Spot
    entries: Indices
    deltas: Values


def of_leaves(
    own: Reach, size: Size, nodes: Indices, entries: Indices, deltas: Values
) -> Iterator[tuple[slice, Piece]]:
    """Copies with changes of leaves, block by block."""
    length, rows, steps = size
    most = max(1, BLOCK_ENTRIES // max(1, own.entries(rows, steps)))
    for start in range(0, len(entries), most):
        block = slice(start, min(len(entries), start + most))
        flops = own.flops * rows * steps * (block.stop - start)
        yield block, Piece(length, nodes[block], entries[block], deltas[block], flops)


def of_value(
    own: Reach, node: int, size: Size, shifts: Sequence[tuple[int, Shift]]
) -> Iterator[tuple[list[int], Piece]]:
    """Copies with changes of a node's value at spots of one length, block by block, with the numbers of the shifts that
    the groups of copies belong to: those of one spot begin together, and the first of them is not changed."""
    _, rows, steps = size
    most = max(2, BLOCK_ENTRIES // max(1, own.entries(rows, steps)))
    units: list[tuple[int, Shift]] = []
    copies = 0
    for number, shift in shifts:
        parts = -(-len(shift.entries) // (most - 1))
        split = (np.array_split(a, parts) for a in (shift.entries, shift.deltas))
        for entries, deltas in zip(*split, strict=True):
            if units and (copies + len(entries) + 1 > most or shift.spot.step <= units[-1][1].spot.step):
                yield _joined(own, node, size, units)
                units, copies = [], 0
            units.append((number, Shift(shift.spot, entries, deltas)))
            copies += len(entries) + 1
    if units:
        yield _joined(own, node, size, units)


def _joined(own: Reach, node: int, size: Size, units: Sequence[tuple[int, Shift]]) -> tuple[list[int], Piece]:
    length, rows, steps = size
    ends = list(itertools.accumulate(len(shift.entries) + 1 for _, shift in units))
    first = [0, *ends[:-1]]
    nodes, entries = np.full(ends[-1], node), np.zeros(ends[-1], np.int64)
    deltas, starts = np.zeros(ends[-1], units[0][1].deltas.dtype), np.zeros(ends[-1], np.int64)
    nodes[first] = -1
    for (_, shift), start, end in zip(units, first, ends, strict=True):
        entries[start + 1 : end], deltas[start + 1 : end] = shift.entries, shift.deltas
        starts[start:end] = shift.spot.step
    flops = own.flops * rows * float((steps - starts).sum())
    return [number for number, _ in units], Piece(length, nodes, entries, deltas, flops, starts)
