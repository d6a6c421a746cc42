"""The influence kernel of RTRL: g += q M and M ← J M + M̄, block by block of parameters.

Of the last M of all nothing is wanted but its product with q: in the middle of a chunk q (J M + M̄) is taken as
(q J) M + q M̄.

M (N, P) stands in panels of columns, (sample, panel, N, width): a panel is the packed factor of a product with J as it
is (see `bpcli.kernels.tiles`). A block of panels, small enough for the cache, is taken through all steps of a chunk
before the next one is touched. J(t), M̄(t) and q(t) depend on the forward pass alone.
"""

from __future__ import annotations

from bpcli.kernels.blas import gemm
from bpcli.kernels.jit import inner, matrix_at, vector, vector_at, vector_from
from bpcli.kernels.tiles import packed_product

(
    LENGTH,
    PARTS,
    PART_COUNT,
    SOURCES,
    SOURCE_COUNT,
    ENTRIES,
    ENTRY_COUNT,
    PANELS,
    PANEL_COUNT,
    PIECES,
    PIECE_COUNT,
    WIDTH,
    STATES,
    BATCH,
    STEP0,
    STEPS,
    ADVANCES,
    INFLUENCE,
    GRADIENT,
    JACOBIANS,
    SPARE,
    BLOCK,
    FIRST_ITEM,
    LAST_ITEM,
) = range(24)
"""Fields of a job: the length of the array that holds all numbers; tables (address, lines) of the state's parts, the
sources, their entries, the panels and their pieces; sizes; the chunk's first step, its steps, and after how many of
them M is wanted once more; where M, g, J (step, sample, N, N) and a spare block begin, behind which there is room for
q J. Items number (sample, block of panels) pairs."""
JOB = LAST_ITEM + 1

SIZE, CREDIT, CREDIT_ROW = range(3)
"""Fields of a part of the state: its entries, and where the cotangents q that losses bring to it stand (row r)."""
PART = CREDIT_ROW + 1

BIRTH, LOW, HIGH, FIRST_PIECE, LAST_PIECE = range(5)
"""Fields of a panel: the step before which M is zero, the rows that may differ from zero after it, and its pieces."""
PANEL = LAST_PIECE + 1

FROM, TO, SOURCE_OF, STEP, ENTRY, ROW_OF, COLUMN_OF = range(7)
"""Fields of a piece of a panel: its columns; their source, at which step (-1: all); the source's entry, which the first
of them stands for, and that entry's row and column (not where entries are listed)."""
PIECE = COLUMN_OF + 1

(KIND, DELTA, DELTA_ROW, DELTA_SEED, VECTOR, VECTOR_ROW, COLUMNS, TURNED, LISTED, SHIFTS, SHIFT_COUNT) = range(11)
"""Fields of a source of immediate influence: the cotangents Δ (row r, seed i, entry) and, for a matrix, the vectors v
(row r, entry), the matrix's columns, whether it is used transposed, where its entries are listed (-1: all), and where
the shifts are: entry j of Δ is zero but for the seeds j + shift (no shifts: any seed)."""
SOURCE = SHIFT_COUNT + 1

MATRIX, VECTOR_ITSELF = range(2)
"""Kinds of source: a matrix in a product; a vector or scalar."""


def influence_span(job, values):  # type: ignore[no-untyped-def]
    """Take some blocks of some samples' influence matrices through the steps of a chunk."""
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
        _take_through(job, V, parts, sources, entries, panels, pieces, item // blocks, first, last)


@inner
def _take_through(job, V, parts, sources, entries, panels, pieces, b, first, last):
    """One block of one sample through all steps, to the spare block and back."""
    N, width = job[STATES], job[WIDTH]
    size, column = N * width, (b * job[PANEL_COUNT] + first) * width
    now, after, through = job[INFLUENCE] + column * N, job[SPARE], job[SPARE] + job[BLOCK] * N * width
    ending = job[ADVANCES] < job[STEPS]
    for t in range(job[ADVANCES] if ending and job[ADVANCES] > 0 else job[STEPS]):
        r = t * job[BATCH] + b
        jacobian, closing = job[JACOBIANS] + r * N * N, ending and t == job[ADVANCES] - 1
        if closing:
            _take_back(V, parts, r + job[BATCH], jacobian, N, through)
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
def _take_back(V, parts, r, jacobian, N, out):
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
        if matrix and source[TURNED] == 0:
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
