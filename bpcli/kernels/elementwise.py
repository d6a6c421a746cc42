"""Elementwise functions of whole slices, for float64, float32 and complex128 alike.

`f_into(x, y)` writes f(x) to y. Both are contiguous and one-dimensional, of one length and one type, and y may be x
itself. An entry's result depends on that entry alone, never on its position or its neighbours, so a batch may be cut
anywhere without changing a bit. float32 is computed in float64 and rounded once at the end.

The loops have no calls and no branches, and are vectorised, those of `sin` and `cos` where no entry of a slice is
large; LLVM would call what is not wanted too, and choose after that. They read and write y alone after a copy of x:
with one array there is nothing for LLVM to prove about overlap, and they vectorise in place too. They are written out,
as a function made of functions is not kept on disk.

Complex numbers are numbers with their tangents, which `times` and `over` multiply and divide as such.
"""

import numpy as np

from bpcli.kernels import elementwise_complex as complex_
from bpcli.kernels import elementwise_real as real
from bpcli.kernels import mode
from bpcli.kernels.jit import INLINED, inline, inner

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
