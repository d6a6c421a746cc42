"""Matrix-vector products in registers, bound by the speed at which the matrix is read.

A BLAS call costs as much as a product of some thousand numbers. Here several rows, or several vectors of columns, are
summed in registers side by side. Blocks of the result are taken in either order: alternating it from step to step finds
in cache the part of the matrix that was read last.
"""

from __future__ import annotations

from bpcli import kernels
from bpcli.kernels import simd
from bpcli.kernels.jit import inner

VECTORS = 4
"""Vectors of columns in a block of a transposed product."""
LATENCY = 8
"""Sums in flight that hide the latency of an addition."""

if kernels.compiling:
    from numba import types
    from numba.extending import intrinsic

    def _block(emit):  # type: ignore[no-untyped-def]
        """The typed intrinsic that computes one block of y (+)= op(W) x."""

        def block(typingctx, count, k, W, w, ldw, X, x, add, Y, y):  # type: ignore[no-untyped-def]
            index = types.intp
            signature = types.void(index, index, W, index, index, X, index, types.boolean, Y, index)

            def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
                if not isinstance(Y.dtype, types.Float):  # complex products do not come here
                    return context.get_dummy_value()
                arrays = (simd.data(context, builder, signature, args, i) for i in (2, 5, 8))
                W_, X_, Y_ = (simd.at(builder, array, args[i]) for array, i in zip(arrays, (3, 6, 9), strict=True))
                emit(builder, simd.vector_of(context, Y.dtype), args[0], args[1], W_, args[4], X_, args[7], Y_)
                return context.get_dummy_value()

            return signature, codegen

        return block

    def _emit_rows(builder, vector, count, k, W, ldw, X, add, Y):  # type: ignore[no-untyped-def]
        """y[i] = Σ_j W[i, j] x[j] for as many rows i as a vector has lanes, or the last one that there is."""
        lanes, last = vector.count, builder.sub(count, simd.constant(1))
        rows = [
            simd.at(builder, W, builder.mul(builder.select(builder.icmp_signed("<", i, last), i, last), ldw))
            for i in map(simd.constant, range(lanes))
        ]
        unrolled = max(1, LATENCY // lanes)
        whole = builder.and_(k, simd.constant(-unrolled * lanes))

        def body(j, sums):  # type: ignore[no-untyped-def]
            new = []
            for u in range(unrolled):
                here = builder.add(j, simd.constant(u * lanes))
                factor = simd.load(builder, vector, simd.at(builder, X, here))
                for row, s in zip(rows, sums[u * lanes :], strict=False):
                    new.append(
                        simd.multiply_add(builder, simd.load(builder, vector, simd.at(builder, row, here)), factor, s)
                    )
            return new

        def rest(j, sums):  # type: ignore[no-untyped-def]
            here = builder.add(whole, j)
            mask = simd.first_lanes(builder, lanes, builder.sub(k, here))
            factor = simd.load(builder, vector, simd.at(builder, X, here), mask)
            entries = (simd.load(builder, vector, simd.at(builder, row, here), mask) for row in rows)
            return [simd.multiply_add(builder, e, factor, s) for e, s in zip(entries, sums, strict=True)]

        sums = simd.loop(builder, whole, unrolled * lanes, [simd.zeros(vector)] * (unrolled * lanes), body)
        for u in range(1, unrolled):
            sums[:lanes] = [builder.fadd(a, b) for a, b in zip(sums[:lanes], sums[u * lanes :], strict=False)]
        sums = simd.loop(builder, builder.sub(k, whole), lanes, sums[:lanes], rest)
        simd.store(builder, [simd.horizontal_sums(builder, sums)], [Y], count, add)

    def _emit_columns(builder, vector, count, k, W, ldw, X, add, Y):  # type: ignore[no-untyped-def]
        """y[j] = Σ_i W[i, j] x[i] for the first `count` columns j, at most those of VECTORS vectors."""
        lanes = vector.count

        def emit(vectors):  # type: ignore[no-untyped-def]
            """Emit the cases of at most the columns of so many vectors."""
            starts = [simd.constant(v * lanes) for v in range(vectors)]
            with builder.if_else(builder.icmp_signed(">", count, starts[-1])) as (then, otherwise):
                with then:
                    wanted = [simd.rest(builder, count, v, vectors, lanes) for v in range(vectors)]
                    masks = [None if n is None else simd.first_lanes(builder, lanes, n) for n in wanted]
                    unrolled = max(1, LATENCY // vectors)
                    whole = builder.and_(k, simd.constant(-unrolled))

                    def line(i, sums):  # type: ignore[no-untyped-def]
                        factor = simd.broadcast(builder, vector, builder.load(simd.at(builder, X, i)))
                        row = simd.at(builder, W, builder.mul(i, ldw))
                        entries = [
                            simd.load(builder, vector, simd.at(builder, row, s), m)
                            for s, m in zip(starts, masks, strict=True)
                        ]
                        return [simd.multiply_add(builder, e, factor, s) for e, s in zip(entries, sums, strict=True)]

                    def body(i, sums):  # type: ignore[no-untyped-def]
                        parts = (sums[u * vectors : (u + 1) * vectors] for u in range(unrolled))
                        return [s for u, part in enumerate(parts) for s in line(builder.add(i, simd.constant(u)), part)]

                    sums = simd.loop(builder, whole, unrolled, [simd.zeros(vector)] * (unrolled * vectors), body)
                    for u in range(1, unrolled):
                        part = sums[u * vectors : (u + 1) * vectors]
                        sums[:vectors] = [builder.fadd(a, b) for a, b in zip(sums[:vectors], part, strict=True)]
                    left = builder.sub(k, whole)
                    sums = simd.loop(builder, left, 1, sums[:vectors], lambda i, s: line(builder.add(whole, i), s))
                    for s, place, left in zip(sums, starts, wanted, strict=True):
                        simd.store(builder, [s], [simd.at(builder, Y, place)], left, add)
                with otherwise:
                    if vectors > 1:
                        emit(vectors - 1)

        emit(VECTORS)

    _rows, _columns = intrinsic(_block(_emit_rows)), intrinsic(_block(_emit_columns))

    @inner
    def matvec(transposed, n, k, W, w, ldw, X, x, add, Y, y, backwards):
        """y (n) = W (n, k) x or, transposed, Wᵀ x with W (k, n); added to y where `add`; real numbers only.

        `backwards` takes the blocks of y from the last one to the first: the result is the same.
        """
        size = simd.lanes_of(Y) * (VECTORS if transposed else 1)
        blocks = -(-n // size)
        for block in range(blocks):
            i = (blocks - 1 - block if backwards else block) * size
            if transposed:
                _columns(min(size, n - i), k, W, w + i, ldw, X, x, add, Y, y + i)
            else:
                _rows(n - i, k, W, w + i * ldw, ldw, X, x, add, Y, y + i)
