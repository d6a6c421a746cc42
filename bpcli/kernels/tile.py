"""Tiles of a product, whose sums stay in registers while a panel passes by, in LLVM's terms."""

from __future__ import annotations

from bpcli.kernels import mode
from bpcli.kernels.simd import WIDE

ROWS = 8 if WIDE else 4
VECTORS = 3
"""Rows and vectors of a tile: 24 sums of AVX-512, or 12 of AVX2, with what they are made of, fill the registers."""
FEW = 4
"""Columns up to which a gradient is made turned: as rows of a tile they leave no lanes off."""

if mode.compiling:
    from numba import types
    from numba.extending import intrinsic

    from bpcli.kernels.simd import (
        add_apart,
        at,
        constant,
        data,
        everywhere,
        first,
        load,
        loop,
        multiply_add,
        store,
        vector_of,
        zeros,
    )

    @intrinsic
    def tile(typingctx, m, k, times, A, a, lda, step, ja, P, p, ldp, jp, columns, add, d, ldd, C, c, ldc):  # type: ignore[no-untyped-def]
        """The tile of the first ROWS of m rows and one panel, of which `columns` are wanted; else as the products.

        Rows of A are `lda` apart, the entries of a row `step`; k entries follow each other `times` times, `ja` and `jp`
        numbers from one time to the next. What C has at d, in rows `ldd` apart, is added where `add`.
        """
        index, dtype = types.intp, C.dtype
        left, right = (A, index, index, index, index), (P, index, index, index)
        signature = types.void(index, index, index, *left, *right, index, types.boolean, index, index, C, index, index)

        def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
            if isinstance(dtype, types.Float):  # complex products go another way
                _emit_tile(context, builder, signature, args)
            return context.get_dummy_value()

        return signature, codegen

    @intrinsic
    def turned_tile(typingctx, m, k, times, A, a, step, ja, P, p, ldp, jp, columns, C, c):  # type: ignore[no-untyped-def]
        """Cᵀ += the tile of m <= FEW rows, which are neighbours in A, and one panel; C is (columns, m)."""
        index, dtype = types.intp, C.dtype
        signature = types.void(*[index] * 3, A, *[index] * 3, P, *[index] * 4, C, index)

        def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
            if isinstance(dtype, types.Float):  # complex products go another way
                _emit_turned(context, builder, signature, args)
            return context.get_dummy_value()

        return signature, codegen

    def _emit_turned(context, builder, signature, args):  # type: ignore[no-untyped-def]
        m, k, times, _, a, step, ja, _, p, ldp, jp, columns, _, c = args
        vector = vector_of(context, signature.args[3].dtype)
        left, right, out = (data(context, builder, signature, args, i) for i in (3, 7, 12))
        last = builder.sub(m, constant(1))
        there = [builder.select(builder.icmp_signed("<", constant(r), last), constant(r), last) for r in range(FEW)]
        rows = [at(builder, left, builder.add(a, r)) for r in there]
        panel, depth, apart = at(builder, right, p), (k, times), (step, ja, ldp, jp)

        def emit(vectors):  # type: ignore[no-untyped-def]
            sums = _sums(builder, depth, apart, rows, panel, columns, vector, vectors)
            for v in range(vectors):
                start = builder.add(c, builder.mul(constant(v * vector.count), m))
                places = [at(builder, out, builder.add(start, r)) for r in there]
                mask = first(builder, vector.count, builder.sub(columns, constant(v * vector.count)))
                add_apart(builder, sums[v::vectors], places, m, mask)

        _by_columns(builder, columns, vector.count, emit)

    def _emit_tile(context, builder, signature, args):  # type: ignore[no-untyped-def]
        m, k, times, _, a, lda, step, ja, _, p, ldp, jp, columns, add, d, ldd, _, c, ldc = args
        vector = vector_of(context, signature.args[3].dtype)
        left, right, out = (data(context, builder, signature, args, i) for i in (3, 8, 16))
        panel, last = at(builder, right, p), builder.sub(m, constant(1))
        depth, apart = (k, times), (step, ja, ldp, jp)

        def row(base, start, apart, r):  # type: ignore[no-untyped-def]
            """Row r, or the last one that is there."""
            there = builder.select(builder.icmp_signed("<", constant(r), last), constant(r), last)
            return at(builder, base, builder.add(start, builder.mul(there, apart)))

        def emit(rows):  # type: ignore[no-untyped-def]
            def emit_columns(vectors):  # type: ignore[no-untyped-def]
                lines = [row(left, a, lda, r) for r in range(rows)]
                sums = _sums(builder, depth, apart, lines, panel, columns, vector, vectors)
                places = ([row(out, start, apart, r) for r in range(rows)] for start, apart in ((d, ldd), (c, ldc)))
                _store(builder, sums, *places, add, columns)

            _by_columns(builder, columns, vector.count, emit_columns)

        few = builder.icmp_signed("<=", m, constant(ROWS // 2))
        with builder.if_else(few) as (then, otherwise):
            with then:
                emit(ROWS // 2)
            with otherwise:
                emit(ROWS)

    def _by_columns(builder, columns, lanes, emit, most=VECTORS):  # type: ignore[no-untyped-def]
        """Make `emit(vectors)` run for as few vectors as have `columns` lanes, `most` at most."""
        wanted = builder.icmp_signed(">", columns, constant((most - 1) * lanes))
        with builder.if_else(wanted) as (then, otherwise):
            with then:
                emit(most)
            with otherwise:
                if most > 1:
                    _by_columns(builder, columns, lanes, emit, most - 1)

    def _sums(builder, depth, apart, rows, panel, columns, vector, vectors):  # type: ignore[no-untyped-def]
        """Σ_i rows[r][i step] panel[i]: for each row the panel's first `vectors` vectors, one after the other."""
        (k, times), (step, ja, ldp, jp) = depth, apart
        wanted = builder.sub(columns, constant((vectors - 1) * vector.count))
        masks = [None] * (vectors - 1) + [first(builder, vector.count, wanted)]

        def once(time, sums):  # type: ignore[no-untyped-def]
            above, beside = builder.mul(time, ja), at(builder, panel, builder.mul(time, jp))

            def body(i, sums):  # type: ignore[no-untyped-def]
                line = at(builder, beside, builder.mul(i, ldp))
                places = [at(builder, line, constant(v * vector.count)) for v in range(vectors)]
                factors = [load(builder, vector, *there) for there in zip(places, masks, strict=True)]
                there = builder.add(above, builder.mul(i, step))
                entries = [everywhere(builder, vector, builder.load(at(builder, row, there))) for row in rows]
                pairs = ((entry, factor) for entry in entries for factor in factors)
                return [multiply_add(builder, *pair, s) for pair, s in zip(pairs, sums, strict=True)]

            return loop(builder, k, 1, sums, body)

        return loop(builder, times, 1, [zeros(vector)] * (len(rows) * vectors), once)

    def _store(builder, sums, held, rows, add, columns):  # type: ignore[no-untyped-def]
        """Write the tile's first `columns`, added to what rows hold that may be the same ones: all are read first."""
        vectors, lanes = len(sums) // len(rows), sums[0].type.count
        for v in range(vectors):
            old, new = ([at(builder, row, constant(v * lanes)) for row in each] for each in (held, rows))
            mask = first(builder, lanes, builder.sub(columns, constant(v * lanes)))
            store(builder, sums[v::vectors], new, mask, add, old)
