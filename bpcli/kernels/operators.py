"""Operators on rows: the elementwise operations of two arguments, their reverse rules, and simulated rounding.

A reverse rule sets the target to the cotangent g times a factor, or adds that; where rows of the target coincide, or it
has one entry for a whole row, it takes the sum.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from bpcli.kernels.jit import along, inline, inner, vector_at
from bpcli.kernels.scalar_functions import over, times
from bpcli.tape.instructions import ADD, CONCAT, DIVIDE, MAX, MIN, MODE_A, MULTIPLY, NONE, OP, SUBTRACT, A, B


@inline
def _entry(u, k):
    return u[k]


@inline
def _itself(u, k):
    return u


@inline
def _larger(u, v):
    """u where it is larger, else v; NaN where either is."""
    return u if u.real > v.real else (v if v.real >= u.real else u + v)


@inline
def _smaller(u, v):
    """u where it is smaller, else v; NaN where either is."""
    return u if u.real < v.real else (v if v.real <= u.real else u + v)


def _operator(left: Callable[..., Any], right: Callable[..., Any]) -> Callable[..., Any]:
    """y = u op v, where u and v are rows (`_entry`) or a number for the whole row (`_itself`)."""

    @inner
    def into(op, u, v, y):
        n = len(y)
        if op == ADD:
            for k in range(n):
                y[k] = left(u, k) + right(v, k)
        elif op == SUBTRACT:
            for k in range(n):
                y[k] = left(u, k) - right(v, k)
        elif op == MULTIPLY:
            for k in range(n):
                y[k] = times(left(u, k), right(v, k))
        elif op == MAX:
            for k in range(n):
                y[k] = _larger(left(u, k), right(v, k))
        elif op == MIN:
            for k in range(n):
                y[k] = _smaller(left(u, k), right(v, k))
        else:
            for k in range(n):
                y[k] = over(left(u, k), right(v, k))

    return into


_vector_vector, _scalar_vector, _vector_scalar = (
    _operator(_entry, _entry),
    _operator(_itself, _entry),
    _operator(_entry, _itself),
)


@inner
def binary_rows(op, V, pa, sa, ia, ca, pb, sb, ib, cb, po, so, io, no, ni, n):
    """out = a op b; ca, cb are 0 where the argument is a scalar for the whole row."""
    ca = max(ca, 1 - cb)  # one number times one number is a row of one
    flat_a = ia == n if ca else ia == 0
    flat_b = ib == n if cb else ib == 0
    if flat_a and flat_b and io == n:
        n, ni = n * ni, 1
    for o in range(no):
        for i in range(ni):
            p, q, r = pa + o * sa + i * ia, pb + o * sb + i * ib, po + o * so + i * io
            y = V[r : r + n]
            if ca and cb:
                _vector_vector(op, V[p : p + n], V[q : q + n], y)
            elif cb:
                _scalar_vector(op, V[p], V[q : q + n], y)
            else:
                _vector_scalar(op, V[p : p + n], V[q], y)


PLAIN, MINUS, TIMES, OVER, OVER_SQUARE, OVER_SQUARE_SIZE, ABOVE, NOT_ABOVE, BELOW, NOT_BELOW = range(10)
"""Kinds of factor: 1, -1, f, 1/f, -h/f² and h/f²; 1 where h > f, where not, where h < f, where not, else 0."""


@inner
def is_operator(op):
    """Whether an operation's cotangents are pulled back by factors alone."""
    linear = op == ADD or op == SUBTRACT or op == CONCAT
    return linear or op == MULTIPLY or op == DIVIDE or op == MAX or op == MIN


@inner
def factor(row, slot, rounding):
    """The kind of factor of an argument's slot, -1 for none or another rule's, and the field of f."""
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
    if op == MAX:
        return ABOVE + slot, B
    if op == MIN:
        return BELOW + slot, B
    return -1, A


@inner
def pull_rows(kind, C, pg, sg, ig, n, F, pf, sf, jf, nf, ph, sh, jh, nh, qt, st, jt, nt, add, no, ni):
    """target (rows, nt) (+)= g (rows, n) · factor(f, h), with f (rows, nf) and h (rows, nh); sizes are n or 1.

    A target smaller than n takes the sum over the row; one whose rows coincide takes the sum over the rows.
    """
    cf, ch, ct = along(nf, n, jf), along(nh, n, jh), int(nt == n)
    flat_f = kind <= MINUS or (jf == n if cf else jf == 0)
    flat_h = kind <= OVER or (jh == n if ch else jh == 0)
    if flat_f and flat_h and ig == n and ct and jt == n:
        n, ni = n * ni, 1
    for o in range(no):
        for i in range(ni):
            g = C[pg + o * sg + i * ig : pg + o * sg + i * ig + n]
            f, h = pf + o * sf + i * jf, ph + o * sh + i * jh
            t = qt + o * st + i * jt
            fresh = not add and (i == 0 or jt != 0) and (o == 0 or st != 0)
            if ct:
                _pull_vector(kind, g, F, f, cf, h, ch, C[t : t + n], not fresh)
            else:
                s = _pull_scalar(kind, g, F, f, cf, h, ch)
                C[t] = s if fresh else C[t] + s


