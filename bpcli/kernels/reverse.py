"""The reverse kernel: runs a stretch of the reverse tape, taking cotangents from results to arguments.

Values V, their factors F and cotangents C are flat arrays with places of their own. F is V, except where sums of
absolute contributions are asked for (`rounding`): then F = |V| and every rule takes absolute values.
"""

from __future__ import annotations

from bpcli.graph.tape import (
    ADDEND,
    INNER,
    MODE_A,
    MODE_B,
    NONE,
    NUMBER,
    OP,
    OUT,
    SIZE,
    SIZE_A,
    SIZE_B,
    STORE,
    TURNED,
    A,
    B,
)
from bpcli.kernels.blas import gemm
from bpcli.kernels.codes import (
    ADD,
    CONCAT,
    DIVIDE,
    DOT,
    FIELDS,
    LOG_SOFTMAX,
    LOGSUMEXP,
    MATMAT,
    MATMUL,
    MULTIPLY,
    SOFTMAX,
    SUBTRACT,
    SUM,
    TRANSPOSE,
    ZERO,
)
from bpcli.kernels.jit import inner, matrix_at, vector, vector_at
from bpcli.kernels.pull import MINUS, OVER, OVER_SQUARE, OVER_SQUARE_SIZE, PLAIN, TIMES, pull_rows
from bpcli.kernels.pull_reductions import pull_reduction
from bpcli.kernels.rows import BASE, INNER_ROW, OUTER, PLACE_FIELDS, address
from bpcli.kernels.slopes import pull_unary

(
    CODE,
    LINES,
    FIRST,
    LAST,
    NUMBERS,
    PLACES,
    COTANGENT_PLACES,
    NODES,
    LENGTH_V,
    FACTORS,
    COTANGENTS,
    LENGTH_C,
    STEP0,
    STEP1,
    LANE,
    O0,
    O1,
    I0,
    I1,
    ROUNDING,
) = range(20)
"""Fields of a job: the reverse tape (address, lines, which lines), its numbers, the places, the arrays, the steps, the lane
that collects static cotangents, the rows, and whether to add up absolute contributions."""
JOB = ROUNDING + 1


def reverse_span(job, values):  # type: ignore[no-untyped-def]
    """Run a stretch of the reverse tape for steps STEP1 - 1 down to STEP0 on one block of rows."""
    ints = job
    job = vector(job, JOB)
    V = vector(values, job[LENGTH_V])
    F = vector_at(values, job[FACTORS], job[LENGTH_V])
    C = vector_at(values, job[COTANGENTS], job[LENGTH_C])
    code = matrix_at(ints, job[CODE], job[LINES], FIELDS)
    numbers = vector_at(values, job[NUMBERS], job[NODES])
    place = matrix_at(ints, job[PLACES], job[NODES], PLACE_FIELDS)
    cplace = matrix_at(ints, job[COTANGENT_PLACES], job[NODES], PLACE_FIELDS)
    rounding = job[ROUNDING] == 1
    for t in range(job[STEP1] - 1, job[STEP0] - 1, -1):
        reverse(
            code,
            job[FIRST],
            job[LAST],
            numbers,
            place,
            cplace,
            V,
            F,
            C,
            t,
            job[LANE],
            job[O0],
            job[O1],
            job[I0],
            job[I1],
            rounding,
        )


