"""What kernels are written with.

A kernel is a function `kernel(job, values)`: `job` points to integers (sizes, ranges, addresses of arrays), `values` to
an array of the kernel's dtype. It is compiled once per dtype into machine code that one address and one calling
convention serve (see `bpcli.kernels.compiling`), so that whoever calls it neither compiles it again nor depends on its
type. Nothing in a kernel allocates, raises or counts references.
"""

from __future__ import annotations

import ctypes

import numpy as np

from bpcli.kernels import mode

CHUNK = 128
"""Entries of a chunk: what a kernel keeps of a row on its stack while it works through the row."""

OPTIONS = {"error_model": "numpy", "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
"""How Numba compiles what only kernels call: no wrappers for Python."""
INLINED = {**OPTIONS, "forceinline": True}

if mode.compiling:
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
    def _moved(typingctx, pointer, entries):  # type: ignore[no-untyped-def]
        """The pointer so many entries on."""

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
        return carray(_moved(pointer, offset), (entries,))

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
        """Decorates what is only called from inside kernels, and compiled into them."""
        return function

    inline = inner
    """Decorates what is called where a call would cost too much: it becomes part of its callers."""

    def vector(pointer, entries):  # type: ignore[no-untyped-def]
        """The first `entries` numbers of an array: uncompiled kernels take arrays in place of pointers."""
        return pointer[:entries]

    def vector_from(pointer, offset, entries):  # type: ignore[no-untyped-def]
        """The array of `entries` numbers that begins `offset` of them after an array's first."""
        return vector_at(pointer, pointer.ctypes.data + offset * pointer.itemsize, entries)

    def vector_at(like, address, entries):  # type: ignore[no-untyped-def]
        """The array of `entries` numbers at an address, of the dtype of the array `like`."""
        stretch = (ctypes.c_byte * (int(entries) * like.itemsize)).from_address(int(address)) if entries else b""
        return np.frombuffer(stretch, like.dtype)

    def matrix_at(like, address, rows, columns):  # type: ignore[no-untyped-def]
        """The C-ordered matrix at an address, of the dtype of the array `like`."""
        return vector_at(like, address, rows * columns).reshape(rows, columns)

    def stack(like):  # type: ignore[no-untyped-def]
        """Room for CHUNK entries of the dtype of the array `like`."""
        return np.empty(CHUNK, like.dtype)
