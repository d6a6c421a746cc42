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
    DEPTH,
    TIMES,
    DELTA,
    DELTA_STRIDE,
    DELTA_JUMP,
    VECTOR,
    VECTOR_STRIDE,
    VECTOR_JUMP,
    SUM,
) = range(16)
"""Fields of a job: the arrays (how far F and C begin from `values`), then G (rows, columns) at SUM += Δᵀ v over `DEPTH`
rows, or vᵀ Δ where turned, and that `TIMES` times, a jump from one to the next."""
JOB = SUM + 1


def matrix_product(job, values):  # type: ignore[no-untyped-def]
    """Add one stretch of a matrix's gradient."""
    job = vector(job, JOB)
    F = vector_from(values, job[FACTORS], job[LENGTH_V])
    C = vector_from(values, job[COTANGENTS], job[LENGTH_C])
    m, n, k = job[ROWS], job[COLUMNS], job[DEPTH]
    times, out = job[TIMES], job[SUM]
    delta, ldd, jd = job[DELTA], job[DELTA_STRIDE], job[DELTA_JUMP]
    v, ldv, jv = job[VECTOR], job[VECTOR_STRIDE], job[VECTOR_JUMP]
    if job[TURNED_] == 1:
        transposed_product(m, n, k, times, F, v, ldv, jv, C, delta, ldd, jd, C, out)
    else:
        transposed_product(m, n, k, times, C, delta, ldd, jd, F, v, ldv, jv, C, out)
