"""The influence kernel of RTRL: g += q M and M ← J M + M̄, block by block of columns.

M (N, P) stands in panels of columns, (sample, panel, N, width): a panel is the packed factor of a product with J as it
is (see `bpcli.kernels.tiles`). A block of panels, small enough for the cache, is taken through all steps of a chunk
before the next one is touched. J(t), M̄(t) and q(t) depend on the forward pass alone.

M is not needed after the final step, and of the M before it only the product with q: where that M lies within a chunk,
q (J M + M̄) is taken as (q J) M + q M̄.
"""

from __future__ import annotations

from bpcli.kernels.blas import gemm
from bpcli.kernels.jit import inner, matrix_at, vector, vector_at, vector_from
from bpcli.kernels.tiles import packed_product

(
    LENGTH,  # length of the array that holds all numbers, from `values` on
    PARTS,  # address of the table of parts of the state, int64 (PART_COUNT, PART)
    PART_COUNT,
    SOURCES,  # address of the table of sources of M̄, int64 (SOURCE_COUNT, SOURCE)
    SOURCE_COUNT,
    ENTRIES,  # address of the lists of sparse entries and of shifts, int64 (ENTRY_COUNT,)
    ENTRY_COUNT,
    PANELS,  # address of the table of panels, int64 (PANEL_COUNT, PANEL)
    PANEL_COUNT,
    PIECES,  # address of the table of pieces of panels, int64 (PIECE_COUNT, PIECE)
    PIECE_COUNT,
    WIDTH,  # columns of a panel
    STATES,  # N, entries of the state
    BATCH,  # samples
    STEP0,  # first step of the chunk
    STEPS,  # steps of the chunk
    ADVANCES,  # steps of the chunk after which M is needed: all, or all but the final step
    INFLUENCE,  # where M (sample, panel, N, width) begins, offset
    GRADIENT,  # where g (sample, panel, width) begins, offset
    JACOBIANS,  # where J (step, sample, N, N) begins, offset
    SPARE,  # where the job's spare block, and after it room for q J, begins, offset
    BLOCK,  # panels of a block
    FIRST_ITEM,  # first (sample, block) pair of the job, counted sample by sample; cut
    LAST_ITEM,  # pair after the last one; cut
) = range(24)
"""Fields of a job, with unit; written by `RtrlSchedule`."""
JOB = LAST_ITEM + 1

(
    SIZE,  # entries
    CREDIT,  # where its part of q begins, offset of row 0
    CREDIT_ROW,  # from one row (step, sample) of q to the next, numbers
) = range(3)
"""Fields of a part of the state."""
PART = CREDIT_ROW + 1

(
    BIRTH,  # step before which its columns of M are zero
    LOW,  # first row that may differ from zero after that step
    HIGH,  # row after the last one that may
    FIRST_PIECE,  # its first piece
    LAST_PIECE,  # piece after its last one
) = range(5)
"""Fields of a panel."""
PANEL = LAST_PIECE + 1

(
    FROM,  # its first column of the panel
    TO,  # column after its last one
    SOURCE_OF,  # line of its source in the table of sources
    STEP,  # the step at which the source contributes, -1: every step
    ENTRY,  # entry of the source that the first column stands for
    ROW_OF,  # that entry's row, unless the source lists its entries
    COLUMN_OF,  # that entry's column, unless the source lists its entries
) = range(7)
"""Fields of a piece of a panel: neighbouring columns with one source."""
PIECE = COLUMN_OF + 1

(
    KIND,  # MATRIX or VECTOR_ITSELF
    DELTA,  # where the cotangents Δ (row, seed, entry) begin, offset
    DELTA_ROW,  # from one row (step, sample) of Δ to the next, numbers
    DELTA_SEED,  # from one seed, an entry of the new state, to the next, numbers
    VECTOR,  # of a matrix, where the vectors v (row, entry) that it multiplies begin, offset
    VECTOR_ROW,  # from one row of v to the next, numbers
    COLUMNS,  # columns of the matrix, entries of the vector
    TRANSPOSED,  # 1: the network uses the matrix transposed
    LISTED,  # where its existing entries are listed in ENTRIES, -1: all exist
    SHIFTS,  # where its shifts begin in ENTRIES: entry j of Δ is zero but for the seeds j + shift
    SHIFT_COUNT,  # 0: any seed
) = range(11)
"""Fields of a source of M̄."""
SOURCE = SHIFT_COUNT + 1

MATRIX, VECTOR_ITSELF = range(2)
"""Kinds of source: a matrix in a product; a vector or scalar."""


