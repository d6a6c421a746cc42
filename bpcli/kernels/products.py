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
    DELTA,
    DELTA_STRIDE,
    VECTOR,
    VECTOR_STRIDE,
    SUM,
) = range(13)
"""Fields of a job: the arrays (how far F and C begin from `values`), then G (rows, columns) at SUM += Δᵀ v over `DEPTH`
rows, or vᵀ Δ where turned."""
JOB = SUM + 1


def matrix_product(job, values):  # type: ignore[no-untyped-def]
    """Add one stretch of a matrix's gradient."""
    job = vector(job, JOB)
    F = vector_from(values, job[FACTORS], job[LENGTH_V])
    C = vector_from(values, job[COTANGENTS], job[LENGTH_C])
    m, n, k = job[ROWS], job[COLUMNS], job[DEPTH]
    delta, ldd, v, ldv, out = job[DELTA], job[DELTA_STRIDE], job[VECTOR], job[VECTOR_STRIDE], job[SUM]
    if job[TURNED_] == 1:
        transposed_product(m, n, k, F, v, ldv, C, delta, ldd, C, out, n)
    else:
        transposed_product(m, n, k, C, delta, ldd, F, v, ldv, C, out, n)
