"""The influence kernel of RTRL: M ← J M + M̄ and g += q M, block by block of parameters.

M is stored transposed, (batch, P, N): a block of parameters is a block of rows, small enough for the cache, and is
taken through all steps of a chunk before the next one is touched. J(t) and M̄(t) depend on the forward pass alone.
"""

from __future__ import annotations

from bpcli.kernels.blas import gemm
from bpcli.kernels.jit import inner, matrix_at, vector, vector_at
from bpcli.kernels.tiles import packed_product

(
    LENGTH_M,
    ADDRESS_V,
    LENGTH_V,
    ADDRESS_C,
    LENGTH_C,
    ADDRESS_Q,
    ADDRESS_G,
    ADDRESS_S,
    LENGTH_S,
    SOURCES,
    SOURCE_COUNT,
    ENTRIES,
    ENTRY_COUNT,
    STATES,
    PARAMETERS,
    BATCH,
    STEPS,
    STEP0,
    JACOBIANS,
    JACOBIAN_ROW,
    BLOCK,
    FIRST_ITEM,
    LAST_ITEM,
    SCRATCH,
) = range(24)
"""Fields of a job. Items number (sample, block of parameters) pairs; row r's Jacobian stands packed and transposed at
JACOBIANS + r JACOBIAN_ROW in C; SCRATCH is where the job's spare block begins."""
JOB = SCRATCH + 1

(ROW, COUNT, KIND, DELTA, DELTA_ROW, DELTA_SEED, VECTOR, VECTOR_ROW, COLUMNS, TURNED, LISTED) = range(11)
"""Fields of a source of immediate influence: its rows of M, the cotangents Δ (row r, seed i, entry) and, for a matrix,
the vectors v (row r, entry), the matrix's columns, whether it is used transposed, and where its entries are listed
(-1: all)."""
SOURCE = LISTED + 1

MATRIX, SHARED, STEPWISE = range(3)
"""Kinds of source: a matrix in a product; a static vector or scalar;
an input, whose rows are counted over all steps."""


def influence_span(job, values):  # type: ignore[no-untyped-def]
    """Take some blocks of some samples' influence matrices through the steps of a chunk. `values` are M."""
    ints = job
    job = vector(job, JOB)
    N, P, B, block = job[STATES], job[PARAMETERS], job[BATCH], job[BLOCK]
    M = vector(values, job[LENGTH_M])
    V = vector_at(values, job[ADDRESS_V], job[LENGTH_V])
    C = vector_at(values, job[ADDRESS_C], job[LENGTH_C])
    Q = vector_at(values, job[ADDRESS_Q], (job[STEPS] + 1) * B * N)
    G = vector_at(values, job[ADDRESS_G], B * P)
    S = vector_at(values, job[ADDRESS_S], job[LENGTH_S])
    sources = matrix_at(ints, job[SOURCES], job[SOURCE_COUNT], SOURCE)
    entries = vector_at(ints, job[ENTRIES], job[ENTRY_COUNT])
    blocks = -(-P // block)
    for item in range(job[FIRST_ITEM], job[LAST_ITEM]):
        b, p0 = item // blocks, item % blocks * block
        p1 = min(P, p0 + block)
        _take_through(job, N, B, P, M, V, C, Q, G, S, sources, entries, b, p0, p1)


@inner
def _take_through(job, N, B, P, M, V, C, Q, G, S, sources, entries, b, p0, p1):
    """One block of one sample through all steps."""
    steps, home, spare, count = job[STEPS], (b * P + p0) * N, job[SCRATCH], p1 - p0
    _collect(M, home, Q, b * N, G, b * P + p0, N, count)
    for t in range(steps):
        r = t * B + b
        jacobian = job[JACOBIANS] + r * job[JACOBIAN_ROW]
        if t % 2 == 0:
            packed_product(count, N, N, M, home, N, C, jacobian, False, S, spare, N)
            _add_immediate(S, spare, N, V, C, sources, entries, r, job[STEP0] + t, p0, p1, S, spare + count * N)
            _collect(S, spare, Q, ((t + 1) * B + b) * N, G, b * P + p0, N, count)
        else:
            packed_product(count, N, N, S, spare, N, C, jacobian, False, M, home, N)
            _add_immediate(M, home, N, V, C, sources, entries, r, job[STEP0] + t, p0, p1, S, spare + count * N)
            _collect(M, home, Q, ((t + 1) * B + b) * N, G, b * P + p0, N, count)
    if steps % 2 == 1:
        for k in range(count * N):
            M[home + k] = S[spare + k]


@inner
def _collect(M, m, Q, q, G, g, N, count):
    """g += M q, M (count, N)."""
    for i in range(N):
        if Q[q + i] != 0:
            gemm(False, True, 1, count, N, Q, q, N, M, m, N, True, G, g, count)
            return


@inner
def _add_immediate(M, m, N, V, C, sources, entries, r, t, p0, p1, S, column):
    """Add M̄ᵀ to rows p0..p1 of Mᵀ (at m in M); S[column:] has room for one column of Δ."""
    for s in range(len(sources)):
        source = sources[s]
        start, kind = source[ROW], source[KIND]
        if kind == STEPWISE:
            start += t * source[COLUMNS]
        first, last = max(p0, start), min(p1, start + source[COUNT])
        held, row, col, before = -1, 0, -1, -1
        for p in range(first, last):
            e = p - start
            if source[LISTED] >= 0:
                e = entries[source[LISTED] + e]
            j, factor = e, C[0] * 0 + 1
            if kind == MATRIX:
                col += 1
                if e != before + 1 or col == source[COLUMNS] or before < 0:  # a division takes as long as the rest
                    row, col = e // source[COLUMNS], e % source[COLUMNS]
                before = e
                j = col if source[TURNED] == 1 else row
                factor = V[source[VECTOR] + r * source[VECTOR_ROW] + (row if source[TURNED] == 1 else col)]
            if j != held:
                low, high = _gather(C, source[DELTA] + r * source[DELTA_ROW] + j, source[DELTA_SEED], N, S, column)
                held = j
            out = m + (p - p0) * N
            for i in range(low, high):
                M[out + i] += factor * S[column + i]


@inner
def _gather(C, start, stride, N, S, column):
    """Copy a column of Δ, one entry for each seed; the stretch of seeds outside which it is zero."""
    low, high = N, 0
    for i in range(N):
        d = C[start + i * stride]
        S[column + i] = d
        if d != 0:
            low, high = min(low, i), i + 1
    return low, high
