"""The elementwise functions as functions that Python can call, kept on disk beside the kernels."""

from numba import njit

from bpcli.kernels import elementwise, parallel

CACHE = parallel.numba.config.CACHE_DIR
"""Importing `parallel` has set it: the folder whose name changes with the sources."""


@njit(cache=True)
def exp_into(x, y):
    elementwise.exp_into(x, y)


@njit(cache=True)
def tanh_into(x, y):
    elementwise.tanh_into(x, y)


@njit(cache=True)
def sigmoid_into(x, y):
    elementwise.sigmoid_into(x, y)


@njit(cache=True)
def softplus_into(x, y):
    elementwise.softplus_into(x, y)


@njit(cache=True)
def log_into(x, y):
    elementwise.log_into(x, y)


@njit(cache=True)
def sin_into(x, y):
    elementwise.sin_into(x, y)


@njit(cache=True)
def cos_into(x, y):
    elementwise.cos_into(x, y)
