"""Matrix products inside kernels: SciPy's BLAS at offsets into flat arrays, single-threaded, without allocation.

Numba's `np.dot` takes whole contiguous arrays and cannot add to its output; here factors are parts of one flat array,
with a row stride of their own, and products add to what is there.
"""

from __future__ import annotations

import numpy as np

from bpcli import kernels
from bpcli.kernels.jit import inner
from bpcli.kernels.scalar_functions import times


def numpy_gemm(ta, tb, m, n, k, A, a, lda, B, b, ldb, add, C, c, ldc):  # type: ignore[no-untyped-def]
    """`gemm` in NumPy, where nothing is compiled."""
    dual = C.dtype.kind == "c"
    view = np.lib.stride_tricks.as_strided
    left = view(A[a:], (k, m) if ta else (m, k), (lda * A.itemsize, A.itemsize))
    right = view(B[b:], (n, k) if tb else (k, n), (ldb * B.itemsize, B.itemsize))
    left, right = left.T if ta else left, right.T if tb else right
    product = left.real @ right.real + (left.real @ right.imag + left.imag @ right.real) * 1j if dual else left @ right
    out = view(C[c:], (m, n), (ldc * C.itemsize, C.itemsize))
    out[...] = out + product if add else product


if kernels.compiling:
    from llvmlite import ir
    from numba import types
    from numba.core import cgutils
    from numba.extending import intrinsic

    from bpcli.kernels.matvec import matvec

    def _call(builder, name, arguments):  # type: ignore[no-untyped-def]
        """Fortran convention: everything by address; integers are 32 bits wide."""
        byte_pointer = ir.IntType(8).as_pointer()
        function_type = ir.FunctionType(ir.VoidType(), [byte_pointer] * len(arguments))
        function = cgutils.get_or_insert_function(builder.module, function_type, name)
        builder.call(function, arguments)

    def _address(builder, value):  # type: ignore[no-untyped-def]
        return builder.bitcast(cgutils.alloca_once_value(builder, value), ir.IntType(8).as_pointer())

    def _integer(builder, value):  # type: ignore[no-untyped-def]
        return _address(builder, builder.trunc(value, ir.IntType(32)))

    def _flag(builder, transposed):  # type: ignore[no-untyped-def]
        byte = ir.IntType(8)
        return _address(builder, builder.select(transposed, ir.Constant(byte, ord("T")), ir.Constant(byte, ord("N"))))

    def _entry(context, builder, kind, array, offset):  # type: ignore[no-untyped-def]
        data = context.make_array(kind)(context, builder, array).data
        return builder.bitcast(builder.gep(data, [offset]), ir.IntType(8).as_pointer())

    @intrinsic
    def _gemm(typingctx, ta, tb, m, n, k, A, a, lda, B, b, ldb, alpha, beta, C, c, ldc):  # type: ignore[no-untyped-def]
        index, flag, dtype = types.intp, types.boolean, C.dtype
        name = kernels.GEMM[str(dtype)]
        signature = types.void(
            flag, flag, index, index, index, A, index, index, B, index, index, dtype, dtype, C, index, index
        )

        def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
            ta, tb, m, n, k, A_, a, lda, B_, b, ldb, alpha, beta, C_, c, ldc = args
            A_, B_, C_ = (
                _entry(context, builder, kind, array, offset)
                for kind, array, offset in ((A, A_, a), (B, B_, b), (C, C_, c))
            )
            size = [_integer(builder, v) for v in (n, m, k)]
            # Row-major C = op(A) op(B) is column-major Cᵀ = op(B)ᵀ op(A)ᵀ.
            right = [
                _flag(builder, tb),
                _flag(builder, ta),
                *size,
                _address(builder, alpha),
                B_,
                _integer(builder, ldb),
            ]
            left = [A_, _integer(builder, lda), _address(builder, beta), C_, _integer(builder, ldc)]
            _call(builder, name, [*right, *left])
            return context.get_dummy_value()

        return signature, codegen

    @intrinsic
    def _real(typingctx, like):  # type: ignore[no-untyped-def]
        real = isinstance(like.dtype, types.Float)

        def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
            return context.get_constant(types.boolean, real)

        return types.boolean(like), codegen

    @inner
    def vector_product(tb, n, k, A, a, B, b, ldb, add, C, c, backwards):
        """The first row of what `gemm` computes; `backwards` as for `matvec`."""
        if _real(C):
            matvec(not tb, n, k, B, b, ldb, A, a, add, C, c, backwards)
        else:
            _dual_loops(tb, 1, n, k, A, a, k, B, b, ldb, add, C, c, n)

    @inner
    def _dual_loops(tb, m, n, k, A, a, lda, B, b, ldb, add, C, c, ldc):
        """C = A op(B), or C + A op(B), of dual numbers, by loops."""
        for i in range(m):
            out = c + i * ldc
            if not add:
                C[out : out + n] = 0
            for j in range(n if tb else k):
                if tb:
                    for e in range(k):
                        C[out + j] += times(A[a + i * lda + e], B[b + j * ldb + e])
                else:
                    for e in range(n):
                        C[out + e] += times(A[a + i * lda + j], B[b + j * ldb + e])

    @inner
    def dual_gemm(m, n, k, A, a, lda, B, b, ldb, C, c, ldc):
        """C (m, n) = A (m, k) B (k, n), as of `gemm`, where both factors may have tangents."""
        if _real(C):
            gemm(False, False, m, n, k, A, a, lda, B, b, ldb, False, C, c, ldc)
        else:
            _dual_loops(False, m, n, k, A, a, lda, B, b, ldb, False, C, c, ldc)

    @inner
    def gemm(ta, tb, m, n, k, A, a, lda, B, b, ldb, add, C, c, ldc):
        """C (m, n) = op(A) (m, k) op(B) (k, n), added to C where `add`.

        Row-major, at offsets a, b, c, rows lda, ldb, ldc apart. Of complex numbers one of the two has no imaginary
        part, or is a single row.
        """
        if m == 1 and not ta:
            vector_product(tb, n, k, A, a, B, b, ldb, add, C, c, False)
        else:
            one = C.dtype.type(1)
            beta = one if add else one - one
            _gemm(ta, tb, m, n, k, A, a, lda, B, b, ldb, one, beta, C, c, ldc)

else:
    gemm = numpy_gemm

    def dual_gemm(m, n, k, A, a, lda, B, b, ldb, C, c, ldc):  # type: ignore[no-untyped-def]
        """As compiled."""
        numpy_gemm(False, False, m, n, k, A, a, lda, B, b, ldb, False, C, c, ldc)

    def vector_product(tb, n, k, A, a, B, b, ldb, add, C, c, backwards):  # type: ignore[no-untyped-def]
        """As compiled."""
        numpy_gemm(False, tb, 1, n, k, A, a, k, B, b, ldb, add, C, c, n)