@inner
def reverse(code, first, last, numbers, place, cplace, V, F, C, t, lane, o0, o1, i0, i1, rounding):
    """Run reverse instructions `first` to `last` at step t on rows o0..o1 × i0..i1."""
    no, ni = o1 - o0, i1 - i0
    for c in range(first, last):
        op, out, a, b, n = code[c, OP], code[c, OUT], code[c, A], code[c, B], code[c, SIZE]
        pg = address(cplace, out, t, o0, i0, lane)
        sg, ig = cplace[out, OUTER], cplace[out, INNER_ROW]
        if op == ZERO:
            for o in range(no):
                for i in range(ni):
                    C[pg + o * sg + i * ig : pg + o * sg + i * ig + n] = 0
            continue
        if op == MATMUL:
            pull_product(code[c], place, cplace, F, C, t, lane, o0, i0, no, ni)
        elif op == SUM or op == DOT or op == LOGSUMEXP or op == SOFTMAX or op == LOG_SOFTMAX:
            for o in range(no):
                for i in range(ni):
                    pull_reduction(code[c], place, cplace, F, V, C, t, o0 + o, i0 + i, lane, rounding)
        elif op == MATMAT or op == TRANSPOSE:
            pull_static(code[c], place, cplace, F, C)
        elif op != ADD and op != SUBTRACT and op != MULTIPLY and op != DIVIDE and op != CONCAT:
            pull_unary_rows(
                code[c], numbers[code[c, NUMBER]].real, place, cplace, V, C, t, lane, o0, i0, no, ni, rounding
            )
        for slot in range(3):
            kind, field = factor(code[c], slot, rounding)
            if kind < 0:
                continue
            target = code[c, ADDEND] if slot == 2 else code[c, A + slot]
            mode = code[c, MODE_A + slot]
            size = n if slot == 2 else code[c, SIZE_A + slot]
            length = size if op == CONCAT else n
            f, h = (code[c, field], a) if kind >= TIMES else (target, target)
            pull_rows(
                kind, C, pg + (code[c, INNER] if op == CONCAT else 0), sg, ig, length,
                F, address(place, f, t, o0, i0, lane), place[f, OUTER], place[f, INNER_ROW], code[c, field + SIZE_A - A],
                address(place, h, t, o0, i0, lane), place[h, OUTER], place[h, INNER_ROW], code[c, SIZE_A],
                address(cplace, target, t, o0, i0, lane), cplace[target, OUTER], cplace[target, INNER_ROW], size,
                mode != STORE, no, ni,
            )  # fmt: skip


@inner
def factor(row, slot, rounding):
    """With which factor an argument takes the cotangent (-1: not at all, or by another rule), and that factor's field."""
    op = row[OP]
    if row[MODE_A + slot] == NONE:
        return -1, A
    if slot == 2:
        return PLAIN, A
    if op == ADD or op == CONCAT or (op == SUBTRACT and (slot == 0 or rounding)):
        return PLAIN, A
    if op == SUBTRACT:
        return MINUS, A
    if op == MULTIPLY:
        return TIMES, B - slot
    if op == DIVIDE:
        if slot == 0:
            return OVER, B
        return (OVER_SQUARE_SIZE if rounding else OVER_SQUARE), B
    return -1, A


@inner
def pull_product(row, place, cplace, F, C, t, lane, o0, i0, no, ni):
    """cotangent of b (rows, k) (+)= g (rows, n) W, W (n, k) or, turned, (k, n); a static W takes its gradient at once."""
    out, a, b, n, k = row[OUT], row[A], row[B], row[SIZE], row[SIZE_B]
    pg, sg, ig = address(cplace, out, t, o0, i0, lane), cplace[out, OUTER], cplace[out, INNER_ROW]
    turned = row[TURNED] == 1
    if row[MODE_B] != NONE:
        qb, tb, jb = address(cplace, b, t, o0, i0, lane), cplace[b, OUTER], cplace[b, INNER_ROW]
        joined = no == 1 or (sg == ni * ig and tb == ni * jb)
        blocks, rows = (1, no * ni) if joined else (no, ni)
        for o in range(blocks):
            gemm(False, turned, rows, k, n, C, pg + o * sg, ig, F, place[a, BASE], n if turned else k,
                 row[MODE_B] != STORE, C, qb + o * tb, jb)  # fmt: skip
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
def pull_unary_rows(row, number, place, cplace, V, C, t, lane, o0, i0, no, ni, rounding):
    """The rule of an elementwise function over rows, joined where all of them lie end to end."""
    out, a, n, add = row[OUT], row[A], row[SIZE], row[MODE_A] != STORE
    pa, sa, ia = address(place, a, t, o0, i0, lane), place[a, OUTER], place[a, INNER_ROW]
    po, so, io = address(place, out, t, o0, i0, lane), place[out, OUTER], place[out, INNER_ROW]
    pg, sg, ig = address(cplace, out, t, o0, i0, lane), cplace[out, OUTER], cplace[out, INNER_ROW]
    qa, ta, ja = address(cplace, a, t, o0, i0, lane), cplace[a, OUTER], cplace[a, INNER_ROW]
    if ia == n and io == n and ig == n and ja == n:
        n, ni = n * ni, 1
        if sa == n and so == n and sg == n and ta == n:
            n, no = n * no, 1
    for o in range(no):
        for i in range(ni):
            p, q = pa + o * sa + i * ia, po + o * so + i * io
            g, d = pg + o * sg + i * ig, qa + o * ta + i * ja
            pull_unary(row[OP], V[p : p + n], V[q : q + n], C[g : g + n], C[d : d + n], add, number, rounding)
