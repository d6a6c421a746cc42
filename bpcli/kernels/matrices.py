"""How matrices stand in a trace: in packed copies for products with several rows, with gaps for those with one."""

from __future__ import annotations

import numpy as np

from bpcli.graph.nodes import Graph, Phase
from bpcli.graph.tape import ADDEND, MODE_B, NONE, OP, OUT, SIZE, SIZE_B, TURNED, ZERO, A, B, Forward, Integers, Reverse
from bpcli.kernels.codes import MATMUL
from bpcli.kernels.rows import PACKED, PACKED_T
from bpcli.kernels.team import LEAST_MATRIX

GAP, GAP_COLUMNS = 16, 512
"""Numbers between the rows of a matrix with a multiple of so many columns: a cache keeps entries of a column that are
pages apart in few of its places, and so no more than half of the columns that a thread has to do with."""


def packed_shape(shape: tuple[int, ...], field: int) -> tuple[int, ...]:
    """(k, n) of the copy of a matrix at PACKED or PACKED_T."""
    return shape if field == PACKED else shape[::-1]


def packed_copies(code: Integers) -> set[tuple[int, int]]:
    """The matrices that instructions multiply rows with, each with the field of the copy that it takes."""
    return {(int(row[A]), PACKED if row[TURNED] else PACKED_T) for row in code if row[OP] == MATMUL}


def without_packed(places: Integers, dtype: np.dtype) -> Integers:
    """`places` as a dtype can use them: complex products have no tile."""
    if dtype.kind != "c":
        return places
    plain = places.copy()
    plain[:, [PACKED, PACKED_T]] = -1
    return plain


def packed(forward: Forward, reverse: Reverse, batch: int, stepwise: bool, apart: bool) -> set[tuple[int, int]]:
    """The matrices that the time loop multiplies several rows with, each with the field of the copy that it takes."""
    first, last = (Phase.INPUT, Phase.OUTPUT) if stepwise else (Phase.RECURRENT, Phase.RECURRENT)
    if batch == 1 and not apart:
        return set()
    there = forward.code[forward.bounds[first] : forward.bounds[last + 1] if batch > 1 else 0]
    back = reverse.code[reverse.bounds[3 - last] : reverse.bounds[4 - first]]
    found = packed_copies(there)
    found |= {(int(r[A]), PACKED_T if r[TURNED] else PACKED) for r in back if r[OP] == MATMUL and r[MODE_B] != NONE}
    return {(n, field) for n, field in found if n not in forward.alias}


def with_gaps(graph: Graph, forward: Forward, reverse: Reverse) -> set[int]:
    """Parameters between whose rows there are gaps: one vector at a time is multiplied with them, and nothing else."""
    recurrent = forward.code[forward.bounds[Phase.RECURRENT] : forward.bounds[Phase.RECURRENT + 1]]
    found = {int(row[A]) for row in recurrent if row[OP] == MATMUL and row[SIZE] * row[SIZE_B] >= LEAST_MATRIX}
    for row in (*forward.code, *reverse.code[reverse.code[:, OP] != ZERO]):
        found -= {int(row[slot]) for slot in ((B, ADDEND, OUT) if row[OP] == MATMUL else (A, B, ADDEND, OUT))}
    owners = {alias.owner for alias in forward.alias.values()} | set(forward.alias)
    nodes = (graph.nodes[n] for n in found - owners)
    return {n.index for n in nodes if n.op == "param" and n.shape[1] % GAP_COLUMNS == 0}
