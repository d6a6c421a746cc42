"""The reverse kernel: run lines of the reverse tape, which take cotangents from results to arguments.

Values V, their factors F and cotangents C are flat arrays; F has the places of V. F is V, except for sums of absolute
contributions (`rounding`): then F = |V| and every rule takes absolute values.
"""

from __future__ import annotations

from bpcli.kernels.blas import gemm, vector_product
from bpcli.kernels.elementwise import pull_unary
from bpcli.kernels.jit import address, inner, matrix_at, row_stride, vector, vector_at, vector_from
from bpcli.kernels.lockstep import GROUP_SIZE, dismiss, join, share, share_of_argument, synchronise
from bpcli.kernels.operators import ABOVE, TIMES, disturb_rows, factor, is_operator, pull_rows, spread_rows
from bpcli.kernels.reductions import pull_reduction
from bpcli.kernels.tiles import packed_product
from bpcli.tape.instructions import (
    ADDEND,
    BASE,
    CONCAT,
    DOT,
    FIELDS,
    INNER,
    INNER_ROW,
    LOG_SOFTMAX,
    LOGSUMEXP,
    MATMAT,
    MATMUL,
    MODE_A,
    MODE_B,
    NONE,
    NUMBER,
    OP,
    OUT,
    OUTER,
    PACKED,
    PACKED_T,
    PLACE_FIELDS,
    SIZE,
    SIZE_A,
    SIZE_B,
    SOFTMAX,
    STORE,
    SUM,
    TRANSPOSE,
    TURNED,
    ZERO,
    A,
    B,
)

(
    CODE,  # address of the reverse tape, int64 (LINES, FIELDS); reverse_job
    LINES,  # lines of the reverse tape; reverse_job
    FIRST,  # first line to run; the schedule
    LAST,  # line after the last one to run; the schedule
    NUMBERS,  # address of the tape's numbers, `values` dtype (NODES,); reverse_job
    PLACES,  # address of the table of places of values, int64 (NODES, PLACE_FIELDS); reverse_job
    COTANGENT_PLACES,  # address of that of cotangents; reverse_job
    NODES,  # nodes of the graph; reverse_job
    LENGTH_V,  # length of V and of F, numbers; reverse_job's caller (so for the next three)
    FACTORS,  # where F begins, numbers from V; 0: F is V
    COTANGENTS,  # where C begins, numbers from V
    LENGTH_C,  # length of C, numbers
    STEP0,  # first step, the last one taken; the schedule
    STEP1,  # step after the first one taken; the schedule
    LANE,  # lane that collects cotangents of static nodes; the schedule, the part of a job
    O0,  # first row, by outer index; 0, or the part of a job in forward mode and batched windows
    O1,  # row after the last one, by outer index; likewise
    I0,  # first row, by inner index; the part of a job in the schedule
    I1,  # row after the last one, by inner index; likewise
    ROUNDING,  # 1: add up absolute contributions, 0: gradients; reverse_job
    GROUP,  # address of the shared state of a lockstep group, 0: none; Call.run
    BARRIERS,  # lines before which the group has a barrier, bit i for line FIRST + i; the schedule
    LEADER_LINES,  # lines that the leader runs alone, bits likewise; the schedule
    DISTURBANCE,  # address of the largest relative disturbance of a cotangent, 0: none; Disturbance
    SEED,  # seed of the random factors of disturbances; Disturbance
) = range(25)
"""Fields of a job, with unit and writer."""
JOB = SEED + 1


