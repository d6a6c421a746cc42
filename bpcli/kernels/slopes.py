"""The reverse rule of elementwise functions: c (+)= g · slope.

`rounding` asks for sums of absolute contributions instead: g is non-negative, and to the absolute slope is added what
its own evaluation may be off by, in units of roundoff (for tanh, 1 − y² loses its digits where y is near ±1).
"""

from __future__ import annotations

import numpy as np

from bpcli.kernels.elementwise import cos_into, sigmoid_into, sin_into
from bpcli.kernels.elementwise_real import SMALLEST_NORMAL
from bpcli.kernels.jit import CHUNK, inner, stack, vector
from bpcli.kernels.unary import power_into
from bpcli.tape.instructions import (
    ABS,
    COS,
    EXP,
    LEAKY_RELU,
    LOG,
    NEGATE,
    POWER,
    RELU,
    SIGMOID,
    SIN,
    SOFTPLUS,
    SQRT,
    TANH,
)

SLOPE_ROUNDING = 4.0
"""How many units of roundoff of the terms of a slope its evaluation, with the value it is made of, may be off by."""


@inner
def pull_unary(op, x, y, g, c, add, number, rounding):
    """c (+)= g · f'(x), given x and y = f(x); x or y may be stale where the rule does not read it."""
    n = len(c)
    one = c.dtype.type(1)
    zero = one - one
    if op == TANH:
        if rounding:
            for k in range(n):
                e = abs(one - y[k] * y[k]) + SLOPE_ROUNDING * abs(y[k] * y[k])
                c[k] = (c[k] if add else zero) + g[k] * e
        elif add:
            for k in range(n):
                c[k] += g[k] * ((one - y[k]) * (one + y[k]))
        else:
            for k in range(n):
                c[k] = g[k] * ((one - y[k]) * (one + y[k]))
    elif op == SIGMOID:
        if rounding:
            for k in range(n):
                e = abs(y[k] * (one - y[k])) + SLOPE_ROUNDING * abs(y[k] * y[k])
                e = e if e != zero else c.dtype.type(SMALLEST_NORMAL)
                c[k] = (c[k] if add else zero) + g[k] * e
        elif add:
            for k in range(n):
                c[k] += g[k] * (y[k] * (one - y[k]))
        else:
            for k in range(n):
                c[k] = g[k] * (y[k] * (one - y[k]))
    elif op == NEGATE:
        sign = one if rounding else -one
        for k in range(n):
            c[k] = (c[k] if add else zero) + sign * g[k]
    elif op == RELU or op == LEAKY_RELU or op == ABS:
        _pull_kinked(op, x, g, c, add, number, rounding)
    else:
        slopes = vector(stack(c), CHUNK)
        for i in range(0, n, CHUNK):
            j = min(i + CHUNK, n)
            s = slopes[: j - i]
            _smooth_slope(op, x[i:j], y[i:j], s, number)
            if rounding:
                for k in range(i, j):
                    s[k - i] = abs(s[k - i]) + (abs(x[k]) if op == SIN or op == COS else zero)
                    if s[k - i] == zero and (op == EXP or op == SOFTPLUS):  # underflow, and not nothing
                        s[k - i] = c.dtype.type(SMALLEST_NORMAL)
                for k in range(i, j):
                    c[k] = (c[k] if add else zero) + g[k] * s[k - i]
            else:  # where a slope is infinite, what is not wanted counts for nothing
                for k in range(i, j):
                    c[k] = (c[k] if add else zero) + (g[k] * s[k - i] if g[k] != zero else zero)


@inner
def _smooth_slope(op, x, y, s, number):
    """s = f'(x) for the functions whose slope is no one-liner in y."""
    n = len(s)
    one = s.dtype.type(1)
    if op == EXP:
        for k in range(n):
            s[k] = y[k]
    elif op == SOFTPLUS:
        sigmoid_into(x, s)
    elif op == LOG:
        for k in range(n):
            s[k] = one / x[k]
    elif op == SQRT:
        for k in range(n):
            s[k] = one / (y[k] + y[k])
    elif op == SIN:
        cos_into(x, s)
    elif op == COS:
        sin_into(x, s)
        for k in range(n):
            s[k] = -s[k]
    elif op == POWER:
        p = s.dtype.type(number)
        if number == 0.0:
            for k in range(n):
                s[k] = one - one
        else:
            power_into(x, s, number - 1.0)
            for k in range(n):
                s[k] = p * s[k]
    else:  # COPY
        for k in range(n):
            s[k] = one


@inner
def _pull_kinked(op, x, g, c, add, number, rounding):
    """relu, leaky_relu and abs: at the kink the left slope of the first two, and 0 for abs."""
    one = c.dtype.type(1)
    zero = one - one
    below = zero
    at = below
    if op == LEAKY_RELU:
        below = c.dtype.type(number)
        at = below
    elif op == ABS:
        below = -one
    if rounding:
        below, at = below * np.sign(below.real), at * np.sign(at.real)
    for k in range(len(c)):
        r = x[k].real
        s = one if not r <= 0 else (at if r == 0 else below)
        c[k] = (c[k] if add else zero) + (g[k] * s if s != zero else zero)
