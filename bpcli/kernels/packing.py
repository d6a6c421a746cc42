"""The packing kernel: copies matrices into panels of columns for products of many rows (see `bpcli.kernels.tiles`)."""

from __future__ import annotations

from bpcli.kernels.jit import vector

(LENGTH, MATRIX, DOWN, ACROSS, DEPTH, COLUMNS, WIDTH, COPY) = range(8)
"""Fields of a job: the length of the values; where a matrix (k, n) begins, and how far its rows and its columns are
apart; k; n; the columns of a panel; where the panels (panel, k, width) begin."""
JOB = COPY + 1


def pack_span(job, values):  # type: ignore[no-untyped-def]
    """Write the panels of one matrix, the last one filled up with zeros."""
    job = vector(job, JOB)
    V = vector(values, job[LENGTH])
    down, across, k, n, width = job[DOWN], job[ACROSS], job[DEPTH], job[COLUMNS], job[WIDTH]
    for j in range(0, n, width):
        wanted = min(width, n - j)
        for i in range(k):
            row, out = job[MATRIX] + i * down + j * across, job[COPY] + j * k + i * width
            if across == 1:
                for c in range(wanted):
                    V[out + c] = V[row + c]
            else:
                for c in range(wanted):
                    V[out + c] = V[row + c * across]
            for c in range(wanted, width):
                V[out + c] = 0
