"""Elementwise functions of one argument, f(x), and their reverse rules, c (+)= g f'(x).

A function `f_into(x, y, number)` writes f(x) to y for float64, float32 and complex128. Both are contiguous and
one-dimensional, of one length and one type, and y may be x itself; `number` is the exponent or slope of an operation
that has one. An entry's result depends on that entry alone, never on its position or its neighbours, so a batch may be
cut anywhere without changing a bit. float32 is computed in float64 and rounded once at the end. Complex numbers are
dual numbers, which `times` and `over` multiply and divide as such.

A reverse rule `pull(x, y, g, c, add, number, rounding)` adds g f'(x) to c, or stores it, given x and y = f(x); the one
that the rule does not read (see `Operation.saves`) may be stale. `rounding` asks for sums of absolute contributions: g
is non-negative then, and the absolute slope is enlarged by the error of its own evaluation, in units of roundoff (for
tanh, 1 - y² loses its digits where y is near ±1).

Functions and rules are made by the factories below. Their loops have no calls and no branches, so LLVM vectorises them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from bpcli.kernels import scalar_functions as scalar
from bpcli.kernels.jit import CHUNK, inline, inner, stack, vector
from bpcli.kernels.scalar_functions import over, times
from bpcli.tape.instructions import (
    ABS,
    COPY,
    COS,
    ERF,
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
    STOP,
    TANH,
    UNIT_STEP,
)

Function = Callable[..., Any]


def entrywise(f: Function) -> Function:
    """y = f(x) for a function of one number.

    x is copied first: a loop over one array alone vectorises in place too, with no overlap to rule out.
    """

    @inner
    def into(x, y, number):
        for k in range(len(y)):
            y[k] = x[k]
        for k in range(len(y)):
            y[k] = f(y[k])

    return into


def entrywise_trig(in_range: Function, anywhere: Function) -> Function:
    """y = f(x) where a vectorised f holds up to TRIG_MAX: a slice with larger entries is taken entry by entry."""

    @inner
    def into(x, y, number):
        far = 0
        for k in range(len(y)):
            y[k] = x[k]
            far += not scalar.trig_in_range(y[k])
        if far == 0:
            for k in range(len(y)):
                y[k] = in_range(y[k])
        else:
            for k in range(len(y)):
                y[k] = anywhere(y[k])

    return into


exp_into, tanh_into, sigmoid_into = entrywise(scalar.exp), entrywise(scalar.tanh), entrywise(scalar.sigmoid)
softplus_into, log_into, sqrt_into = entrywise(scalar.softplus), entrywise(scalar.log), entrywise(scalar.sqrt)
erf_into = entrywise(scalar.erf)
sin_into = entrywise_trig(scalar.sin_in_range, scalar.sin)
cos_into = entrywise_trig(scalar.cos_in_range, scalar.cos)


@inner
def copy_into(x, y, number):
    """y = x."""
    for k in range(len(y)):
        y[k] = x[k]


@inner
def stop_into(x, y, number):
    """y = x without its tangent."""
    for k in range(len(y)):
        y[k] = x[k].real


@inner
def unit_step_into(x, y, number):
    """y = 1 where x > 0, else 0; NaN stays."""
    one = y.dtype.type(1)
    for k in range(len(y)):
        r = x[k].real
        y[k] = one if r > 0 else (one - one if r <= 0 else x[k])


@inner
def negate_into(x, y, number):
    """y = -x."""
    for k in range(len(y)):
        y[k] = -x[k]


@inner
def relu_into(x, y, number):
    """y = max(x, 0)."""
    zero = y.dtype.type(0)
    for k in range(len(y)):
        y[k] = zero if x[k].real <= 0 else x[k]


@inner
def leaky_relu_into(x, y, number):
    """y = x where x > 0, else x times the slope `number`."""
    slope = y.dtype.type(number)
    for k in range(len(y)):
        y[k] = x[k] if x[k].real > 0 else times(x[k], slope)


@inner
def abs_into(x, y, number):
    """y = |x|; at the kink 0 with a slope of 0, as backwards."""
    zero = y.dtype.type(0)
    for k in range(len(y)):
        y[k] = zero if x[k].real == 0 else -x[k] if x[k].real < 0 else x[k]


@inner
def power_into(x, y, exponent):
    """y = x ** exponent; whole exponents by repeated multiplication, which any base has."""
    n = len(y)
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
            y[k] = _whole_power(x[k], int(size))
        if exponent < 0:
            for k in range(n):
                y[k] = over(one, y[k])
    else:
        for k in range(n):
            y[k] = scalar.power(x[k], exponent)


@inner
def _whole_power(x, exponent):
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
"""Error of the evaluated slope of tanh or sigmoid, with that of the value it is made of, in units of roundoff of y²."""


def pull_by_result(slope: Function, bound: Function) -> Function:
    """The reverse rule of a function whose slope `slope(y, 1)` is finite; `bound(y, 1, least)` as for `pull_by_slope`.

    The slope takes no loop of its own: these are the functions of recurrent steps.
    """

    @inner
    def pull(x, y, g, c, add, number, rounding):
        n = len(c)
        one = c.dtype.type(1)
        zero = one - one
        if rounding:
            least = c.dtype.type(scalar.SMALLEST_NORMAL)
            for k in range(n):
                c[k] = (c[k] if add else zero) + g[k] * bound(y[k], one, least)
        elif add:
            for k in range(n):
                c[k] += g[k] * slope(y[k], one)
        else:
            for k in range(n):
                c[k] = g[k] * slope(y[k], one)

    return pull


@inline
def _tanh_slope(y, one):
    return (one - y) * (one + y)


@inline
def _tanh_bound(y, one, least):
    return abs(one - y * y) + SLOPE_ROUNDING * abs(y * y)


@inline
def _sigmoid_slope(y, one):
    return y * (one - y)


@inline
def _sigmoid_bound(y, one, least):
    bound = abs(y * (one - y)) + SLOPE_ROUNDING * abs(y * y)
    return bound if bound != 0 else least


@inline
def _absolute(v, slope, least):
    return abs(slope)


@inline
def _absolute_normal(v, slope, least):
    """|slope|; a zero stands for a slope that underflows."""
    return abs(slope) if slope != 0 else least


@inline
def _absolute_trig(v, slope, least):
    """|slope| and the error that an error of the argument makes in it."""
    return abs(slope) + abs(v)


def pull_by_slope(slope_into: Function, of_result: bool = False, bound: Function = _absolute) -> Function:
    """The reverse rule of a function with f'(x) = slope(v), where v is x or, `of_result`, y.

    `bound(v, slope, least)` is the absolute slope with its error, `least` the smallest normal number. Where a slope is
    infinite, an argument without cotangent takes none.
    """

    @inner
    def pull(x, y, g, c, add, number, rounding):
        n = len(c)
        zero = c.dtype.type(0)
        least = c.dtype.type(scalar.SMALLEST_NORMAL)
        v = y if of_result else x
        slopes = vector(stack(c), CHUNK)
        for i in range(0, n, CHUNK):
            j = min(i + CHUNK, n)
            s = slopes[: j - i]
            slope_into(v[i:j], s, number)
            if rounding:
                for k in range(i, j):
                    s[k - i] = bound(v[k], s[k - i], least)
                for k in range(i, j):
                    c[k] = (c[k] if add else zero) + g[k] * s[k - i]
            else:
                for k in range(i, j):
                    c[k] = (c[k] if add else zero) + (g[k] * s[k - i] if g[k] != zero else zero)

    return pull


@inline
def _itself(v):
    return v


@inline
def _reciprocal(v):
    return 1 / v


@inline
def _half_reciprocal(v):
    return 1 / (v + v)


@inner
def _minus_sin_into(x, s, number):
    sin_into(x, s, number)
    for k in range(len(s)):
        s[k] = -s[k]


@inner
def _power_slope_into(x, s, exponent):
    p = s.dtype.type(exponent)
    if exponent == 0.0:
        for k in range(len(s)):
            s[k] = 0
    else:
        power_into(x, s, exponent - 1.0)
        for k in range(len(s)):
            s[k] = p * s[k]


@inner
def _pull_copy(x, y, g, c, add, number, rounding):
    """c (+)= g."""
    zero = c.dtype.type(0)
    for k in range(len(c)):
        c[k] = (c[k] if add else zero) + (g[k] if g[k] != zero else zero)


@inner
def _pull_negate(x, y, g, c, add, number, rounding):
    """c (+)= -g."""
    zero = c.dtype.type(0)
    for k in range(len(c)):
        c[k] = (c[k] if add else zero) + (g[k] if rounding else -g[k])


def pull_by_side(below: Function, at: Function) -> Function:
    """The reverse rule of a function with a kink at 0: the slopes `below(number)` and `at(number)`, 1 above."""

    @inner
    def pull(x, y, g, c, add, number, rounding):
        one = c.dtype.type(1)
        zero = one - one
        left, kink = c.dtype.type(below(number)), c.dtype.type(at(number))
        if rounding:
            left, kink = abs(left), abs(kink)
        for k in range(len(c)):
            r = x[k].real
            s = one if not r <= 0 else (kink if r == 0 else left)
            c[k] = (c[k] if add else zero) + (g[k] * s if s != zero else zero)

    return pull


@inline
def _zero(number):
    return 0.0


@inline
def _minus_one(number):
    return -1.0


@inline
def _number(number):
    return number


_pull_tanh = pull_by_result(_tanh_slope, _tanh_bound)
_pull_sigmoid = pull_by_result(_sigmoid_slope, _sigmoid_bound)
_pull_relu = pull_by_side(_zero, _zero)
_pull_leaky_relu = pull_by_side(_number, _number)
_pull_abs = pull_by_side(_minus_one, _zero)
_pull_exp = pull_by_slope(entrywise(_itself), of_result=True, bound=_absolute_normal)
_pull_softplus = pull_by_slope(sigmoid_into, bound=_absolute_normal)
_pull_log = pull_by_slope(entrywise(_reciprocal))
_pull_sqrt = pull_by_slope(entrywise(_half_reciprocal), of_result=True)
_pull_sin = pull_by_slope(cos_into, bound=_absolute_trig)
_pull_cos = pull_by_slope(_minus_sin_into, bound=_absolute_trig)
_pull_erf = pull_by_slope(entrywise(scalar.erf_slope), bound=_absolute_normal)
_pull_power = pull_by_slope(_power_slope_into)


@inner
def unary_into(op, x, y, number):
    """y = f(x) by the function of an opcode."""
    if op == TANH:
        tanh_into(x, y, number)
    elif op == SIGMOID:
        sigmoid_into(x, y, number)
    elif op == COPY:
        copy_into(x, y, number)
    elif op == NEGATE:
        negate_into(x, y, number)
    elif op == RELU:
        relu_into(x, y, number)
    elif op == LEAKY_RELU:
        leaky_relu_into(x, y, number)
    elif op == ABS:
        abs_into(x, y, number)
    elif op == EXP:
        exp_into(x, y, number)
    elif op == SOFTPLUS:
        softplus_into(x, y, number)
    elif op == LOG:
        log_into(x, y, number)
    elif op == SQRT:
        sqrt_into(x, y, number)
    elif op == SIN:
        sin_into(x, y, number)
    elif op == COS:
        cos_into(x, y, number)
    elif op == STOP:
        stop_into(x, y, number)
    elif op == UNIT_STEP:
        unit_step_into(x, y, number)
    elif op == ERF:
        erf_into(x, y, number)
    elif op == POWER:
        power_into(x, y, number)


@inner
def pull_unary(op, x, y, g, c, add, number, rounding):
    """c (+)= g f'(x) by the rule of an opcode."""
    if op == TANH:
        _pull_tanh(x, y, g, c, add, number, rounding)
    elif op == SIGMOID:
        _pull_sigmoid(x, y, g, c, add, number, rounding)
    elif op == COPY:
        _pull_copy(x, y, g, c, add, number, rounding)
    elif op == NEGATE:
        _pull_negate(x, y, g, c, add, number, rounding)
    elif op == RELU:
        _pull_relu(x, y, g, c, add, number, rounding)
    elif op == LEAKY_RELU:
        _pull_leaky_relu(x, y, g, c, add, number, rounding)
    elif op == ABS:
        _pull_abs(x, y, g, c, add, number, rounding)
    elif op == EXP:
        _pull_exp(x, y, g, c, add, number, rounding)
    elif op == SOFTPLUS:
        _pull_softplus(x, y, g, c, add, number, rounding)
    elif op == LOG:
        _pull_log(x, y, g, c, add, number, rounding)
    elif op == SQRT:
        _pull_sqrt(x, y, g, c, add, number, rounding)
    elif op == SIN:
        _pull_sin(x, y, g, c, add, number, rounding)
    elif op == COS:
        _pull_cos(x, y, g, c, add, number, rounding)
    elif op == ERF:
        _pull_erf(x, y, g, c, add, number, rounding)
    elif op == POWER:
        _pull_power(x, y, g, c, add, number, rounding)
