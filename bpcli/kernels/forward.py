"""The forward kernel: run lines of the tape on rows of values, step after step.

Rows have two indices, o (copies) and i (samples, or steps × samples); see `bpcli.kernels.jit` for their addresses.
"""

from __future__ import annotations

from bpcli.kernels.blas import dual_gemm, gemm, vector_product
from bpcli.kernels.elementwise import unary_into
from bpcli.kernels.jit import address, along, inner, matrix_at, row_stride, vector, vector_at
from bpcli.kernels.lockstep import GROUP_SIZE, dismiss, join, share_of_argument, synchronise
from bpcli.kernels.operators import binary_rows, disturb_rows
from bpcli.kernels.reductions import reduce_row, sum_rows
from bpcli.kernels.scalar_functions import times
from bpcli.kernels.tiles import packed_product
from bpcli.tape.instructions import (
    ABS,
    ADD,
    ADDEND,
    BASE,
    CONCAT,
    COPY,
    DIVIDE,
    DOT,
    FIELDS,
    INNER,
    INNER_ROW,
    LOG_SOFTMAX,
    LOGSUMEXP,
    MATMAT,
    MATMUL,
    MAX,
    MIN,
    MULTIPLY,
    NEGATE,
    NUMBER,
    OP,
    OUT,
    OUTER,
    PACKED,
    PACKED_T,
    PLACE_FIELDS,
    RELU,
    SIZE,
    SIZE_A,
    SIZE_B,
    SOFTMAX,
    STOP,
    SUBTRACT,
    SUM,
    TRANSPOSE,
    TURNED,
    UNIT_STEP,
    A,
    B,
)

(
    CODE,  # address of the tape, int64 (LINES, FIELDS); forward_job
    LINES,  # lines of the tape; forward_job
    FIRST,  # first line to run; the schedule
    LAST,  # line after the last one to run; the schedule
    NUMBERS,  # address of the tape's numbers, `values` dtype (NODES,); forward_job
    PLACES,  # address of the table of places, int64 (NODES, PLACE_FIELDS); forward_job
    NODES,  # nodes of the graph; forward_job
    LENGTH,  # length of `values`, numbers; forward_job
    STEP0,  # first step; the schedule
    STEP1,  # step after the last one; the schedule
    O0,  # first row, by outer index; 0, or the part of a job in copies
    O1,  # row after the last one, by outer index; likewise
    I0,  # first row, by inner index; the part of a job in the schedule
    I1,  # row after the last one, by inner index; likewise
    SLOTS,  # address of each node's slot of rank-one updates (-1: none), int64 (NODES,); forward_job
    ENDS,  # address of where each copy's updates in a slot begin, int64 (SLOT_COUNT, COPIES + 1); forward_job
    SLOT_COUNT,  # slots; forward_job
    COPIES,  # perturbed copies; forward_job
    UPDATE_ROWS,  # address of the row of each updated matrix entry, int64 (UPDATE_COUNT,); forward_job
    UPDATE_COLUMNS,  # address of its column, int64 (UPDATE_COUNT,); forward_job
    UPDATE_CHANGES,  # address of its change, `values` dtype (UPDATE_COUNT,); forward_job
    UPDATE_COUNT,  # updated matrix entries of all copies; forward_job
    GROUP,  # address of the shared state of a lockstep group, 0: none; Call.run
    BARRIERS,  # lines before which the group has a barrier, bit i for line FIRST + i; the schedule
    LEADER_LINES,  # lines that the leader runs alone, bits likewise; the schedule
    DISTURBANCE,  # address of the largest relative disturbance of a result, 0: none; Disturbance
    SEED,  # seed of the random factors of disturbances; Disturbance
) = range(27)
"""Fields of a job, with unit and writer."""
JOB = SEED + 1


