"""Reductions of rows and their reverse rules: sum, dot, logsumexp, softmax and log_softmax, in any dtype.

The largest entry (by its real part) is subtracted before exponentials.
"""

from __future__ import annotations

from bpcli.kernels.elementwise import exp_into, log_into
from bpcli.kernels.jit import CHUNK, address, inner, stack, vector
from bpcli.kernels.scalar_functions import over, times
from bpcli.tape.instructions import DOT, LOG_SOFTMAX, LOGSUMEXP, MODE_A, MODE_B, NONE, OP, OUT, SIZE_A, STORE, A, B

BLOCK = 64
"""Terms that are added in order; sums of such sums, twice over, keep the rounding of millions of terms small."""


@inner
def total(x):
    """Σ x, in blocks."""
    whole = x.dtype.type(0)
    for i in range(0, len(x), BLOCK * BLOCK):
        part = x.dtype.type(0)
        for j in range(i, min(len(x), i + BLOCK * BLOCK), BLOCK):
            s = x[j]
            for k in range(j + 1, min(len(x), j + BLOCK)):
                s += x[k]
            part += s
        whole += part
    return whole


@inner
def _dot(x, y):
    """Σ x y, in the same blocks."""
    whole = x.dtype.type(0)
    for i in range(0, len(x), BLOCK * BLOCK):
        part = x.dtype.type(0)
        for j in range(i, min(len(x), i + BLOCK * BLOCK), BLOCK):
            s = times(x[j], y[j])
            for k in range(j + 1, min(len(x), j + BLOCK)):
                s += times(x[k], y[k])
            part += s
        whole += part
    return whole


@inner
def largest(x):
    """The largest real part, and a NaN if there is one."""
    m = x[0].real
    for k in range(1, len(x)):
        r = x[k].real
        if r > m or r != r:
            m = r
    return m


@inner
def _log_sum(x, m):
    """log Σ exp(x - m)."""
    room = vector(stack(x), CHUNK)
    s = x.dtype.type(0)
    for i in range(0, len(x), CHUNK):
        j = min(i + CHUNK, len(x))
        w = room[: j - i]
        for k in range(i, j):
            w[k - i] = x[k] - m
        exp_into(w, w, 0.0)
        s += total(w)
    room[0] = s
    log_into(room[:1], room[:1], 0.0)
    return room[0]


@inner
def softmax_row(x, y, log):
    """y = softmax(x), or its logarithm."""
    m = largest(x)
    if log:
        s = _log_sum(x, m)
        for k in range(len(x)):
            y[k] = (x[k] - m) - s
    else:
        for k in range(len(x)):
            y[k] = x[k] - m
        exp_into(y, y, 0.0)
        s = total(y)
        for k in range(len(x)):
            y[k] = over(y[k], s)


@inner
def logsumexp_row(x):
    """log(Σ exp(x))."""
    m = largest(x)
    return _log_sum(x, m) + m


@inner
def sum_rows(V, pa, sa, ia, n, po, so, io, no, ni):
    """The sum of each row."""
    for o in range(no):
        for i in range(ni):
            p = pa + o * sa + i * ia
            s = V[p]
            if n <= BLOCK:  # a view of so few takes longer than their sum
                for k in range(p + 1, p + n):
                    s += V[k]
            else:
                s = total(V[p : p + n])
            V[po + o * so + i * io] = s


@inner
def reduce_row(op, V, pa, pb, n, po):
    """Dot, logsumexp, softmax or log_softmax of one row."""
    x = V[pa : pa + n]
    if op == DOT:
        V[po] = _dot(x, V[pb : pb + n])
    elif op == LOGSUMEXP:
        V[po] = logsumexp_row(x)
    else:
        softmax_row(x, V[po : po + n], op == LOG_SOFTMAX)


@inner
def pull_reduction(row, place, cplace, F, V, C, t, o, i, lane, rounding):
    """Cotangents of one row of arguments from the cotangent of the result."""
    op, n, ma, mb = row[OP], row[SIZE_A], row[MODE_A], row[MODE_B]
    pa, po = address(place, row[A], t, o, i, lane), address(place, row[OUT], t, o, i, lane)
    pg, qa = address(cplace, row[OUT], t, o, i, lane), address(cplace, row[A], t, o, i, lane)
    pb, qb = pa, qa
    if row[B] >= 0:
        pb, qb = address(place, row[B], t, o, i, lane), address(cplace, row[B], t, o, i, lane)
    if op == DOT:
        if ma != NONE:
            _scaled(C[pg], F, pb, C, qa, n, ma)
        if mb != NONE:
            _scaled(C[pg], F, pa, C, qb, n, mb)
    elif op == LOGSUMEXP:
        _pull_logsumexp(C[pg], V[pa : pa + n], V[po], C[qa : qa + n], ma)
    elif op == LOG_SOFTMAX:
        _pull_log_softmax(C[pg : pg + n], V[po : po + n], C[qa : qa + n], ma, rounding)
    else:
        _pull_softmax(C[pg : pg + n], V[po : po + n], C[qa : qa + n], ma, rounding)


@inner
def _scaled(g, F, pf, C, q, n, mode):
    for k in range(n):
        d = g * F[pf + k]
        C[q + k] = d if mode == STORE else C[q + k] + d


@inner
def _pull_logsumexp(g, x, y, c, mode):
    """c (+)= g softmax(x), where softmax(x) = exp(x - y) / Σ exp(x - y) for y = logsumexp(x).

    The sum is 1 but for the rounding of y, which is all of log(n) where x is large.
    """
    room = vector(stack(c), CHUNK)
    s = c.dtype.type(0)
    for i in range(0, len(x), CHUNK):
        j = min(i + CHUNK, len(x))
        p = room[: j - i]
        _exponentials(x[i:j], y, p)
        s += total(p)
    for i in range(0, len(x), CHUNK):
        j = min(i + CHUNK, len(x))
        p = room[: j - i]
        if len(x) > CHUNK:  # else they are there
            _exponentials(x[i:j], y, p)
        for k in range(i, j):
            d = g * (p[k - i] / s)
            c[k] = d if mode == STORE else c[k] + d


@inner
def _exponentials(x, y, p):
    """p = exp(x - y)."""
    for k in range(len(x)):
        p[k] = x[k] - y
    exp_into(p, p, 0.0)


@inner
def _pull_log_softmax(g, y, c, mode, rounding):
    """c (+)= g - softmax Σ g, y = log softmax."""
    room = vector(stack(c), CHUNK)
    s = total(g)
    for i in range(0, len(y), CHUNK):
        j = min(i + CHUNK, len(y))
        p = room[: j - i]
        exp_into(y[i:j], p, 0.0)
        for k in range(i, j):
            d = g[k] + p[k - i] * s if rounding else g[k] - p[k - i] * s
            c[k] = d if mode == STORE else c[k] + d


@inner
def _pull_softmax(g, y, c, mode, rounding):
    """c (+)= y (g - Σ g y)."""
    s = g[0] * y[0]
    for k in range(1, len(g)):
        s += g[k] * y[k]
    for k in range(len(g)):
        d = y[k] * (g[k] + s) if rounding else y[k] * (g[k] - s)
        c[k] = d if mode == STORE else c[k] + d
