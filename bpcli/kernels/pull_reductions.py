"""The reverse rules of dot, logsumexp, softmax and log_softmax, one row at a time."""

from __future__ import annotations

from bpcli.kernels.elementwise import exp_into
from bpcli.kernels.jit import CHUNK, inner, stack, vector
from bpcli.kernels.reductions import total
from bpcli.kernels.rows import address
from bpcli.tape.instructions import DOT, LOG_SOFTMAX, LOGSUMEXP, MODE_A, MODE_B, NONE, OP, OUT, SIZE_A, STORE, A, B


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
    """c (+)= g exp(x - y), y = logsumexp(x)."""
    room = vector(stack(c), CHUNK)
    for i in range(0, len(x), CHUNK):
        j = min(i + CHUNK, len(x))
        p = room[: j - i]
        for k in range(i, j):
            p[k - i] = x[k] - y
        exp_into(p, p)
        for k in range(i, j):
            d = g * p[k - i]
            c[k] = d if mode == STORE else c[k] + d


@inner
def _pull_log_softmax(g, y, c, mode, rounding):
    """c (+)= g - softmax Σ g, y = log softmax."""
    room = vector(stack(c), CHUNK)
    s = total(g)
    for i in range(0, len(y), CHUNK):
        j = min(i + CHUNK, len(y))
        p = room[: j - i]
        exp_into(y[i:j], p)
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
