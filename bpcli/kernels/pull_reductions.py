"""The reverse rules of sum, dot, logsumexp, softmax and log_softmax, one row at a time."""

from __future__ import annotations

import numpy as np

from bpcli.graph.tape import MODE_A, MODE_B, NONE, OP, OUT, SIZE_A, STORE, A, B
from bpcli.kernels.codes import DOT, LOG_SOFTMAX, LOGSUMEXP, SUM
from bpcli.kernels.elementwise import exp_into
from bpcli.kernels.jit import inner
from bpcli.kernels.rows import address


@inner
def pull_reduction(row, place, cplace, F, V, C, t, o, i, lane, rounding):
    """Cotangents of one row of arguments from the cotangent of the result."""
    op, n, ma, mb = row[OP], row[SIZE_A], row[MODE_A], row[MODE_B]
    pa, po = address(place, row[A], t, o, i, lane), address(place, row[OUT], t, o, i, lane)
    pg, qa = address(cplace, row[OUT], t, o, i, lane), address(cplace, row[A], t, o, i, lane)
    pb, qb = pa, qa
    if row[B] >= 0:
        pb, qb = address(place, row[B], t, o, i, lane), address(cplace, row[B], t, o, i, lane)
    if op == SUM:
        _scaled(C[pg], F, pa, False, C, qa, n, ma)
    elif op == DOT:
        if ma != NONE:
            _scaled(C[pg], F, pb, True, C, qa, n, ma)
        if mb != NONE:
            _scaled(C[pg], F, pa, True, C, qb, n, mb)
    else:
        d = np.empty_like(C[qa : qa + n])
        if op == LOGSUMEXP:
            _probabilities(V[pa : pa + n], V[po], d)
            for k in range(n):
                d[k] *= C[pg]
        elif op == LOG_SOFTMAX:
            exp_into(V[po : po + n], d)
            _pull_log_softmax(C[pg : pg + n], d, rounding)
        else:
            _pull_softmax(C[pg : pg + n], V[po : po + n], d, rounding)
        for k in range(n):
            C[qa + k] = d[k] if ma == STORE else C[qa + k] + d[k]


@inner
def _scaled(g, F, pf, factor, C, q, n, mode):
    for k in range(n):
        d = g * F[pf + k] if factor else g
        C[q + k] = d if mode == STORE else C[q + k] + d


@inner
def _probabilities(x, y, d):
    """d = exp(x - y), y = logsumexp(x)."""
    for k in range(len(d)):
        d[k] = x[k] - y
    exp_into(d, d)


@inner
def _pull_log_softmax(g, d, rounding):
    """d = g - softmax Σ g, with d = softmax on entry."""
    s = g[0]
    for k in range(1, len(g)):
        s += g[k]
    for k in range(len(g)):
        d[k] = g[k] + d[k] * s if rounding else g[k] - d[k] * s


@inner
def _pull_softmax(g, y, d, rounding):
    """d = y (g - Σ g y)."""
    s = g[0] * y[0]
    for k in range(1, len(g)):
        s += g[k] * y[k]
    for k in range(len(g)):
        d[k] = y[k] * (g[k] + s) if rounding else y[k] * (g[k] - s)