def forward_span(job, values):  # type: ignore[no-untyped-def]
    """Run lines FIRST to LAST of the tape for steps STEP0 to STEP1 on one block of rows."""
    ints = job
    job = vector(job, JOB)
    V = vector(values, job[LENGTH])
    code = matrix_at(ints, job[CODE], job[LINES], FIELDS)
    numbers = vector_at(values, job[NUMBERS], job[NODES])
    place = matrix_at(ints, job[PLACES], job[NODES], PLACE_FIELDS)
    slots = vector_at(ints, job[SLOTS], job[NODES])
    group = vector_at(ints, job[GROUP], GROUP_SIZE if job[GROUP] else 0)
    membership, begin, at = join(group, job[STEP0], job[FIRST], job[STEP1])
    shared, low = job[GROUP] != 0, 0
    o0, i0, no, ni = job[O0], job[I0], job[O1] - job[O0], job[I1] - job[I0]
    for t in range(begin, job[STEP1]):
        for line in range(at, job[LAST]):
            row = code[line]
            op, out, a, b, n, na, nb = row[OP], row[OUT], row[A], row[B], row[SIZE], row[SIZE_A], row[SIZE_B]
            po, so, io = address(place, out, t, o0, i0, 0), place[out, OUTER], place[out, INNER_ROW]
            pa, sa, ia = address(place, a, t, o0, i0, 0), place[a, OUTER], place[a, INNER_ROW]
            pb, sb, ib = pa, sa, ia
            if b >= 0:
                pb, sb, ib = address(place, b, t, o0, i0, 0), place[b, OUTER], place[b, INNER_ROW]
            if shared:
                bit, new = 1 << (line - job[FIRST]), t == begin and line == at
                waits, alone = job[BARRIERS] & bit, job[LEADER_LINES] & bit
                membership, low, entries = synchronise(group, waits, alone, new, membership, t, line, n, V.itemsize)
                if membership[1] == 0:
                    return
                if entries < 0:
                    continue
                if op != MATMUL:
                    pa, na = share_of_argument(pa, na, n, low, entries)
                    pb, nb = share_of_argument(pb, nb, n, low, entries)
                po, n = po + low, entries
            if op == CONCAT:
                copy_rows(V, pa, sa, ia, po + row[INNER], so, io, no, ni, na)
            elif op == MATMUL:
                turned, add, packed = row[TURNED] == 1, row[ADDEND] >= 0, place[a, PACKED if row[TURNED] else PACKED_T]
                c = row[ADDEND] if add else out
                pc, sc, ic = address(place, c, t, o0, i0, 0) + low, place[c, OUTER], place[c, INNER_ROW]
                ldw = row_stride(place, a, row[SIZE] if turned else nb)
                where = place[a, BASE] + low * (1 if turned else ldw)
                multiply_rows(V, where, packed, turned, pb, sb, ib, nb, ldw, add, pc, sc, ic, po, so, io, n, no, ni, t)
                if slots[a] >= 0:
                    update_rows(ints, values, job, slots[a], V, turned, o0, pb, sb, ib, po, so, io, no, ni)
            elif op == ADD or op == SUBTRACT or op == MULTIPLY or op == DIVIDE or op == MAX or op == MIN:
                ca, cb = along(na, n, ia), along(nb, n, ib)
                binary_rows(op, V, pa, sa, ia, ca, pb, sb, ib, cb, po, so, io, no, ni, n)
            elif op == MATMAT or op == TRANSPOSE:
                matrix_of(op, row[INNER], na, V, pa, pb, po, n)
            elif op == SUM:
                sum_rows(V, pa, sa, ia, na, po, so, io, no, ni)
            else:
                number = numbers[row[NUMBER]].real
                other_rows(op, number, V, pa, sa, ia, pb, sb, ib, na, po, so, io, no, ni, n)
            if job[DISTURBANCE] and rounds(op):
                disturb_rows(values, job[DISTURBANCE], job[SEED] + t, least_rounded(op), V, po, so, io, no, ni, n)
        at = job[FIRST]
    dismiss(group, membership)


@inner
def rounds(op):
    """Whether an operation may round its result: copies, signs, slopes of 1 and choices are exact."""
    moves = op == CONCAT or op == TRANSPOSE or op == COPY or op == NEGATE or op == STOP or op == UNIT_STEP
    return not (moves or op == RELU or op == ABS or op == MAX or op == MIN)


