"""The language of kernels: how they are compiled, how they see arrays, and where the rows of a node stand.

A kernel is a function `kernel(job, values)`: `job` points to integers (sizes, ranges, addresses of arrays), `values` to
an array of the kernel's dtype. The fields of a job are described where its kernel names them, with unit and writer; an
offset is a place in `values`, in numbers from its first, unless an array is named. A kernel is compiled once per dtype
into machine code with one address and one calling convention (see `bpcli.runtime.compiling`), so callers neither
compile nor depend on its type. Nothing in a kernel allocates, raises or counts references.

Node n's value at step t, copy o, row i begins at base + t·step + o·outer + i·inner + lane·lane: its line in a table of
places (see `bpcli.tape.instructions`). Rows that lie end to end are treated as one long row.
"""

from __future__ import annotations

import ctypes

import numpy as np

from bpcli import kernels
from bpcli.tape.instructions import APART, BASE, INNER_ROW, LANE, OUTER, STEP

CHUNK = 128
"""Entries of a row that a kernel holds on its stack at a time."""

OPTIONS = {"error_model": "numpy", "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
"""Numba's options for functions that only kernels call: no wrappers for Python."""
INLINED = {**OPTIONS, "forceinline": True}

if kernels.compiling:
    from llvmlite import ir
    from numba import carray, njit, types
    from numba.core import cgutils
    from numba.extending import intrinsic

    inner = njit(**OPTIONS)
    inline = njit(**INLINED)

    @intrinsic
    def _same_pointer(typingctx, like, address):  # type: ignore[no-untyped-def]
        """`address` as a pointer of the type of `like`."""

        def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
            return builder.inttoptr(args[1], args[0].type)

        return like(like, types.intp), codegen

    @intrinsic
    def _offset_pointer(typingctx, pointer, entries):  # type: ignore[no-untyped-def]
        """`pointer + entries`."""

        def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
            return builder.gep(args[0], [args[1]])

        return pointer(pointer, types.intp), codegen

    @intrinsic
    def stack(typingctx, like):  # type: ignore[no-untyped-def]
        """A pointer to CHUNK entries of the dtype of the array `like`, on the stack of the calling function."""

        def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
            entry = context.get_data_type(like.dtype)
            return cgutils.alloca_once(builder, entry, size=ir.Constant(ir.IntType(64), CHUNK))

        return types.CPointer(like.dtype)(like), codegen

    @inner
    def vector(pointer, entries):
        """The array of `entries` numbers at a pointer."""
        return carray(pointer, (entries,))

    @inner
    def vector_from(pointer, offset, entries):
        """The array of `entries` numbers that begins `offset` of them after a pointer."""
        return carray(_offset_pointer(pointer, offset), (entries,))

    @inner
    def vector_at(like, address, entries):
        """The array of `entries` numbers at an address, of the type that the pointer `like` points to."""
        return carray(_same_pointer(like, address), (entries,))

    @inner
    def matrix_at(like, address, rows, columns):
        """The C-ordered matrix at an address, of the type that the pointer `like` points to."""
        return carray(_same_pointer(like, address), (rows, columns))

else:

    def inner(function):  # type: ignore[no-untyped-def]
        """Decorate a function that only kernels call."""
        return function

    inline = inner
    """Decorate a function that is inlined in its callers."""

    def vector(pointer, entries):  # type: ignore[no-untyped-def]
        """The first `entries` numbers of an array, which stands for a pointer in uncompiled kernels."""
        return pointer[:entries]

    def vector_from(pointer, offset, entries):  # type: ignore[no-untyped-def]
        """The array of `entries` numbers that begins `offset` of them after an array's first."""
        return vector_at(pointer, pointer.ctypes.data + offset * pointer.itemsize, entries)

    def vector_at(like, address, entries):  # type: ignore[no-untyped-def]
        """The array of `entries` numbers at an address, of the dtype of the array `like`."""
        raw = (ctypes.c_byte * (int(entries) * like.itemsize)).from_address(int(address)) if entries else b""
        return np.frombuffer(raw, like.dtype)

    def matrix_at(like, address, rows, columns):  # type: ignore[no-untyped-def]
        """The C-ordered matrix at an address, of the dtype of the array `like`."""
        return vector_at(like, address, rows * columns).reshape(rows, columns)

    def stack(like):  # type: ignore[no-untyped-def]
        """Room for CHUNK entries of the dtype of the array `like`."""
        return np.empty(CHUNK, like.dtype)


@inner
def address(place, node, t, o, i, lane):
    """Offset of the first entry of a row."""
    where = place[node, BASE] + t * place[node, STEP]
    if o | i | lane:  # for the first row, often the only one, this would cost as much as finding the step
        where += o * place[node, OUTER] + i * place[node, INNER_ROW] + lane * place[node, LANE]
    return where


@inner
def along(size, n, apart):
    """1 if an argument's rows have an entry for each of the result's n, 0 if they have one for all (a broadcast).

    A single number that all rows share is broadcast: the rows are one long row then.
    """
    return int(size == n and (n > 1 or apart != 0))


@inner
def row_stride(place, node, columns):
    """From one row of a matrix with so many columns to the next, numbers."""
    return place[node, APART] if place[node, APART] > 0 else columns
