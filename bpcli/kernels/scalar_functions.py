"""Scalar functions, float64 and complex128, written so that LLVM vectorises a loop over them.

Each real function is within 2 ulp of the mathematical value over the whole range, including subnormal numbers, overflow
and saturation, and returns the IEEE value for NaN, infinities and signed zeros. There are no calls, no tables and no
branches: special cases are selected at the end, and 2^k is assembled from the bits of a float.

A complex argument a + i h stands for the dual number of a value and its tangent: f(a + i h) = f(a) + i h f'(a).
Products of imaginary parts are dropped, so there is no truncation error however large h is, and derivatives have the
range of floats. The real function gives the real part; a slope without cancellation gives the imaginary part, accurate
in deep saturation too (Squire and Trapp, "Using complex variables to estimate derivatives of real functions", 1998,
with h towards zero).

Sources: the range reductions are those of Cody and Waite, "Software Manual for the Elementary Functions" (1980); the
polynomials of `log`, `sin` and `cos` are those of fdlibm (Sun Microsystems, 1993); that of `exp` is a Chebyshev fit of
(e^r - 1 - r) / r^2 on |r| <= 0.347 with an error below 0.003 ulp of e^r.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from bpcli import kernels
from bpcli.kernels.jit import INLINED, inline

LOG2_E = 1.4426950408889634
LN2_HI = 6.93147180369123816490e-01  # 32 significant bits: k * LN2_HI is exact for every exponent k
LN2_LO = 1.90821492927058770002e-10
EXP_MAX = 709.782712893384  # e^x is finite up to here
EXP_MIN = -746.0  # e^x rounds to zero below here
ROUND = 6755399441055744.0  # 1.5 * 2^52: adding it rounds a float to an integer and leaves that in the low bits
BIAS = 2046.0  # twice the exponent bias of a float64, so that k + BIAS is positive and splits into two exponents
ONE_BITS = 0x3FF0000000000000
ROOT_HALF_BITS = 0x3FE6A09E667F3BCD  # sqrt(1/2)
MANTISSA_BITS = 0x000FFFFFFFFFFFFF
ROUND_BITS = 0x4338000000000000
SMALLEST_NORMAL = 2.2250738585072014e-308
TWO_54 = 18014398509481984.0
TRIG_MAX = 1048576.0  # 2^20: up to here n * PIO2_A, n * PIO2_B and n * PIO2_C are exact
TWO_OVER_PI = 0.6366197723675814
TWO_OVER_ROOT_PI = 1.1283791670955126
PIO2_A = 1.57079632673412561417e00  # pi/2 in four parts; the first three have 33 significant bits
PIO2_B = 6.07710050630396597660e-11
PIO2_C = 2.02226624871116645580e-21
PIO2_D = 8.47842766036889956997e-32


def _fma(a, b, c):
    """a * b + c, rounded once where the processor has the instruction; no result here relies on that."""
    return a * b + c


if kernels.compiling:
    from llvmlite import ir
    from numba import types
    from numba.extending import lower_builtin, overload, type_callable

    @type_callable(_fma)
    def _type_fma(_context):
        return lambda a, b, c: types.float64

    @lower_builtin(_fma, types.float64, types.float64, types.float64)
    def _lower_fma(_context, builder, _signature, arguments):
        double = ir.DoubleType()
        fmuladd = builder.module.declare_intrinsic("llvm.fmuladd", [double], ir.FunctionType(double, [double] * 3))
        return builder.call(fmuladd, arguments)


@inline
def _reduce(x):
    """Write x = k ln 2 + r + c with integer k, |r| <= 0.347 and c << r; return r, c, and k + BIAS as an integer."""
    shifted = _fma(x, LOG2_E, ROUND + BIAS)
    k = shifted - (ROUND + BIAS)
    high = _fma(k, -LN2_HI, x)
    r = _fma(k, -LN2_LO, high)
    return r, _fma(k, -LN2_LO, high - r), np.float64(shifted).view(np.int64) & 4095


@inline
def _exp_tail(r, c):
    """e^(r + c) - 1 - r for |r| <= 0.347 and c << r."""
    r2 = r * r
    r4 = r2 * r2
    p0 = _fma(r2, _fma(r, 0.00833333333332607, 0.04166666666666667), _fma(r, 0.1666666666666667, 0.5))
    p1 = _fma(r, 0.00019841269875048905, 0.0013888888888883703)
    p1 = _fma(r2, _fma(r, 2.755725511097889e-06, 2.480158732571076e-05), p1)
    p2 = _fma(r2, 2.091477283224809e-09, _fma(r, 2.510533724466521e-08, 2.755727343657049e-07))
    return _fma(r2, _fma(r4, _fma(r4, p2, p1), p0), c)


@inline
def _log_kernel(f, k):
    """log(1 + f) + k log 2 for 1 + f in [sqrt(1/2), sqrt(2)]."""
    s = f / (2.0 + f)
    z = s * s
    w = z * z
    odd = _fma(w, _fma(w, 0.1479819860511658591, 0.1818357216161805012), 0.2857142874366239149)
    odd = _fma(w, odd, 0.6666666666666735130)
    even = _fma(w, _fma(w, 0.1531383769920937332, 0.2222219843214978396), 0.3999999999940941908)
    half_square = 0.5 * f * f
    correction = _fma(k, LN2_LO, s * (half_square + _fma(w, even, z * odd)))
    return _fma(k, LN2_HI, -((half_square - correction) - f))


@inline
def _exp_below(x):
    """e^x for x <= EXP_MAX."""
    r, c, k = _reduce(EXP_MIN if x < EXP_MIN else x)
    high = 1.0 + r
    p = high + (((1.0 - high) + r) + _exp_tail(r, c))
    # Two factors, each a normal number, so that a subnormal result is rounded once.
    half = k >> 1
    return p * np.int64(half << 52).view(np.float64) * np.int64((k - half) << 52).view(np.float64)


@inline
def exp_real(x):
    """e^x."""
    x = np.float64(x)
    return np.inf if x > EXP_MAX else _exp_below(x)


@inline
def tanh_real(x):
    """tanh x = E / (2 + E) with E = e^2|x| - 1, and the sign of x."""
    x = np.float64(x)
    a = 2.0 * np.abs(x)
    r, c, k = _reduce(44.0 if a > 44.0 else a)  # tanh 22 rounds to one
    power = np.int64((k - 1023) << 52).view(np.float64)
    # E = (power - 1) + power r + power tail, the rounding of the first sum carried into the second.
    high = _fma(power, r, power - 1.0)
    expm1 = high + (_fma(power, r, (power - 1.0) - high) + power * _exp_tail(r, c))
    half = 0.5 * expm1
    quotient = expm1 / (2.0 + expm1)
    # Below 1/3 the same quotient as E/2 - E/2 E/(2 + E), where its rounding no longer matters.
    return np.copysign(_fma(-half, quotient, half) if expm1 < 1.0 else quotient, x)


@inline
def sigmoid_real(x):
    """1 / (1 + e^-x), without overflow and without cancellation on either side."""
    x = np.float64(x)
    e = _exp_below(-np.abs(x))
    top = e if x < 0.0 else 1.0
    return _fma(-top, e / (1.0 + e), top)  # top / (1 + e) with one rounding less


@inline
def softplus_real(x):
    """log(1 + e^x) = max(x, 0) + log(1 + e^-|x|)."""
    x = np.float64(x)
    e = _exp_below(-np.abs(x))
    far = e > 0.41421356237309503  # 1 + e is halved above sqrt(2)
    f = 0.5 * (e - 1.0) if far else e
    return (0.0 if x < 0.0 else x) + _log_kernel(f, 1.0 if far else 0.0)


@inline
def log_real(x):
    """log x; -inf at zero and NaN below it."""
    x = np.float64(x)
    a = x if x > 0.0 else 1.0
    a = 1.0 if a == np.inf else a
    tiny = a < SMALLEST_NORMAL
    a = a * TWO_54 if tiny else a
    bits = np.float64(a).view(np.int64) + (ONE_BITS - ROOT_HALF_BITS)
    # The exponent becomes a float through the low bits of ROUND: AVX2 has no conversion from int64.
    k = np.int64(((bits >> 52) & 4095) | ROUND_BITS).view(np.float64) - (ROUND + 1023.0)
    mantissa = np.int64((bits & MANTISSA_BITS) + ROOT_HALF_BITS).view(np.float64)
    value = _log_kernel(mantissa - 1.0, k - 54.0 if tiny else k)
    value = -np.inf if x == 0.0 else value
    value = x if x == np.inf else value
    return value if x >= 0.0 else np.nan


@inline
def _two_sum(a, b):
    """a + b and its rounding error (Knuth)."""
    s = a + b
    v = s - a
    return s, (a - (s - v)) + (b - v)


@inline
def _sin_kernel(r, c):
    """sin(r + c) for |r| <= pi/4 and c << r."""
    z = r * r
    p = _fma(z, 1.58969099521155010221e-10, -2.50507602534068634195e-08)
    p = _fma(z, _fma(z, p, 2.75573137070700676789e-06), -1.98412698298579493134e-04)
    p = _fma(z, p, 8.33333333332248946124e-03)
    v = z * r
    return r - _fma(v, 1.66666666666666324348e-01, z * _fma(-v, p, 0.5 * c) - c)


@inline
def _cos_kernel(r, c):
    """cos(r + c) for |r| <= pi/4 and c << r."""
    z = r * r
    p = _fma(z, -1.13596475577881948265e-11, 2.08757232129817482790e-09)
    p = _fma(z, _fma(z, p, -2.75573143513906633035e-07), 2.48015872894767294178e-05)
    p = z * _fma(z, _fma(z, p, -1.38888888888741095749e-03), 4.16666666666666019037e-02)
    half = 0.5 * z
    base = 1.0 - half
    return base + (((1.0 - base) - half) + _fma(z, p, -r * c))


@inline
def _sin_turned(x, turns):
    """sin(x + turns pi/2) for |x| <= TRIG_MAX and turns 0 or 1."""
    shifted = _fma(x, TWO_OVER_PI, ROUND)
    n = shifted - ROUND
    high, error_b = _two_sum(_fma(n, -PIO2_A, x), n * -PIO2_B)
    high, error_c = _two_sum(high, n * -PIO2_C)
    low = _fma(n, -PIO2_D, error_b + error_c)
    r = high + low
    c = (high - r) + low
    quadrant = np.float64(shifted).view(np.int64) + turns
    value = _sin_kernel(r, c) if (quadrant & 1) == 0 else _cos_kernel(r, c)
    return value if (quadrant & 2) == 0 else -value


@inline
def sin_real(x):
    """sin x for |x| <= TRIG_MAX."""
    x = np.float64(x)
    value = _sin_turned(x, 0)
    return x if x == 0.0 else value  # the sign of zero


@inline
def cos_real(x):
    """cos x for |x| <= TRIG_MAX."""
    x = np.float64(x)
    return _sin_turned(x, 1)


@inline
def erf_real(x):
    """The error function, by the mathematics library."""
    return math.erf(np.float64(x))


@inline
def erf_slope_real(x):
    """2/sqrt(pi) e^(-x^2), the square cut in two so that its rounding does not grow with x."""
    x = np.float64(x)
    z = np.int64(np.float64(x).view(np.int64) & -4294967296).view(np.float64)  # its square is exact
    small = x == x and np.abs(x) < 30.0  # e^-900 is zero
    a, b = (z, x) if small else (0.0, 0.0)
    value = TWO_OVER_ROOT_PI * exp_real(-a * a) * exp_real((a - b) * (a + b))
    return value if small else (0.0 if x == x else x)


@inline
def power_real(x, y):
    """x ** y, by the mathematics library."""
    return np.float64(x) ** y


@inline
def times_real(x, y):
    """x y."""
    return x * y


@inline
def over_real(x, y):
    """x / y."""
    return x / y


@inline
def sqrt_real(x):
    """The root of x."""
    return np.sqrt(x)


@inline
def trig_in_range(x):
    """Whether `sin_in_range` and `cos_in_range` hold."""
    return np.abs(x.real) <= TRIG_MAX


@inline
def sin_anywhere(x):
    """sin x; beyond TRIG_MAX by the mathematics library."""
    return sin_real(x) if trig_in_range(x) else np.sin(np.float64(x))


@inline
def cos_anywhere(x):
    """cos x; beyond TRIG_MAX by the mathematics library."""
    return cos_real(x) if trig_in_range(x) else np.cos(np.float64(x))


@inline
def _first_order(slope, h):
    """h slope; a zero h stays the zero it is even where the slope is infinite."""
    return h * slope if h != 0.0 else h


@inline
def times_complex(x, y):
    """x y."""
    return complex(x.real * y.real, _first_order(y.real, x.imag) + _first_order(x.real, y.imag))


@inline
def over_complex(x, y):
    """x / y."""
    value = x.real / y.real
    return complex(value, (x.imag - _first_order(value, y.imag)) / y.real)


@inline
def sqrt_complex(x):
    """The root of x."""
    value = np.sqrt(x.real)
    return complex(value, _first_order(0.5 / value, x.imag))


@inline
def exp_complex(x):
    """e^x."""
    value = exp_real(x.real)
    return complex(value, _first_order(value, x.imag))


@inline
def tanh_complex(x):
    """tanh x; its slope is sech^2 a = 4 e / (1 + e)^2 with e = e^-2|a|."""
    e = exp_real(-2.0 * np.abs(x.real))
    return complex(tanh_real(x.real), _first_order(4.0 * e / ((1.0 + e) * (1.0 + e)), x.imag))


@inline
def sigmoid_complex(x):
    """1 / (1 + e^-x); its slope is e / (1 + e)^2 with e = e^-|a|."""
    e = exp_real(-np.abs(x.real))
    return complex(sigmoid_real(x.real), _first_order(e / ((1.0 + e) * (1.0 + e)), x.imag))


@inline
def softplus_complex(x):
    """log(1 + e^x); its slope is the sigmoid."""
    return complex(softplus_real(x.real), _first_order(sigmoid_real(x.real), x.imag))


@inline
def log_complex(x):
    """log x."""
    return complex(log_real(x.real), _first_order(1.0 / x.real, x.imag))


@inline
def sin_in_range_complex(x):
    """sin x for |x| <= TRIG_MAX."""
    return complex(sin_real(x.real), _first_order(cos_real(x.real), x.imag))


@inline
def sin_complex(x):
    """sin x; beyond TRIG_MAX by the mathematics library."""
    return complex(sin_anywhere(x.real), _first_order(cos_anywhere(x.real), x.imag))


@inline
def cos_in_range_complex(x):
    """cos x for |x| <= TRIG_MAX."""
    return complex(cos_real(x.real), _first_order(-sin_real(x.real), x.imag))


@inline
def cos_complex(x):
    """cos x; beyond TRIG_MAX by the mathematics library."""
    return complex(cos_anywhere(x.real), _first_order(-sin_anywhere(x.real), x.imag))


@inline
def erf_complex(x):
    """erf x."""
    return complex(erf_real(x.real), _first_order(erf_slope_real(x.real), x.imag))


@inline
def erf_slope_complex(x):
    """The slope of erf x, and its own: -2 x times it."""
    value = erf_slope_real(x.real)
    return complex(value, _first_order(-2.0 * x.real * value, x.imag))


@inline
def power_complex(x, y):
    """x ** y for a real y; a base below zero has none."""
    return complex(x.real**y, _first_order(y * x.real ** (y - 1.0), x.imag))


def _by_type(real: Callable[..., Any], dual: Callable[..., Any]) -> Callable[..., Any]:
    """The function of one number that is `real` or `dual` by the number's type, chosen at compile time."""

    def function(x):
        return dual(x) if isinstance(x, complex) else real(x)

    if kernels.compiling:

        @overload(function, jit_options=INLINED)
        def choose(x):
            return dual.py_func if isinstance(x, types.Complex) else real.py_func

    return function