def reverse_span(job, values):  # type: ignore[no-untyped-def]
    """Run lines FIRST to LAST of the reverse tape for steps STEP1 - 1 down to STEP0 on one block of rows."""
    ints, job = job, vector(job, JOB)
    V = vector(values, job[LENGTH_V])
    F = vector_from(values, job[FACTORS], job[LENGTH_V])
    C = vector_from(values, job[COTANGENTS], job[LENGTH_C])
    code = matrix_at(ints, job[CODE], job[LINES], FIELDS)
    numbers = vector_at(values, job[NUMBERS], job[NODES])
    place = matrix_at(ints, job[PLACES], job[NODES], PLACE_FIELDS)
    cplace = matrix_at(ints, job[COTANGENT_PLACES], job[NODES], PLACE_FIELDS)
    group = vector_at(ints, job[GROUP], GROUP_SIZE if job[GROUP] else 0)
    membership, begin, at = join(group, job[STEP1] - 1, job[FIRST], job[STEP0] - 1)
    rounding, lane, shared, most = job[ROUNDING] == 1, job[LANE], job[GROUP] != 0, job[DISTURBANCE]
    o0, i0, no, ni = job[O0], job[I0], job[O1] - job[O0], job[I1] - job[I0]
    for t in range(begin, job[STEP0] - 1, -1):
        for line in range(at, job[LAST]):
            row = code[line]
            op, out, a, n = row[OP], row[OUT], row[A], row[SIZE]
            if shared:
                bit, new = 1 << (line - job[FIRST]), t == begin and line == at
                waits, alone = job[BARRIERS] & bit, job[LEADER_LINES] & bit
                membership, low, entries = synchronise(group, waits, alone, new, membership, t, line, n, C.itemsize)
                if membership[1] == 0:
                    return
                if entries < 0:
                    continue
                part, parts = (0, 1) if alone else (membership[0], membership[1])
            else:
                low, entries, part, parts = 0, n, 0, 1
            pg, sg, ig = address(cplace, out, t, o0, i0, lane) + low, cplace[out, OUTER], cplace[out, INNER_ROW]
            if most:
                disturb_rows(values, most, job[SEED] + 4 * t, 0.0, C, pg, sg, ig, no, ni, entries)
            if op == MATMUL or op == MATMAT or op == TRANSPOSE:
                pull_product(row, place, cplace, F, C, t, lane, o0, i0, no, ni, part, parts)
            elif not is_operator(op):
                pull_others(row, numbers, place, cplace, F, V, C, t, lane, o0, i0, no, ni, low, entries, rounding)
            for slot in range(3):
                kind, field = factor(row, slot, rounding)
                if kind < 0:
                    continue
                if most:
                    disturb_rows(values, most, job[SEED] + 4 * t + 1 + slot, 0.0, C, pg, sg, ig, no, ni, entries)
                target = row[ADDEND] if slot == 2 else row[A + slot]
                f, h = (row[field], a) if kind >= TIMES else (target, target)
                pf, nf = address(place, f, t, o0, i0, lane), row[field + SIZE_A - A]
                ph, nh = address(place, h, t, o0, i0, lane), row[SIZE_A]
                pq, nq = address(cplace, target, t, o0, i0, lane), n if slot == 2 else row[SIZE_A + slot]
                if shared:
                    pf, nf = share_of_argument(pf, nf, n, low, entries)
                    ph, nh = share_of_argument(ph, nh, n, low, entries)
                    pq, nq = share_of_argument(pq, nq, n, low, entries)
                shift, size = (row[INNER], nq) if op == CONCAT else (0, entries)
                pull_rows(  # where numbers are compared, signs count
                    kind, C, pg + shift, sg, ig, size, V if kind >= ABOVE else F, pf, place[f, OUTER],
                    place[f, INNER_ROW], nf, ph, place[h, OUTER], place[h, INNER_ROW], nh,
                    pq, cplace[target, OUTER], cplace[target, INNER_ROW], nq, row[MODE_A + slot] != STORE, no, ni,
                )  # fmt: skip
        at = job[FIRST]
    dismiss(group, membership)


