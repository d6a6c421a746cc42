"""Compiling and calling kernels.

A kernel is a function `kernel(job, values)`: `job` points to integers (sizes, ranges, addresses of arrays), `values` to
an array of the kernel's dtype. It is compiled once per dtype as a C function and called by its address. Whoever calls
it therefore neither compiles it again nor depends on its type, and one small loop, `run` (or its parallel twin), drives
every kernel: a job per shard. Numba would otherwise compile the whole interpreter again into each of its callers.
"""

from __future__ import annotations

import ctypes

import numpy as np
from llvmlite import ir
from numba import carray, config, njit, prange, types
from numba.core import cgutils
from numba.extending import intrinsic

inner = njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
"""Decorates what is only called from inside kernels: it is compiled into them and kept on disk with them."""


@intrinsic
def _call(typingctx, address, job, values):  # type: ignore[no-untyped-def]
    """Call the C function at `address` with two pointers."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        pointer = cgutils.voidptr_t
        function = builder.inttoptr(args[0], ir.FunctionType(ir.VoidType(), [pointer, pointer]).as_pointer())
        builder.call(function, [builder.inttoptr(a, pointer) for a in args[1:]])
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp), codegen


@intrinsic
def _same_pointer(typingctx, like, address):  # type: ignore[no-untyped-def]
    """`address` as a pointer of the type of `like`."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.inttoptr(args[1], args[0].type)

    return like(like, types.intp), codegen


@inner
def vector(pointer, entries):
    """The array of `entries` numbers at a pointer."""
    return carray(pointer, (entries,))


@inner
def vector_at(like, address, entries):
    """The array of `entries` numbers at an address, of the type that the pointer `like` points to."""
    return carray(_same_pointer(like, address), (entries,))


@inner
def matrix_at(like, address, rows, columns):
    """The C-ordered matrix at an address, of the type that the pointer `like` points to."""
    return carray(_same_pointer(like, address), (rows, columns))


@njit(cache=True)
def run(address, jobs, values):
    """Call the kernel at `address` with each row of `jobs`, one after another; `values` is an address."""
    for j in range(len(jobs)):
        _call(address, jobs.ctypes.data + j * jobs.strides[0], values)


@njit(cache=True, parallel=True)
def run_parallel(address, jobs, values):
    """`run`, the jobs in parallel: they write to different places."""
    for j in prange(len(jobs)):
        _call(address, jobs.ctypes.data + j * jobs.strides[0], values)


if config.DISABLE_JIT:  # the same kernels as plain Python, on arrays in place of pointers

    def vector(pointer, entries):  # type: ignore[no-untyped-def]
        """The first `entries` numbers of an array."""
        return pointer[:entries]

    def vector_at(like, address, entries):  # type: ignore[no-untyped-def]
        """The array of `entries` numbers at an address, of the dtype of the array `like`."""
        stretch = (ctypes.c_byte * (int(entries) * like.itemsize)).from_address(int(address)) if entries else b""
        return np.frombuffer(stretch, like.dtype)

    def matrix_at(like, address, rows, columns):  # type: ignore[no-untyped-def]
        """The C-ordered matrix at an address, of the dtype of the array `like`."""
        return vector_at(like, address, rows * columns).reshape(rows, columns)
