"""Sums, logsumexp and softmax of one row, in any dtype; the largest (real part) is taken out before exponentials."""

from __future__ import annotations

from bpcli.kernels.elementwise import exp_into, log_into
from bpcli.kernels.jit import inner


@inner
def total(x):
    """Sum in order."""
    s = x[0]
    for k in range(1, len(x)):
        s += x[k]
    return s


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
def _exponentials(x, y):
    """y = exp(x - m), its sum and m, the largest x."""
    m = largest(x)
    for k in range(len(x)):
        y[k] = x[k] - m
    exp_into(y, y)
    return total(y), m


@inner
def softmax_row(x, y, log):
    """y = softmax(x), or its logarithm."""
    n = len(x)
    s, m = _exponentials(x, y)
    if log:
        w = x[:1].copy()
        w[0] = s
        log_into(w, w)
        for k in range(n):
            y[k] = (x[k] - m) - w[0]
    else:
        for k in range(n):
            y[k] = y[k] / s


@inner
def logsumexp_row(x):
    """log(Σ exp(x))."""
    w = x.copy()
    s, m = _exponentials(x, w)
    w[0] = s
    log_into(w[:1], w[:1])
    return w[0] + m
