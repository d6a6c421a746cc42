"""Products of few rows with a matrix that is used again and again, packed for it once.

A library packs a factor anew in every call, which for the 16 rows of a shard takes as long as a good part of the
product. Here `op(W) (k, n)` stands in panels of columns, `(panels, k, width)`, the last one filled up with zeros,
and a tile of ROWS × `width` sums stays in registers while a panel passes by (Goto & van de Geijn 2008).
"""

from __future__ import annotations

import math

import llvmlite.binding as llvm
import numpy as np
from numpy.typing import NDArray

from bpcli.kernels import mode
from bpcli.kernels.jit import inner

WIDE = bool(llvm.get_host_cpu_features().get("avx512f"))
"""Whether the processor has vectors of 64 bytes, and 32 registers for them."""
ROWS, VECTOR_BYTES = (8, 64) if WIDE else (4, 32)
VECTORS = 3
"""Rows and vectors of a tile: 24 sums of AVX-512, or 12 of AVX2, with what they are made of, fill the registers."""
_WIDEST = VECTORS * 64 // 4  # of any processor: what is held does not depend on where it is held


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
    from numba.core import cgutils
    from numba.extending import intrinsic

    @intrinsic
    def _width(typingctx, like):  # type: ignore[no-untyped-def]
        columns = VECTORS * VECTOR_BYTES * 8 // like.dtype.bitwidth

        def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
            return context.get_constant(types.intp, columns)

        return types.intp(like), codegen

    @intrinsic
    def _tile(typingctx, m, k, A, a, lda, P, p, columns, add, C, c, ldc):  # type: ignore[no-untyped-def]
        """The tile of the first ROWS of m rows and one panel, of which `columns` are wanted; rows as in the product."""
        index, dtype = types.intp, C.dtype
        signature = types.void(index, index, A, index, index, P, index, index, types.boolean, C, index, index)

        def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
            if isinstance(dtype, types.Float):  # complex products go another way
                _emit_tile(context, builder, signature, args)
            return context.get_dummy_value()

        return signature, codegen

    def _emit_tile(context, builder, signature, args):  # type: ignore[no-untyped-def]
        m, k, A_, a, lda, P_, p, columns, add, C_, c, ldc = args
        scalar = context.get_data_type(signature.args[2].dtype)
        lanes = VECTOR_BYTES * 8 // signature.args[2].dtype.bitwidth
        vector = ir.VectorType(scalar, lanes)
        left, right, out = (
            context.make_array(kind)(context, builder, array).data
            for kind, array in zip((signature.args[i] for i in (2, 5, 9)), (A_, P_, C_), strict=True)
        )
        panel, last = builder.gep(right, [p]), builder.sub(m, _index(1))

        def row(base, start, apart, r):  # type: ignore[no-untyped-def]
            """Row r, or the last one that is there."""
            there = builder.select(builder.icmp_signed("<", _index(r), last), _index(r), last)
            return builder.gep(base, [builder.add(start, builder.mul(there, apart))])

        def emit(rows, vectors):  # type: ignore[no-untyped-def]
            """The cases of at most so many rows, and of at most the columns of so many vectors."""
            wanted = builder.icmp_signed(">", columns, _index((vectors - 1) * lanes))
            with builder.if_else(wanted) as (then, otherwise):
                with then:
                    sums = _sums(builder, k, [row(left, a, lda, r) for r in range(rows)], panel, vector, vectors)
                    _store(builder, sums, [row(out, c, ldc, r) for r in range(rows)], add, columns)
                with otherwise:
                    if vectors > 1:
                        emit(rows, vectors - 1)

        few = builder.icmp_signed("<=", m, _index(ROWS // 2))
        with builder.if_else(few) as (then, otherwise):
            with then:
                emit(ROWS // 2, VECTORS)
            with otherwise:
                emit(ROWS, VECTORS)

    def _index(number):  # type: ignore[no-untyped-def]
        return ir.Constant(ir.IntType(64), number)

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
            same = _everywhere(builder, vector, builder.load(builder.gep(row, [i])))
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
        vectors, kind = len(sums[0]), sums[0][0].type
        for v in range(vectors):
            values = [row[v] for row in sums]
            places = [builder.bitcast(builder.gep(t, [_index(v * kind.count)]), kind.as_pointer()) for t in targets]
            mask = _first(builder, kind.count, builder.sub(columns, _index(v * kind.count)))
            with builder.if_else(add) as (then, otherwise):
                with then:
                    new = [builder.fadd(_load(builder, p, mask), x) for p, x in zip(places, values, strict=True)]
                    _write(builder, new, places, mask)
                with otherwise:
                    _write(builder, values, places, mask)

    def _first(builder, lanes, wanted):  # type: ignore[no-untyped-def]
        """The mask of the first `wanted` lanes."""
        kind = ir.VectorType(ir.IntType(64), lanes)
        return builder.icmp_signed("<", ir.Constant(kind, list(range(lanes))), _everywhere(builder, kind, wanted))

    def _everywhere(builder, kind, entry):  # type: ignore[no-untyped-def]
        """The vector that has `entry` in every lane."""
        number = ir.IntType(32)
        first = builder.insert_element(ir.Constant(kind, ir.Undefined), entry, ir.Constant(number, 0))
        return builder.shuffle_vector(first, first, ir.Constant(ir.VectorType(number, kind.count), [0] * kind.count))

    def _masked(builder, name, kind, result, arguments):  # type: ignore[no-untyped-def]
        bits = 64 if isinstance(kind.element, ir.DoubleType) else 32
        function = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(result, [argument.type for argument in arguments]),
            f"llvm.masked.{name}.v{kind.count}f{bits}.p0",
        )
        return builder.call(function, arguments)

    def _load(builder, place, mask):  # type: ignore[no-untyped-def]
        kind = place.type.pointee
        nothing = ir.Constant(kind, [0.0] * kind.count)
        return _masked(builder, "load", kind, kind, [place, ir.Constant(ir.IntType(32), 4), mask, nothing])

    def _write(builder, values, places, mask):  # type: ignore[no-untyped-def]
        for value, place in zip(values, places, strict=True):
            four = ir.Constant(ir.IntType(32), 4)
            _masked(builder, "store", value.type, ir.VoidType(), [value, place, four, mask])

    @inner
    def packed_product(m, n, k, A, a, lda, P, p, add, C, c, ldc):
        """C (m, n) = A (m, k) op(W), added to C where `add`; op(W) (k, n) is packed at p in P, rows of A lda apart.

        Each row's sums are taken in the same order, whatever the rows beside it.
        """
        columns = _width(C)
        for j in range(0, n, columns):
            panel, wanted = p + j * k, min(columns, n - j)
            for i in range(0, m, ROWS):
                _tile(m - i, k, A, a + i * lda, lda, P, panel, wanted, add, C, c + i * ldc + j, ldc)

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
