"""Elementwise functions of one argument and their slopes, over whole rows."""

from __future__ import annotations

import numpy as np

from bpcli.kernels.elementwise import (
    cos_into,
    exp_into,
    log_into,
    over,
    real_power_into,
    root,
    sigmoid_into,
    sin_into,
    softplus_into,
    tanh_into,
    times,
)
from bpcli.kernels.jit import inner
from bpcli.tape.instructions import (
    ABS,
    COPY,
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


@inner
def unary_into(op, x, y, number):
    """y = f(x); `number` is the exponent or slope where the operation has one."""
    n = len(x)
    if op == TANH:
        tanh_into(x, y)
    elif op == SIGMOID:
        sigmoid_into(x, y)
    elif op == EXP:
        exp_into(x, y)
    elif op == SOFTPLUS:
        softplus_into(x, y)
    elif op == LOG:
        log_into(x, y)
    elif op == SIN:
        sin_into(x, y)
    elif op == COS:
        cos_into(x, y)
    elif op == COPY:
        for k in range(n):
            y[k] = x[k]
    elif op == NEGATE:
        for k in range(n):
            y[k] = -x[k]
    elif op == SQRT:
        for k in range(n):
            y[k] = root(x[k])
    elif op == RELU:
        zero = y.dtype.type(0)
        for k in range(n):
            y[k] = zero if x[k].real <= 0 else x[k]
    elif op == LEAKY_RELU:
        slope = y.dtype.type(number)
        for k in range(n):
            y[k] = x[k] if x[k].real > 0 else times(x[k], slope)
    elif op == ABS:
        zero = y.dtype.type(0)  # at the kink, and of slope 0 there as backwards
        for k in range(n):
            y[k] = zero if x[k].real == 0 else -x[k] if x[k].real < 0 else x[k]
    elif op == POWER:
        power_into(x, y, number)


@inner
def power_into(x, y, exponent):
    """y = x ** exponent; whole exponents by repeated multiplication, so that any base will do."""
    n = len(x)
    one = y.dtype.type(1)
    size = abs(exponent)
    if exponent == 2.0:
        for k in range(n):
            y[k] = times(x[k], x[k])
    elif exponent == 0.0:
        for k in range(n):
            y[k] = one
    elif size == np.floor(size) and size < 2.0**53:
        for k in range(n):
            y[k] = whole_power(x[k], int(size))
        if exponent < 0:
            for k in range(n):
                y[k] = over(one, y[k])
    else:
        real_power_into(x, y, exponent)


@inner
def whole_power(x, exponent):
    """x ** exponent for a whole exponent >= 1, by squaring."""
    result = x
    factor = x
    rest = exponent - 1
    while rest > 0:
        if rest & 1:
            result = times(result, factor)
        factor = times(factor, factor)
        rest >>= 1
    return result
