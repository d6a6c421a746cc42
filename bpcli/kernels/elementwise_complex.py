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
def near(x):
    """Whether x is a perturbed number, which the functions called `near` are for."""
    return np.abs(x.imag) <= STEP_MAX


@inline
def log_near_to(x):
    """The same for log: the perturbation is small beside the real part, not beside one."""
    return np.abs(x.imag) <= STEP_MAX * x.real


@inline
def trig_near_to(x):
    """The same for sin and cos."""
    return np.abs(x.imag) <= STEP_MAX and np.abs(x.real) <= TRIG_MAX


@inline
def _first_order(value, slope, h):
    """value + i h slope; a zero h stays the zero it is even where the slope is infinite."""
    return complex(value, h * slope if h != 0.0 else h)


@inline
def exp_near(x):
    """e^x."""
    value = exp_real(x.real)
    return _first_order(value, value, x.imag)


@inline
def exp_complex(x):
    """e^x."""
    return exp_near(x) if near(x) else np.exp(x)


@inline
def tanh_near(x):
    """tanh x; its slope is sech^2 a = 4 e / (1 + e)^2 with e = e^-2|a|."""
    e = exp_real(-2.0 * np.abs(x.real))
    return _first_order(tanh_real(x.real), 4.0 * e / ((1.0 + e) * (1.0 + e)), x.imag)


@inline
def tanh_complex(x):
    """tanh x."""
    return tanh_near(x) if near(x) else np.tanh(x)


@inline
def sigmoid_near(x):
    """1 / (1 + e^-x); its slope is e / (1 + e)^2 with e = e^-|a|."""
    e = exp_real(-np.abs(x.real))
    return _first_order(sigmoid_real(x.real), e / ((1.0 + e) * (1.0 + e)), x.imag)


@inline
def sigmoid_complex(x):
    """1 / (1 + e^-x)."""
    if near(x):
        return sigmoid_near(x)
    if x.real < 0.0:
        power = np.exp(x)
        return power / (1.0 + power)
    return 1.0 / (1.0 + np.exp(-x))


@inline
def softplus_near(x):
    """log(1 + e^x); its slope is the sigmoid."""
    return _first_order(softplus_real(x.real), sigmoid_real(x.real), x.imag)


@inline
def softplus_complex(x):
    """log(1 + e^x)."""
    if near(x):
        return softplus_near(x)
    if x.real < 0.0:
        return np.log1p(np.exp(x))
    return x + np.log1p(np.exp(-x))


@inline
def log_near(x):
    """log x."""
    return _first_order(log_real(x.real), 1.0 / x.real, x.imag)


@inline
def log_complex(x):
    """log x, principal branch."""
    return log_near(x) if log_near_to(x) else np.log(x)


@inline
def sin_near(x):
    """sin x."""
    return _first_order(sin_real(x.real), cos_real(x.real), x.imag)


@inline
def sin_complex(x):
    """sin x."""
    return sin_near(x) if trig_near_to(x) else np.sin(x)


@inline
def cos_near(x):
    """cos x."""
    return _first_order(cos_real(x.real), -sin_real(x.real), x.imag)


@inline
def cos_complex(x):
    """cos x."""
    return cos_near(x) if trig_near_to(x) else np.cos(x)


@inline
def power_complex(x, exponent):
    """x ** exponent for a real exponent; a base below zero has none."""
    if near(x):
        value = x.real**exponent
        return _first_order(value, exponent * x.real ** (exponent - 1.0), x.imag)
    return np.exp(exponent * np.log(x))
