"""How kernels address rows.

Node n's value at step t, copy o, row i begins at base + t·step + o·outer + i·inner + lane·lane. A table of places has
one line of integers per node (see `bpcli.tape.layout`): base, step, outer, inner, lane, epoch. Shared values
have strides of zero. Rows that lie end to end are treated as one long row. Of a matrix that many rows are multiplied
with, packed copies may stand at PACKED, as it is, and at PACKED_T, transposed (see `bpcli.kernels.tiles`); else -1.
The rows of a matrix are APART numbers from each other, or end to end where that is 0.
"""

from __future__ import annotations

from bpcli.kernels.jit import inner

BASE, STEP, OUTER, INNER_ROW, LANE, EPOCH, PACKED, PACKED_T, APART = range(9)
PLACE_FIELDS = APART + 1


@inner
def address(place, node, t, o, i, lane):
    """Offset of the first entry of a row."""
    where = place[node, BASE] + t * place[node, STEP]
    if o | i | lane:  # of the first row, where there is but one, all this takes as long as finding the step
        where += o * place[node, OUTER] + i * place[node, INNER_ROW] + lane * place[node, LANE]
    return where


@inner
def along(size, n, apart):
    """1 where an argument's rows have an entry for each of the result's n, 0 where they have one for all.

    A single number that all rows share counts as one for all: then rows are one long row.
    """
    return int(size == n and (n > 1 or apart != 0))


@inner
def row_stride(place, node, columns):
    """How far the rows of a matrix with so many columns are from each other."""
    return place[node, APART] if place[node, APART] > 0 else columns