@inner
def spread_rows(C, pg, sg, ig, qt, st, jt, n, add, no, ni):
    """target (rows, n) (+)= g (rows, 1)."""
    for o in range(no):
        for i in range(ni):
            g, t = C[pg + o * sg + i * ig], qt + o * st + i * jt
            fresh = not add and (i == 0 or jt != 0) and (o == 0 or st != 0)
            for k in range(t, t + n):
                C[k] = g if fresh else C[k] + g


@inner
def _pull_vector(kind, g, F, f, cf, h, ch, target, add):
    n = len(g)
    if kind == PLAIN:
        if add:
            for k in range(n):
                target[k] += g[k]
        else:
            for k in range(n):
                target[k] = g[k]
    elif kind == MINUS:
        if add:
            for k in range(n):
                target[k] -= g[k]
        else:
            for k in range(n):
                target[k] = -g[k]
    elif kind == TIMES and cf:
        v = F[f : f + n]
        if add:
            for k in range(n):
                target[k] += g[k] * v[k]
        else:
            for k in range(n):
                target[k] = g[k] * v[k]
    elif kind == TIMES:
        s = F[f]
        if add:
            for k in range(n):
                target[k] += g[k] * s
        else:
            for k in range(n):
                target[k] = g[k] * s
    elif kind >= ABOVE:
        zero = target.dtype.type(0)
        for k in range(n):
            d = g[k] if _taken(kind, F[f + k * cf], F[h + k * ch]) else zero
            target[k] = target[k] + d if add else d
    else:
        for k in range(n):
            d = _quotient(kind, g[k], F[f + k * cf], F[h + k * ch])
            target[k] = target[k] + d if add else d


@inner
def _pull_scalar(kind, g, F, f, cf, h, ch):
    """Σ over the row."""
    s = g[0] - g[0]
    for k in range(len(g)):
        if kind == PLAIN:
            s += g[k]
        elif kind == MINUS:
            s -= g[k]
        elif kind == TIMES:
            s += g[k] * F[f + k * cf]
        elif kind >= ABOVE:
            if _taken(kind, F[f + k * cf], F[h + k * ch]):
                s += g[k]
        else:
            s += _quotient(kind, g[k], F[f + k * cf], F[h + k * ch])
    return s


@inner
def _taken(kind, f, h):
    if kind == ABOVE or kind == NOT_ABOVE:
        return (h > f) == (kind == ABOVE)
    return (h < f) == (kind == BELOW)


@inner
def _quotient(kind, g, f, h):
    if kind == OVER:
        return g / f
    q = h / f
    d = (g / f) * q
    if kind == OVER_SQUARE_SIZE:
        return d
    if not (abs(d) > 0 and d - d == 0):  # out of range this way, perhaps not the other
        d = (g * q) / f if g != 0 else g
    return -d


@inner
def disturb_rows(values, size, seed, least, X, p, outer, stride, no, ni, n):
    """Simulate rounding: multiply rows (no, ni, n) of X by 1 + e, e uniform in ± the number at the address `size`.

    Numbers below `least` are changed like numbers of that size (Parker, "Monte Carlo arithmetic", 1997). The factors
    are hashes of the seed and the place in X (Steele, Lea, Flood, "SplitMix64", 2014), so they are the same for any
    number of threads. Rows that coincide are one row.
    """
    most = vector_at(values, size, 1)[0].real
    for o in range(no if outer else 1):
        for i in range(ni if stride else 1):
            first = p + o * outer + i * stride
            for k in range(first, first + n):
                h = np.uint64(seed) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(k)
                h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
                h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
                h ^= h >> np.uint64(31)
                e = most * (np.int64(h >> np.uint64(11)) * 2.0**-52 - 1)
                if X[k] - X[k] == 0:  # infinities stay: half of the factors would make them NaN
                    X[k] += e * (X[k] if abs(X[k]) >= least else X.dtype.type(least))
