"""Products of few rows with a matrix that is used again and again, packed for it once.

A library packs a factor anew in every call, which for the 16 rows of a shard takes as long as a good part of the
product. Here `op(W) (k, n)` stands in panels of columns, `(panels, k, width)`, the last one filled up with zeros,
and a tile of ROWS × `width` sums stays in registers while a panel passes by (Goto & van de Geijn 2008).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from bpcli.kernels import mode
from bpcli.kernels.jit import inner

ROWS = 4
VECTORS = 3
"""Rows and vectors of a tile: with three vectors of a panel and one entry they fill the 16 registers of AVX2."""
VECTOR_BYTES = 32
_WIDEST = VECTORS * VECTOR_BYTES // 4


def width(dtype: np.dtype) -> int:
    """Columns of a panel."""
    return VECTORS * VECTOR_BYTES // dtype.itemsize


def packed_entries(k: int, n: int) -> int:
    """Numbers that a packed matrix (k, n) takes at most, in any dtype."""
    return -(-n // _WIDEST) * _WIDEST * k


def pack(matrices: NDArray, out: NDArray) -> int:
    """Write matrices op(W) `(…, k, n)` to the flat array `out`, in panels; how far apart they stand there."""
    *lead, k, n = matrices.shape
    columns = width(out.dtype)
    whole, each = n // columns, -(-n // columns) * columns * k
    panels = out[: each * math.prod(lead)].reshape(*lead, -1, k, columns)
    panels[..., :whole, :, :] = matrices[..., : whole * columns].reshape(*lead, k, whole, columns).swapaxes(-3, -2)
    if n > whole * columns:
        panels[..., whole, :, : n - whole * columns] = matrices[..., whole * columns :]
        panels[..., whole, :, n - whole * columns :] = 0
    return each


if mode.compiling:
    from llvmlite import ir
    from numba import types
    from numba.extending import intrinsic

    @intrinsic
    def _width(typingctx, like):  # type: ignore[no-untyped-def]
        columns = VECTORS * VECTOR_BYTES * 8 // like.dtype.bitwidth

        def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
            return context.get_constant(types.intp, columns)

        return types.intp(like), codegen

    @intrinsic
    def _tile(typingctx, k, A, a0, a1, a2, a3, P, p, columns, add, C, c0, c1, c2, c3):  # type: ignore[no-untyped-def]
        """The tile of rows that begin at a0..a3 and one panel, to rows at c0..c3, of which `columns` are wanted."""
        index, dtype = types.intp, C.dtype
        signature = types.void(
            index, A, index, index, index, index, P, index, index, types.boolean, C, index, index, index, index
        )

        def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
            if isinstance(dtype, types.Float):  # complex products go another way
                _emit_tile(context, builder, signature, args)
            return context.get_dummy_value()

        return signature, codegen

    def _emit_tile(context, builder, signature, args):  # type: ignore[no-untyped-def]
        k, A_, *a, P_, p, columns, add, C_, c0, c1, c2, c3 = args
        scalar = context.get_data_type(signature.args[1].dtype)
        lanes = VECTOR_BYTES * 8 // signature.args[1].dtype.bitwidth
        vector, index = ir.VectorType(scalar, lanes), ir.IntType(64)
        left, right, out = (
            context.make_array(kind)(context, builder, array).data
            for kind, array in zip((signature.args[i] for i in (1, 6, 10)), (A_, P_, C_), strict=True)
        )
        rows = [builder.gep(left, [start]) for start in a]
        targets = [builder.gep(out, [start]) for start in (c0, c1, c2, c3)]
        panel = builder.gep(right, [p])

        def emit(vectors):  # type: ignore[no-untyped-def]
            """The case that more columns than those of `vectors` - 1 vectors are wanted."""
            enough = builder.icmp_signed(">", columns, ir.Constant(index, (vectors - 1) * lanes))
            with builder.if_else(enough) as (then, otherwise):
                with then:
                    sums = _sums(builder, k, rows, panel, vector, vectors)
                    _store(builder, sums, targets, add, columns)
                with otherwise:
                    if vectors > 1:
                        emit(vectors - 1)

        emit(VECTORS)

    def _sums(builder, k, rows, panel, vector, vectors):  # type: ignore[no-untyped-def]
        """Σ_i rows[r][i] panel[i], a vector for each row and each of the panel's first `vectors` vectors."""
        index, lanes = ir.IntType(64), vector.count
        zero = ir.Constant(vector, [0.0] * lanes)
        before = builder.block
        loop, after = builder.append_basic_block("tile"), builder.append_basic_block("tiled")
        builder.cbranch(builder.icmp_signed(">", k, ir.Constant(index, 0)), loop, after)
        builder.position_at_end(loop)
        i = builder.phi(index)
        i.add_incoming(ir.Constant(index, 0), before)
        held = [[builder.phi(vector) for _ in range(vectors)] for _ in rows]
        line = builder.gep(panel, [builder.mul(i, ir.Constant(index, VECTORS * lanes))])
        factors = [
            builder.load(
                builder.bitcast(builder.gep(line, [ir.Constant(index, v * lanes)]), vector.as_pointer()), align=4
            )
            for v in range(vectors)
        ]
        found = []
        for row, sums in zip(rows, held, strict=True):
            entry = builder.load(builder.gep(row, [i]))
            first = builder.insert_element(ir.Constant(vector, ir.Undefined), entry, ir.Constant(ir.IntType(32), 0))
            same = builder.shuffle_vector(first, first, ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes))
            products = [builder.fmul(same, factor, flags=("contract",)) for factor in factors]
            found.append([builder.fadd(s, x, flags=("contract",)) for s, x in zip(sums, products, strict=True)])
        following = builder.add(i, ir.Constant(index, 1))
        i.add_incoming(following, loop)
        builder.cbranch(builder.icmp_signed("<", following, k), loop, after)
        for sums, new in zip(held, found, strict=True):
            for s, x in zip(sums, new, strict=True):
                s.add_incoming(zero, before)
                s.add_incoming(x, loop)
        builder.position_at_end(after)
        results = []
        for new in found:
            results.append([builder.phi(vector) for _ in new])
            for result, x in zip(results[-1], new, strict=True):
                result.add_incoming(zero, before)
                result.add_incoming(x, loop)
        return results

    def _store(builder, sums, targets, add, columns):  # type: ignore[no-untyped-def]
        """Write the tile's first `columns`; all rows are read before one is written: rows may be the same one."""
        index, vectors, vector = ir.IntType(64), len(sums[0]), sums[0][0].type
        for v in range(vectors - 1):
            _store_vector(builder, [row[v] for row in sums], _at(builder, targets, v * vector.count), add)
        last, start = [row[-1] for row in sums], (vectors - 1) * vector.count
        whole = builder.icmp_signed(">=", columns, ir.Constant(index, vectors * vector.count))
        with builder.if_else(whole) as (then, otherwise):
            with then:
                _store_vector(builder, last, _at(builder, targets, start), add)
            with otherwise:
                for lane in range(vector.count - 1):
                    with builder.if_then(builder.icmp_signed("<", ir.Constant(index, start + lane), columns)):
                        entries = [builder.extract_element(x, ir.Constant(ir.IntType(32), lane)) for x in last]
                        _store_vector(builder, entries, _at(builder, targets, start + lane), add)

    def _at(builder, targets, column):  # type: ignore[no-untyped-def]
        return [builder.gep(target, [ir.Constant(ir.IntType(64), column)]) for target in targets]

    def _store_vector(builder, values, places, add):  # type: ignore[no-untyped-def]
        """Store a vector or an entry of each row, or add it to what is there."""
        kind = values[0].type
        places = [builder.bitcast(place, kind.as_pointer()) for place in places]
        with builder.if_else(add) as (then, otherwise):
            with then:
                new = [builder.fadd(builder.load(p, align=4), x) for p, x in zip(places, values, strict=True)]
                for place, x in zip(places, new, strict=True):
                    builder.store(x, place, align=4)
            with otherwise:
                for place, x in zip(places, values, strict=True):
                    builder.store(x, place, align=4)

    @inner
    def packed_product(m, n, k, A, a, lda, P, p, add, C, c, ldc):
        """C (m, n) = A (m, k) op(W), added to C where `add`; op(W) (k, n) is packed at p in P, rows of A lda apart.

        Each row's sums are taken in the same order, whatever the rows beside it.
        """
        columns = _width(C)
        for j in range(0, n, columns):
            panel, wanted = p + j * k, min(columns, n - j)
            for i in range(0, m, ROWS):
                i1, i2, i3 = min(i + 1, m - 1), min(i + 2, m - 1), min(i + 3, m - 1)
                _tile(
                    k, A, a + i * lda, a + i1 * lda, a + i2 * lda, a + i3 * lda, P, panel, wanted, add,
                    C, c + i * ldc + j, c + i1 * ldc + j, c + i2 * ldc + j, c + i3 * ldc + j,
                )  # fmt: skip

else:

    def packed_product(m, n, k, A, a, lda, P, p, add, C, c, ldc):  # type: ignore[no-untyped-def]
        """The same where nothing is compiled."""
        view = np.lib.stride_tricks.as_strided
        left = view(A[a:], (m, k), (lda * A.itemsize, A.itemsize))
        columns = width(P.dtype)
        panels = P[p : p + -(-n // columns) * columns * k].reshape(-1, k, columns)
        product = np.concatenate([left @ panel for panel in panels], axis=1)[:, :n]
        out = view(C[c:], (m, n), (ldc * C.itemsize, C.itemsize))
        out[...] = out + product if add else product
