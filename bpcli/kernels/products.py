"""The matrix-gradient kernel: after the time loop, one product per stretch of rows of each matrix."""

from __future__ import annotations

from bpcli.kernels.jit import vector, vector_from
from bpcli.kernels.tiles import transposed_product

(
    FACTORS,
    LENGTH_V,
    COTANGENTS,
    LENGTH_C,
    TURNED_,
    ROWS,
    COLUMNS,
    BLOCKS,
    DEPTH,
    DELTA,
    DELTA_STRIDE,
    DELTA_JUMP,
    VECTOR,
    VECTOR_STRIDE,
    VECTOR_JUMP,
    SUM,
) = range(16)
"""Fields of a job: the arrays (how far F and C begin from `values`), then G (rows, columns) at SUM += Δᵀ v, or vᵀ Δ
where turned, over BLOCKS blocks of DEPTH rows; strides are from row to row, jumps from block to block."""
JOB = SUM + 1


def matrix_product(job, values):  # type: ignore[no-untyped-def]
    """Add one stretch of a matrix's gradient."""
    job = vector(job, JOB)
    F = vector_from(values, job[FACTORS], job[LENGTH_V])
    C = vector_from(values, job[COTANGENTS], job[LENGTH_C])
    m, n, k, blocks, out = job[ROWS], job[COLUMNS], job[DEPTH], job[BLOCKS], job[SUM]
    delta, ldd, jump = job[DELTA], job[DELTA_STRIDE], job[DELTA_JUMP]
    v, ldv, leap = job[VECTOR], job[VECTOR_STRIDE], job[VECTOR_JUMP]
    if job[TURNED_] == 1:
        transposed_product(m, n, k, blocks, F, v, ldv, leap, C, delta, ldd, jump, C, out, n)
    else:
        transposed_product(m, n, k, blocks, C, delta, ldd, jump, F, v, ldv, leap, C, out, n)