def _by_first_type(real: Callable[..., Any], dual: Callable[..., Any]) -> Callable[..., Any]:
    """The same for a function of two numbers; the first one's type counts."""

    def function(x, y):
        return dual(x, y) if isinstance(x, complex) else real(x, y)

    if kernels.compiling:

        @overload(function, jit_options=INLINED)
        def choose(x, y):
            return dual.py_func if isinstance(x, types.Complex) else real.py_func

    return function


times = _by_first_type(times_real, times_complex)
over = _by_first_type(over_real, over_complex)
power = _by_first_type(power_real, power_complex)
sqrt = _by_type(sqrt_real, sqrt_complex)
exp = _by_type(exp_real, exp_complex)
tanh = _by_type(tanh_real, tanh_complex)
sigmoid = _by_type(sigmoid_real, sigmoid_complex)
softplus = _by_type(softplus_real, softplus_complex)
log = _by_type(log_real, log_complex)
erf, erf_slope = _by_type(erf_real, erf_complex), _by_type(erf_slope_real, erf_slope_complex)
sin_in_range, sin = _by_type(sin_real, sin_in_range_complex), _by_type(sin_anywhere, sin_complex)
cos_in_range, cos = _by_type(cos_real, cos_in_range_complex), _by_type(cos_anywhere, cos_complex)
