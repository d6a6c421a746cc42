"""The elementwise functions as functions that Python can call, kept on disk beside the kernels."""

import numba
from numba import njit

from bpcli.kernels import elementwise, scalar_functions
from bpcli.runtime.kernel_cache import cache_folder

CACHE = numba.config.CACHE_DIR = str(cache_folder())
"""The folder whose name changes with the sources; set before anything is decorated."""


@njit(cache=True)
def exp_into(x, y):
    elementwise.exp_into(x, y, 0.0)


@njit(cache=True)
def tanh_into(x, y):
    elementwise.tanh_into(x, y, 0.0)


@njit(cache=True)
def sigmoid_into(x, y):
    elementwise.sigmoid_into(x, y, 0.0)


@njit(cache=True)
def softplus_into(x, y):
    elementwise.softplus_into(x, y, 0.0)


@njit(cache=True)
def log_into(x, y):
    elementwise.log_into(x, y, 0.0)


@njit(cache=True)
def sin_into(x, y):
    elementwise.sin_into(x, y, 0.0)


@njit(cache=True)
def cos_into(x, y):
    elementwise.cos_into(x, y, 0.0)


@njit(cache=True)
def erf_into(x, y):
    elementwise.erf_into(x, y, 0.0)


@njit(cache=True)
def products_into(x, y, z):
    for k in range(len(z)):
        z[k] = scalar_functions.times(x[k], y[k])


@njit(cache=True, error_model="numpy")
def quotients_into(x, y, z):
    for k in range(len(z)):
        z[k] = scalar_functions.over(x[k], y[k])
