"""Complex128 scalar functions for the complex step: a + i h stands for a number and its tangent, a dual number.

f(a + i h) = f(a) + i h f'(a), with nothing of second order: products of imaginary parts are dropped, so that there is
no truncation however large h is, nor where f'(a) is zero, and the range of derivatives is that of floats. The real
routine gives the real part; a slope without cancellation gives the imaginary part, accurate in deep saturation too
(Squire and Trapp, "Using complex variables to estimate derivatives of real functions", 1998, with h towards zero).
"""

import numpy as np

from bpcli.kernels.jit import inline
from bpcli.kernels.real_functions import (
    TRIG_MAX,
    cos_real,
    exp_real,
    log_real,
    sigmoid_real,
    sin_real,
    softplus_real,
    tanh_real,
)


@inline
def trig_near_to(x):
    """Whether `sin_near` and `cos_near` hold."""
    return np.abs(x.real) <= TRIG_MAX


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
def sin_near(x):
    """sin x for |x| <= TRIG_MAX."""
    return complex(sin_real(x.real), _first_order(cos_real(x.real), x.imag))


@inline
def sin_complex(x):
    """sin x; beyond TRIG_MAX by the mathematics library."""
    return sin_near(x) if trig_near_to(x) else complex(np.sin(x.real), _first_order(np.cos(x.real), x.imag))


@inline
def cos_near(x):
    """cos x for |x| <= TRIG_MAX."""
    return complex(cos_real(x.real), _first_order(-sin_real(x.real), x.imag))


@inline
def cos_complex(x):
    """cos x; beyond TRIG_MAX by the mathematics library."""
    return cos_near(x) if trig_near_to(x) else complex(np.cos(x.real), _first_order(-np.sin(x.real), x.imag))


@inline
def power_complex(x, exponent):
    """x ** exponent for a real exponent; a base below zero has none."""
    return complex(x.real**exponent, _first_order(exponent * x.real ** (exponent - 1.0), x.imag))