def influence_span(job, values):  # type: ignore[no-untyped-def]
    """Take the blocks FIRST_ITEM to LAST_ITEM of the influence matrices through the steps of a chunk."""
    ints = job
    job = vector(job, JOB)
    V = vector_from(values, 0, job[LENGTH])
    parts = matrix_at(ints, job[PARTS], job[PART_COUNT], PART)
    sources = matrix_at(ints, job[SOURCES], job[SOURCE_COUNT], SOURCE)
    entries = vector_at(ints, job[ENTRIES], job[ENTRY_COUNT])
    panels = matrix_at(ints, job[PANELS], job[PANEL_COUNT], PANEL)
    pieces = matrix_at(ints, job[PIECES], job[PIECE_COUNT], PIECE)
    blocks = -(-job[PANEL_COUNT] // job[BLOCK])
    for item in range(job[FIRST_ITEM], job[LAST_ITEM]):
        first = item % blocks * job[BLOCK]
        last = min(job[PANEL_COUNT], first + job[BLOCK])
        _advance_block(job, V, parts, sources, entries, panels, pieces, item // blocks, first, last)


@inner
def _advance_block(job, V, parts, sources, entries, panels, pieces, b, first, last):
    """One block of one sample through all steps, to the spare block and back."""
    N, width = job[STATES], job[WIDTH]
    size, column = N * width, (b * job[PANEL_COUNT] + first) * width
    now, after, through = job[INFLUENCE] + column * N, job[SPARE], job[SPARE] + job[BLOCK] * N * width
    ending = job[ADVANCES] < job[STEPS]
    for t in range(job[ADVANCES] if ending and job[ADVANCES] > 0 else job[STEPS]):
        r = t * job[BATCH] + b
        jacobian, closing = job[JACOBIANS] + r * N * N, ending and t == job[ADVANCES] - 1
        if closing:
            _credit_through_jacobian(V, parts, r + job[BATCH], jacobian, N, through)
        for k in range(first, last):
            age, here = job[STEP0] + t - panels[k, BIRTH], (k - first) * size
            g = job[GRADIENT] + column + (k - first) * width
            if age > 0:
                _credit(V, parts, r, now + here, width, g)
            if age < 0 or t >= job[ADVANCES]:
                continue
            low, high = 0, 0 if age == 0 else N
            if age == 1:
                low, high = panels[k, LOW], panels[k, HIGH]
            if closing and age > 0:
                gemm(False, False, 1, width, N, V, through, N, V, now + here, width, True, V, g, width)
                high = low
            # M ← J M + M̄: the product with J here, M̄ below, piece by piece.
            out, rows = after + here, now + here + low * width
            packed_product(N, width, high - low, V, jacobian + low, N, V, rows, False, out, width, V, out, width)
            for piece in range(panels[k, FIRST_PIECE], panels[k, LAST_PIECE]):
                if pieces[piece, STEP] < 0 or pieces[piece, STEP] == job[STEP0] + t:
                    _add_immediate(
                        V, after + here, N, width, sources[pieces[piece, SOURCE_OF]], entries, pieces[piece], r
                    )
            if closing:
                _credit(V, parts, r + job[BATCH], after + here, width, g)
        now, after = after, now
    if job[STEPS] % 2 == 1 and job[ADVANCES] == job[STEPS]:
        for k in range(first, last):
            if panels[k, BIRTH] < job[STEP0] + job[STEPS]:
                for i in range((k - first) * size, (k - first + 1) * size):
                    V[after + i] = V[now + i]


@inner
def _credit_through_jacobian(V, parts, r, jacobian, N, out):
    """out (N) = q J, with the cotangents q of row r."""
    for i in range(out, out + N):
        V[i] = 0
    for part in range(len(parts)):
        n, q = parts[part, SIZE], parts[part, CREDIT] + r * parts[part, CREDIT_ROW]
        gemm(False, False, 1, N, n, V, q, n, V, jacobian, N, True, V, out, N)
        jacobian += n * N


@inner
def _credit(V, parts, r, m, width, g):
    """g (width) += q M, the panel at m."""
    for part in range(len(parts)):
        n, q = parts[part, SIZE], parts[part, CREDIT] + r * parts[part, CREDIT_ROW]
        gemm(False, False, 1, width, n, V, q, n, V, m, width, True, V, g, width)
        m += n * width


@inner
def _add_immediate(V, m, N, width, source, entries, piece, r):
    """Add a piece of M̄ to the panel at m."""
    columns, listed, matrix = source[COLUMNS], source[LISTED], source[KIND] == MATRIX
    shifts = entries[source[SHIFTS] : source[SHIFTS] + source[SHIFT_COUNT]]
    delta, v = source[DELTA] + r * source[DELTA_ROW], source[VECTOR] + r * source[VECTOR_ROW]
    c, end, entry, row, col = piece[FROM], piece[TO], piece[ENTRY], piece[ROW_OF], piece[COLUMN_OF]
    while c < end:
        run = min(end - c, columns - col)
        if listed >= 0:
            here = entries[listed + entry]
            row, col = here // columns, here % columns
            most, run = min(end - c, columns - col), 1
            while run < most and entries[listed + entry + run] == here + run:
                run += 1
        if matrix and source[TRANSPOSED] == 0:
            _add_outer(V, m + c, N, width, run, shifts, delta, source[DELTA_SEED], row, v + col)
        else:
            factor = V[v + row] if matrix else V.dtype.type(1)
            _add_scaled(V, m + c, N, width, run, shifts, delta, source[DELTA_SEED], col, factor)
        c, entry, row, col = c + run, entry + run, row + 1, 0


@inner
def _add_outer(V, m, N, width, run, shifts, delta, seed, row, v):
    """Add Δ[:, row] v[:run] to `run` columns of the panel."""
    for s in range(len(shifts) if len(shifts) > 0 else N):
        i = row + shifts[s] if len(shifts) > 0 else s
        if 0 <= i < N:
            factor, out = V[delta + i * seed + row], m + i * width
            for k in range(run):
                V[out + k] += factor * V[v + k]


@inner
def _add_scaled(V, m, N, width, run, shifts, delta, seed, col, factor):
    """Add factor Δ[:, col : col + run] to `run` columns of the panel."""
    if len(shifts) == 0:
        for i in range(N):
            out, d = m + i * width, delta + i * seed + col
            for k in range(run):
                V[out + k] += factor * V[d + k]
    for s in range(len(shifts)):
        for k in range(run):
            i = col + k + shifts[s]
            if 0 <= i < N:
                V[m + i * width + k] += factor * V[delta + i * seed + col + k]