@inner
def pull_product(row, place, cplace, F, C, t, lane, o0, i0, no, ni, part, parts):
    """cotangent of b (rows, k) (+)= g (rows, n) W, W (n, k) or, turned, (k, n); of one row this part of so many.

    A static W takes its gradient at once.
    """
    if row[OP] != MATMUL:
        pull_static(row, place, cplace, F, C)
        return
    out, a, b, n, k = row[OUT], row[A], row[B], row[SIZE], row[SIZE_B]
    pg, sg, ig = address(cplace, out, t, o0, i0, lane), cplace[out, OUTER], cplace[out, INNER_ROW]
    turned = row[TURNED] == 1
    if row[MODE_B] != NONE:
        qb, tb, jb = address(cplace, b, t, o0, i0, lane), cplace[b, OUTER], cplace[b, INNER_ROW]
        joined = no == 1 or (sg == ni * ig and tb == ni * jb)
        blocks, rows = (1, no * ni) if joined else (no, ni)
        packed, add = place[a, PACKED_T if turned else PACKED], row[MODE_B] != STORE
        for o in range(blocks):
            g, q = pg + o * sg, qb + o * tb
            if packed >= 0 and rows > 1:
                packed_product(rows, k, n, C, g, ig, F, packed, add, q, jb, C, q, jb)
            elif rows == 1:
                ldw = row_stride(place, a, n if turned else k)
                low, size = share(k, part, parts, C.itemsize)
                where = place[a, BASE] + low * (ldw if turned else 1)
                vector_product(turned, size, n, C, g, F, where, ldw, add, C, q + low, t % 2 == 1)
            else:
                ldw = row_stride(place, a, n if turned else k)
                gemm(False, turned, rows, k, n, C, g, ig, F, place[a, BASE], ldw, add, C, q, jb)
    if row[MODE_A] != NONE:  # one row: G += g vᵀ, or v gᵀ where turned
        q, v = address(cplace, a, 0, 0, 0, lane), place[b, BASE]
        for i in range(n):
            for j in range(k):
                C[q + (j * n + i if turned else i * k + j)] += C[pg + i] * F[v + j]


@inner
def pull_static(row, place, cplace, F, C):
    """Transposes, and products of two static matrices: G_a += g bᵀ, G_b += aᵀ g."""
    n, na, k = row[SIZE], row[SIZE_A], row[INNER]
    pg, qa, pa = cplace[row[OUT], BASE], cplace[row[A], BASE], place[row[A], BASE]
    if row[OP] == TRANSPOSE:
        for i in range(k):
            for j in range(n // k):
                C[qa + j * k + i] += C[pg + i * (n // k) + j]
        return
    rows, columns = na // k, n // (na // k)
    if row[MODE_A] != NONE:
        gemm(False, True, rows, k, columns, C, pg, columns, F, place[row[B], BASE], columns, True, C, qa, k)
    if row[MODE_B] != NONE:
        gemm(True, False, k, columns, rows, F, pa, k, C, pg, columns, True, C, cplace[row[B], BASE], columns)


@inner
def pull_others(row, numbers, place, cplace, F, V, C, t, lane, o0, i0, no, ni, low, n, rounding):
    """Zeroing, elementwise functions and reductions, row by row; elementwise rows that lie end to end are joined.

    Of elementwise functions the n entries from `low` on.
    """
    op, out, a, add, number = row[OP], row[OUT], row[A], row[MODE_A] != STORE, numbers[row[NUMBER]].real
    pg, sg, ig = address(cplace, out, t, o0, i0, lane) + low, cplace[out, OUTER], cplace[out, INNER_ROW]
    pa, sa, ia = address(place, a, t, o0, i0, lane) + low, place[a, OUTER], place[a, INNER_ROW]
    po, so, io = address(place, out, t, o0, i0, lane) + low, place[out, OUTER], place[out, INNER_ROW]
    qa, ta, ja = address(cplace, a, t, o0, i0, lane) + low, cplace[a, OUTER], cplace[a, INNER_ROW]
    if op == SUM:
        spread_rows(C, pg, sg, ig, qa, ta, ja, row[SIZE_A], add, no, ni)
        return
    reduces = op == DOT or op == LOGSUMEXP or op == SOFTMAX or op == LOG_SOFTMAX
    rows = ni
    if op != ZERO and not reduces and ia == n and io == n and ig == n and ja == n:
        n, rows = n * ni, 1
    for o in range(no):
        for i in range(rows):
            p, q = pa + o * sa + i * ia, po + o * so + i * io
            g, d = pg + o * sg + i * ig, qa + o * ta + i * ja
            if op == ZERO:
                C[g : g + n] = 0
            elif reduces:
                pull_reduction(row, place, cplace, F, V, C, t, o0 + o, i0 + i, lane, rounding)
            else:
                pull_unary(op, V[p : p + n], V[q : q + n], C[g : g + n], C[d : d + n], add, number, rounding)