@inner
def least_rounded(op):
    """The size to which results below it are rounded: the logarithm of a sum near 1 is off by a unit of roundoff."""
    return 1.0 if op == LOGSUMEXP or op == LOG_SOFTMAX else 0.0


@inner
def matrix_of(op, inside, na, V, pa, pb, po, n):
    """Products of two static matrices, and transposes."""
    if op == MATMAT:
        columns = n // (na // inside)
        dual_gemm(na // inside, columns, inside, V, pa, inside, V, pb, columns, V, po, columns)
    else:
        for e in range(n):
            V[po + e] = V[pa + e % (n // inside) * inside + e // (n // inside)]


@inner
def other_rows(op, number, V, pa, sa, ia, pb, sb, ib, na, po, so, io, no, ni, n):
    """Elementwise functions and reductions, row by row; elementwise rows that lie end to end are joined."""
    reduces = op == DOT or op == LOGSUMEXP or op == SOFTMAX or op == LOG_SOFTMAX
    rows = ni
    if not reduces and ia == n and io == n:
        n, rows = n * ni, 1
    for o in range(no):
        for i in range(rows):
            p, q = pa + o * sa + i * ia, po + o * so + i * io
            if reduces:
                reduce_row(op, V, p, pb + o * sb + i * ib, na, q)
            else:
                unary_into(op, V[p : p + n], V[q : q + n], number)


@inner
def copy_rows(V, pa, sa, ia, po, so, io, no, ni, n):
    """out = a, row by row; nothing where a is already there."""
    if pa == po and sa == so and ia == io:
        return
    if ia == n and io == n:
        n, ni = n * ni, 1
    for o in range(no):
        for i in range(ni):
            x = V[pa + o * sa + i * ia : pa + o * sa + i * ia + n]
            y = V[po + o * so + i * io : po + o * so + i * io + n]
            for k in range(n):
                y[k] = x[k]


@inner
def multiply_rows(V, pw, packed, turned, pb, sb, ib, k, ldw, add, pc, sc, ic, po, so, io, n, no, ni, t):
    """out (rows, n) = b (rows, k) Wᵀ, W (n, k) or, turned, (k, n), rows ldw apart; plus c (rows, n) where `add`."""
    blocks, rows = no, ni
    if no == 1 or (sb == ni * ib and so == ni * io):
        blocks, rows = 1, no * ni
    if add and (packed < 0 or rows == 1 or (blocks < no and sc != ni * ic)):
        copy_rows(V, pc, sc, ic, po, so, io, no, ni, n)
        pc, sc, ic = po, so, io
    for o in range(blocks):
        if packed >= 0 and rows > 1:
            packed_product(rows, n, k, V, pb + o * sb, ib, V, packed, add, pc + o * sc, ic, V, po + o * so, io)
        elif rows == 1:
            vector_product(not turned, n, k, V, pb + o * sb, V, pw, ldw, add, V, po + o * so, t % 2 == 1)
        else:
            gemm(False, not turned, rows, n, k, V, pb + o * sb, ib, V, pw, ldw, add, V, po + o * so, io)


@inner
def update_rows(ints, values, job, slot, V, turned, o0, pb, sb, ib, po, so, io, no, ni):
    """Rank-one updates of a product, copy by copy: out[row] += change · b[column]."""
    ends = matrix_at(ints, job[ENDS], job[SLOT_COUNT], job[COPIES] + 1)
    rows = vector_at(ints, job[UPDATE_ROWS], job[UPDATE_COUNT])
    columns = vector_at(ints, job[UPDATE_COLUMNS], job[UPDATE_COUNT])
    changes = vector_at(values, job[UPDATE_CHANGES], job[UPDATE_COUNT])
    for o in range(no):
        for e in range(ends[slot, o0 + o], ends[slot, o0 + o + 1]):
            row, column = (columns[e], rows[e]) if turned else (rows[e], columns[e])
            for i in range(ni):
                V[po + o * so + i * io + row] += times(changes[e], V[pb + o * sb + i * ib + column])
