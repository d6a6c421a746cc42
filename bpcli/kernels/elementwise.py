"""Elementwise functions of whole slices, for float64, float32 and complex128 alike.

`f_into(x, y)` writes f(x) to y. Both are contiguous and one-dimensional, of one length and one type, and y may be x
itself. An entry's result depends on that entry alone, never on its position or its neighbours, so a batch may be cut
anywhere without changing a bit. float32 is computed in float64 and rounded once at the end.

The loops have no calls and no branches, and are vectorised, those of `sin` and `cos` where no entry of a slice is
large; LLVM would call what is not wanted too, and choose after that. They read and write y alone after a copy of x:
with one array there is nothing for LLVM to prove about overlap, and they vectorise in place too. They are written out,
as a function made of functions is not kept on disk.

Complex numbers are numbers with their tangents, which `times` and `over` multiply and divide as such.

Elementwise functions of one argument and their slopes, over whole rows.

The reverse rule of elementwise functions: c (+)= g · slope.

`rounding` asks for sums of absolute contributions instead: g is non-negative, and to the absolute slope is added what
its own evaluation may be off by, in units of roundoff (for tanh, 1 − y² loses its digits where y is near ±1).
"""

from __future__ import annotations

import numpy as np

from bpcli.kernels import complex_functions as complex_
from bpcli.kernels import mode
from bpcli.kernels import real_functions as real
from bpcli.kernels.jit import CHUNK, INLINED, inline, inner, stack, vector
from bpcli.kernels.real_functions import SMALLEST_NORMAL
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

if mode.compiling:
    from numba import types
    from numba.extending import overload


def _by_type(real_function, complex_function):
    """A function of one number: the real or the complex routine, chosen at compile time."""

    def function(x):
        return complex_function(x) if isinstance(x, complex) else real_function(x)

    if mode.compiling:

        @overload(function, jit_options=INLINED)
        def choose(x):
            return complex_function.py_func if isinstance(x, types.Complex) else real_function.py_func

    return function


def _by_types(real_function, complex_function):
    """The same of a function of two numbers of one type."""

    def function(x, y):
        return complex_function(x, y) if isinstance(x, complex) else real_function(x, y)

    if mode.compiling:

        @overload(function, jit_options=INLINED)
        def choose(x, y):
            return complex_function.py_func if isinstance(x, types.Complex) else real_function.py_func

    return function


@inline
def _product(x, y):
    """x y."""
    return x * y


@inline
def _quotient(x, y):
    """x / y."""
    return x / y


@inline
def _root(x):
    """The root of x."""
    return np.sqrt(x)


def _power(x, exponent):
    """x ** exponent: the real or the complex routine, chosen at compile time."""
    return complex_.power_complex(x, exponent) if isinstance(x, complex) else real.power_real(x, exponent)


if mode.compiling:

    @overload(_power, jit_options=INLINED)
    def _choose_power(x, exponent):
        return (complex_.power_complex if isinstance(x, types.Complex) else real.power_real).py_func


@inline
def _within(x):
    """Where `sin_real` and `cos_real` hold."""
    return np.abs(x) <= real.TRIG_MAX


@inline
def _sin_any(x):
    """sin x; beyond TRIG_MAX by the mathematics library."""
    return real.sin_real(x) if np.abs(x) <= real.TRIG_MAX else np.sin(np.float64(x))


@inline
def _cos_any(x):
    """cos x; beyond TRIG_MAX by the mathematics library."""
    return real.cos_real(x) if np.abs(x) <= real.TRIG_MAX else np.cos(np.float64(x))


times = _by_types(_product, complex_.times_complex)
over = _by_types(_quotient, complex_.over_complex)
root = _by_type(_root, complex_.sqrt_complex)
_exp = _by_type(real.exp_real, complex_.exp_complex)
_tanh = _by_type(real.tanh_real, complex_.tanh_complex)
_sigmoid = _by_type(real.sigmoid_real, complex_.sigmoid_complex)
_softplus = _by_type(real.softplus_real, complex_.softplus_complex)
_log = _by_type(real.log_real, complex_.log_complex)
_trig_near_to = _by_type(_within, complex_.trig_near_to)
_sin_near = _by_type(real.sin_real, complex_.sin_near)
_sin = _by_type(_sin_any, complex_.sin_complex)
_cos_near = _by_type(real.cos_real, complex_.cos_near)
_cos = _by_type(_cos_any, complex_.cos_complex)


@inner
def exp_into(x, y):
    """y = e^x."""
    for k in range(y.shape[0]):
        y[k] = x[k]
    for k in range(y.shape[0]):
        y[k] = _exp(y[k])


@inner
def tanh_into(x, y):
    """y = tanh x."""
    for k in range(y.shape[0]):
        y[k] = x[k]
    for k in range(y.shape[0]):
        y[k] = _tanh(y[k])


@inner
def sigmoid_into(x, y):
    """y = 1 / (1 + e^-x)."""
    for k in range(y.shape[0]):
        y[k] = x[k]
    for k in range(y.shape[0]):
        y[k] = _sigmoid(y[k])


@inner
def softplus_into(x, y):
    """y = log(1 + e^x)."""
    for k in range(y.shape[0]):
        y[k] = x[k]
    for k in range(y.shape[0]):
        y[k] = _softplus(y[k])


@inner
def log_into(x, y):
    """y = log x."""
    for k in range(y.shape[0]):
        y[k] = x[k]
    for k in range(y.shape[0]):
        y[k] = _log(y[k])


@inner
def sin_into(x, y):
    """y = sin x; a slice with entries beyond TRIG_MAX is not vectorised."""
    far = 0
    for k in range(y.shape[0]):
        y[k] = x[k]
        far += not _trig_near_to(y[k])
    if far == 0:
        for k in range(y.shape[0]):
            y[k] = _sin_near(y[k])
    else:
        for k in range(y.shape[0]):
            y[k] = _sin(y[k])


@inner
def cos_into(x, y):
    """y = cos x; a slice with entries beyond TRIG_MAX is not vectorised."""
    far = 0
    for k in range(y.shape[0]):
        y[k] = x[k]
        far += not _trig_near_to(y[k])
    if far == 0:
        for k in range(y.shape[0]):
            y[k] = _cos_near(y[k])
    else:
        for k in range(y.shape[0]):
            y[k] = _cos(y[k])


@inner
def real_power_into(x, y, exponent):
    """y = x ** exponent for any real exponent."""
    for k in range(y.shape[0]):
        y[k] = _power(x[k], exponent)


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
