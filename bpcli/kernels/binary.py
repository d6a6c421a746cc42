"""The four elementwise operators on rows."""

from __future__ import annotations

from bpcli.kernels.elementwise import over, times
from bpcli.kernels.jit import inner
from bpcli.tape.instructions import ADD, MULTIPLY, SUBTRACT


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


@inner
def _vector_vector(op, u, v, y):
    n = len(y)
    if op == ADD:
        for k in range(n):
            y[k] = u[k] + v[k]
    elif op == SUBTRACT:
        for k in range(n):
            y[k] = u[k] - v[k]
    elif op == MULTIPLY:
        for k in range(n):
            y[k] = times(u[k], v[k])
    else:
        for k in range(n):
            y[k] = over(u[k], v[k])


@inner
def _scalar_vector(op, s, v, y):
    n = len(y)
    if op == ADD:
        for k in range(n):
            y[k] = s + v[k]
    elif op == SUBTRACT:
        for k in range(n):
            y[k] = s - v[k]
    elif op == MULTIPLY:
        for k in range(n):
            y[k] = times(s, v[k])
    else:
        for k in range(n):
            y[k] = over(s, v[k])


@inner
def _vector_scalar(op, u, s, y):
    n = len(y)
    if op == ADD:
        for k in range(n):
            y[k] = u[k] + s
    elif op == SUBTRACT:
        for k in range(n):
            y[k] = u[k] - s
    elif op == MULTIPLY:
        for k in range(n):
            y[k] = times(u[k], s)
    else:
        for k in range(n):
            y[k] = over(u[k], s)
