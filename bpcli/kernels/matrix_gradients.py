"""The matrix-gradient kernel: after the time loop, G += Δᵀ v, or vᵀ Δ where the matrix is used transposed.

Δ are cotangents of a product, v the vectors that the matrix multiplied, a row for each step and sample. The rows of a
large G are shared out among jobs.
"""

from __future__ import annotations

from bpcli.kernels.jit import vector, vector_from
from bpcli.kernels.tiles import transposed_product

(
    FACTORS,  # where F begins, numbers from V; 0: F is V
    LENGTH_V,  # length of F, numbers
    COTANGENTS,  # where C begins, numbers from V
    LENGTH_C,  # length of C, numbers
    TRANSPOSED,  # 1: the network uses the matrix transposed
    ROWS,  # rows of G, the part of the matrix's gradient
    COLUMNS,  # its columns
    DEPTH,  # rows of Δ and v that are summed over at a time
    TIMES,  # how many such blocks of rows
    DELTA,  # where Δ begins in C, offset
    DELTA_STRIDE,  # from one of its rows to the next, numbers
    DELTA_JUMP,  # from one of its blocks of rows to the next, numbers
    VECTOR,  # where v begins in F, offset
    VECTOR_STRIDE,  # from one of its rows to the next, numbers
    VECTOR_JUMP,  # from one of its blocks of rows to the next, numbers
    SUM,  # where G begins in C, offset
) = range(16)
"""Fields of a job, with unit; all written by the schedule."""
JOB = SUM + 1


def matrix_product(job, values):  # type: ignore[no-untyped-def]
    """Add one part of a matrix's gradient: G (ROWS, COLUMNS) += Δᵀ v over TIMES blocks of DEPTH rows."""
    job = vector(job, JOB)
    F = vector_from(values, job[FACTORS], job[LENGTH_V])
    C = vector_from(values, job[COTANGENTS], job[LENGTH_C])
    m, n, k = job[ROWS], job[COLUMNS], job[DEPTH]
    times, out = job[TIMES], job[SUM]
    delta, ldd, jd = job[DELTA], job[DELTA_STRIDE], job[DELTA_JUMP]
    v, ldv, jv = job[VECTOR], job[VECTOR_STRIDE], job[VECTOR_JUMP]
    if job[TRANSPOSED] == 1:
        transposed_product(m, n, k, times, F, v, ldv, jv, C, delta, ldd, jd, C, out)
    else:
        transposed_product(m, n, k, times, C, delta, ldd, jd, F, v, ldv, jv, C, out)
