"""Register-tiled products of few rows with a matrix that is packed once and used many times; the packing kernel.

A BLAS packs a factor anew in every call, which for the 16 rows of a shard takes a good part of the product's time. Here
`op(W) (k, n)` stands in panels of columns, `(panels, k, width)`, the last one padded with zeros, and a tile of ROWS ×
`width` sums stays in registers while a panel streams by (Goto & van de Geijn 2008).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from bpcli import kernels
from bpcli.kernels import simd
from bpcli.kernels.blas import gemm, numpy_gemm
from bpcli.kernels.jit import inner, vector
from bpcli.tape.instructions import MOST_COLUMNS, VECTORS

ROWS = 8 if simd.WIDE else 4
"""Rows of a tile of `VECTORS` vectors: 24 sums of AVX-512, or 12 of AVX2, with what they are made of, fill the
registers."""
FEW = 4
"""Columns up to which a gradient is computed transposed: as rows of a tile they leave no lanes idle."""

if kernels.compiling:
    from numba import types
    from numba.extending import intrinsic

    @intrinsic
    def tile(typingctx, m, k, times, A, a, lda, step, ja, P, p, ldp, jp, columns, add, d, ldd, C, c, ldc):  # type: ignore[no-untyped-def]
        """The tile of the first ROWS of m rows and `columns` columns of one panel; other arguments as of the products.

        Rows of A are `lda` apart, the entries of a row `step`; k entries follow each other `times` times, `ja` and `jp`
        numbers from one time to the next. What C has at d, in rows `ldd` apart, is added where `add`.
        """
        index, dtype = types.intp, C.dtype
        left, right = (A, index, index, index, index), (P, index, index, index)
        signature = types.void(index, index, index, *left, *right, index, types.boolean, index, index, C, index, index)

        def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
            if isinstance(dtype, types.Float):  # complex products do not come here
                _emit_tile(context, builder, signature, args)
            return context.get_dummy_value()

        return signature, codegen

    @intrinsic
    def transposed_tile(typingctx, m, k, times, A, a, step, ja, P, p, ldp, jp, columns, C, c):  # type: ignore[no-untyped-def]
        """Cᵀ += the tile of m <= FEW rows, which are neighbours in A, and one panel; C is (columns, m)."""
        index, dtype = types.intp, C.dtype
        signature = types.void(*[index] * 3, A, *[index] * 3, P, *[index] * 4, C, index)

        def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
            if isinstance(dtype, types.Float):  # complex products do not come here
                _emit_transposed(context, builder, signature, args)
            return context.get_dummy_value()

        return signature, codegen

    def _emit_transposed(context, builder, signature, args):  # type: ignore[no-untyped-def]
        m, k, times, _, a, step, ja, _, p, ldp, jp, columns, _, c = args
        vector = simd.vector_of(context, signature.args[3].dtype)
        left, right, out = (simd.data(context, builder, signature, args, i) for i in (3, 7, 12))
        last = builder.sub(m, simd.constant(1))
        there = [builder.select(builder.icmp_signed("<", r, last), r, last) for r in map(simd.constant, range(FEW))]
        rows = [simd.at(builder, left, builder.add(a, r)) for r in there]
        panel, depth, apart = simd.at(builder, right, p), (k, times), (step, ja, ldp, jp)

        def emit(vectors, columns):  # type: ignore[no-untyped-def]
            sums = _sums(builder, depth, apart, rows, panel, columns, vector, vectors)
            for v in range(vectors):
                start = builder.add(c, builder.mul(simd.constant(v * vector.count), m))
                places = [simd.at(builder, out, builder.add(start, r)) for r in there]
                wanted = simd.rest(builder, columns, v, vectors, vector.count)
                simd.scatter_add(builder, sums[v::vectors], places, m, wanted)

        simd.by_columns(builder, columns, vector.count, VECTORS, emit)

    def _emit_tile(context, builder, signature, args):  # type: ignore[no-untyped-def]
        m, k, times, _, a, lda, step, ja, _, p, ldp, jp, columns, add, d, ldd, _, c, ldc = args
        vector = simd.vector_of(context, signature.args[3].dtype)
        left, right, out = (simd.data(context, builder, signature, args, i) for i in (3, 8, 16))
        panel, last = simd.at(builder, right, p), builder.sub(m, simd.constant(1))
        depth, apart = (k, times), (step, ja, ldp, jp)

        def row(base, start, apart, r):  # type: ignore[no-untyped-def]
            """Row r, or the last one that is there."""
            there = builder.select(builder.icmp_signed("<", simd.constant(r), last), simd.constant(r), last)
            return simd.at(builder, base, builder.add(start, builder.mul(there, apart)))

        def emit(rows):  # type: ignore[no-untyped-def]
            def emit_columns(vectors, columns):  # type: ignore[no-untyped-def]
                lines = [row(left, a, lda, r) for r in range(rows)]
                sums = _sums(builder, depth, apart, lines, panel, columns, vector, vectors)
                places = ([row(out, start, apart, r) for r in range(rows)] for start, apart in ((d, ldd), (c, ldc)))
                _store(builder, sums, *places, add, columns)

            simd.by_columns(builder, columns, vector.count, VECTORS, emit_columns)

        few = builder.icmp_signed("<=", m, simd.constant(ROWS // 2))
        with builder.if_else(few) as (then, otherwise):
            with then:
                emit(ROWS // 2)
            with otherwise:
                emit(ROWS)

    def _sums(builder, depth, apart, rows, panel, columns, vector, vectors):  # type: ignore[no-untyped-def]
        """Σ_i rows[r][i step] panel[i]: for each row the panel's first `vectors` vectors, one after the other."""
        (k, times), (step, ja, ldp, jp) = depth, apart
        lanes = [simd.rest(builder, columns, v, vectors, vector.count) for v in range(vectors)]
        masks = [None if n is None else simd.first_lanes(builder, vector.count, n) for n in lanes]

        def once(time, sums):  # type: ignore[no-untyped-def]
            above, beside = builder.mul(time, ja), simd.at(builder, panel, builder.mul(time, jp))

            def body(i, sums):  # type: ignore[no-untyped-def]
                line = simd.at(builder, beside, builder.mul(i, ldp))
                places = [simd.at(builder, line, simd.constant(v * vector.count)) for v in range(vectors)]
                factors = [simd.load(builder, vector, *there) for there in zip(places, masks, strict=True)]
                there = builder.add(above, builder.mul(i, step))
                entries = [simd.broadcast(builder, vector, builder.load(simd.at(builder, row, there))) for row in rows]
                pairs = ((entry, factor) for entry in entries for factor in factors)
                return [simd.multiply_add(builder, *pair, s) for pair, s in zip(pairs, sums, strict=True)]

            return simd.loop(builder, k, 1, sums, body)

        return simd.loop(builder, times, 1, [simd.zeros(vector)] * (len(rows) * vectors), once)

    def _store(builder, sums, held, rows, add, columns):  # type: ignore[no-untyped-def]
        """Store the tile's first `columns`, added to the `held` rows, which may be the same: all are read first."""
        vectors, lanes = len(sums) // len(rows), sums[0].type.count
        for v in range(vectors):
            old, new = ([simd.at(builder, row, simd.constant(v * lanes)) for row in each] for each in (held, rows))
            simd.store(builder, sums[v::vectors], new, simd.rest(builder, columns, v, vectors, lanes), add, old)


