"""Complex128 scalar functions for the complex step, where imaginary parts are perturbations of 1e-20 and less.

There f(a + ih) = f(a) + i h f'(a) holds to far below the rounding error, so the real routine gives the real part and a
slope without cancellation gives the imaginary part, accurate in deep saturation too (Squire and Trapp, "Using complex
variables to estimate derivatives of real functions", 1998). Any other number takes the general complex formula.
"""

import numpy as np

from bpcli.kernels.elementwise_real import (
    TRIG_MAX,
    cos_real,
    exp_real,
    log_real,
    sigmoid_real,
    sin_real,
    softplus_real,
    tanh_real,
)
from bpcli.kernels.jit import inline

STEP_MAX = 1e-20  # at most this size an imaginary part is a first-order perturbation


@inline
def _first_order(value, slope, h):
    """value + i h slope; a zero h stays the zero it is even where the slope is infinite."""
    return complex(value, h * slope if h != 0.0 else h)


@inline
def exp_complex(x):
    """e^x."""
    if np.abs(x.imag) <= STEP_MAX:
        value = exp_real(x.real)
        return _first_order(value, value, x.imag)
    return np.exp(x)


@inline
def tanh_complex(x):
    """tanh x; its slope is sech^2 a = 4 e / (1 + e)^2 with e = e^-2|a|."""
    if np.abs(x.imag) <= STEP_MAX:
        e = exp_real(-2.0 * np.abs(x.real))
        return _first_order(tanh_real(x.real), 4.0 * e / ((1.0 + e) * (1.0 + e)), x.imag)
    return np.tanh(x)


@inline
def sigmoid_complex(x):
    """1 / (1 + e^-x); its slope is e / (1 + e)^2 with e = e^-|a|."""
    if np.abs(x.imag) <= STEP_MAX:
        e = exp_real(-np.abs(x.real))
        return _first_order(sigmoid_real(x.real), e / ((1.0 + e) * (1.0 + e)), x.imag)
    if x.real < 0.0:
        power = np.exp(x)
        return power / (1.0 + power)
    return 1.0 / (1.0 + np.exp(-x))


@inline
def softplus_complex(x):
    """log(1 + e^x); its slope is the sigmoid."""
    if np.abs(x.imag) <= STEP_MAX:
        return _first_order(softplus_real(x.real), sigmoid_real(x.real), x.imag)
    if x.real < 0.0:
        return np.log1p(np.exp(x))
    return x + np.log1p(np.exp(-x))


@inline
def log_complex(x):
    """log x, principal branch; the perturbation is small beside the real part, not beside one."""
    if np.abs(x.imag) <= STEP_MAX * x.real:
        return _first_order(log_real(x.real), 1.0 / x.real, x.imag)
    return np.log(x)


@inline
def sin_complex(x):
    """sin x."""
    if np.abs(x.imag) <= STEP_MAX and np.abs(x.real) <= TRIG_MAX:
        return _first_order(sin_real(x.real), cos_real(x.real), x.imag)
    return np.sin(x)


@inline
def cos_complex(x):
    """cos x."""
    if np.abs(x.imag) <= STEP_MAX and np.abs(x.real) <= TRIG_MAX:
        return _first_order(cos_real(x.real), -sin_real(x.real), x.imag)
    return np.cos(x)


@inline
def power_complex(x, exponent):
    """x ** exponent for a real exponent; a base below zero has none."""
    if np.abs(x.imag) <= STEP_MAX:
        value = x.real**exponent
        return _first_order(value, exponent * x.real ** (exponent - 1.0), x.imag)
    return np.exp(exponent * np.log(x))