DEPTH = 128
"""Rows at a time of a factor that is not packed: they stay in cache."""


def width(dtype: np.dtype) -> int:
    """Columns of a panel."""
    return VECTORS * simd.VECTOR_BYTES // dtype.itemsize


def pack(matrices: NDArray, out: NDArray) -> int:
    """Pack matrices op(W) `(…, k, n)` into the flat array `out`; return the numbers that each takes."""
    *lead, k, n = matrices.shape
    columns = width(out.dtype)
    whole, each = n // columns, -(-n // columns) * columns * k
    panels = out[: each * math.prod(lead)].reshape(*lead, -1, k, columns)
    panels[..., :whole, :, :] = matrices[..., : whole * columns].reshape(*lead, k, whole, columns).swapaxes(-3, -2)
    if n > whole * columns:
        panels[..., whole, :, : n - whole * columns] = matrices[..., whole * columns :]
        panels[..., whole, :, n - whole * columns :] = 0
    return each


if kernels.compiling:

    @inner
    def packed_product(m, n, k, A, a, lda, P, p, add, d, ldd, C, c, ldc):
        """C (m, n) = A (m, k) op(W), plus what C has at d where `add`; op(W) (k, n) is packed at p in P.

        Rows of A are lda apart, those at d ldd (0: one for all), those of C ldc; what is at d may be C itself. Each
        row's sums are taken in the same order, whatever the rows beside it.
        """
        columns = VECTORS * simd.lanes_of(C)
        for j in range(0, n, columns):
            panel, wanted = p + j * k, min(columns, n - j)
            for i in range(0, m, ROWS):
                above, held, out = a + i * lda, d + i * ldd + j, c + i * ldc + j
                tile(m - i, k, 1, A, above, lda, 1, 0, P, panel, columns, 0, wanted, add, held, ldd, C, out, ldc)

    @inner
    def transposed_product(m, n, k, times, A, a, lda, ja, B, b, ldb, jb, C, c):
        """C (m, n) += Aᵀ B for A (k, m) and B (k, n), `times` of each, ja and jb numbers apart; C is whole."""
        if n > MOST_COLUMNS:
            for time in range(times):
                gemm(True, False, m, n, k, A, a + time * ja, lda, B, b + time * jb, ldb, True, C, c, n)
            return
        columns = VECTORS * simd.lanes_of(C)
        together = max(1, DEPTH // k)
        for time in range(0, times, together):
            for start in range(0, k, DEPTH):
                depth, most = min(DEPTH, k - start), min(together, times - time)
                above, beside = a + time * ja + start * lda, b + time * jb + start * ldb
                if n <= FEW:
                    for i in range(0, m, columns):
                        wanted, left, out = min(columns, m - i), above + i, c + i * n
                        transposed_tile(n, depth, most, B, beside, ldb, jb, A, left, lda, ja, wanted, C, out)
                    continue
                for j in range(0, n, columns):
                    wanted = min(columns, n - j)
                    for i in range(0, m, ROWS):
                        left, right, out = above + i, beside + j, c + i * n + j
                        tile(
                            m - i, depth, most, A, left, 1, lda, ja, B, right, ldb, jb, wanted, True, out, n, C, out, n
                        )  # fmt: skip

else:

    def transposed_product(m, n, k, times, A, a, lda, ja, B, b, ldb, jb, C, c):  # type: ignore[no-untyped-def]
        """As compiled."""
        for time in range(times):
            numpy_gemm(True, False, m, n, k, A, a + time * ja, lda, B, b + time * jb, ldb, True, C, c, n)

    def packed_product(m, n, k, A, a, lda, P, p, add, d, ldd, C, c, ldc):  # type: ignore[no-untyped-def]
        """As compiled."""
        view = np.lib.stride_tricks.as_strided
        left = view(A[a:], (m, k), (lda * A.itemsize, A.itemsize))
        columns = width(P.dtype)
        panels = P[p : p + -(-n // columns) * columns * k].reshape(-(-n // columns), k, columns)
        product = np.concatenate([left @ panel for panel in panels], axis=1)[:, :n]
        held, out = (view(C[i:], (m, n), (ld * C.itemsize, C.itemsize)) for i, ld in ((d, ldd), (c, ldc)))
        out[...] = held + product if add else product


(
    LENGTH,  # length of `values`, numbers
    MATRIX,  # where a matrix (k, n) begins, offset
    ROW_STRIDE,  # from one of its rows to the next, numbers
    COLUMN_STRIDE,  # from one of its columns to the next, numbers
    K,  # its rows
    N,  # its columns
    WIDTH,  # columns of a panel, see `width`
    PANELS,  # where the panels (panel, k, width) begin, offset
) = range(8)
"""Fields of a job of the packing kernel; all written by `bpcli.runtime.schedule`."""
JOB = PANELS + 1


def pack_span(job, values):  # type: ignore[no-untyped-def]
    """The packing kernel: write the panels of one matrix, the last one filled up with zeros."""
    job = vector(job, JOB)
    V = vector(values, job[LENGTH])
    down, across, k, n, width = job[ROW_STRIDE], job[COLUMN_STRIDE], job[K], job[N], job[WIDTH]
    for j in range(0, n, width):
        wanted = min(width, n - j)
        for i in range(k):
            row, out = job[MATRIX] + i * down + j * across, job[PANELS] + j * k + i * width
            if across == 1:
                for c in range(wanted):
                    V[out + c] = V[row + c]
            else:
                for c in range(wanted):
                    V[out + c] = V[row + c * across]
            for c in range(wanted, width):
                V[out + c] = 0
