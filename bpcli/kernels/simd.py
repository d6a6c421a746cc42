"""Processor vectors in LLVM IR, for loops that LLVM does not vectorise by itself."""

from __future__ import annotations

import os
from collections.abc import Mapping

import llvmlite.binding as llvm

from bpcli import kernels
from bpcli.errors import fail

PATHS = {"avx512": ("avx512f", 64), "avx2": ("avx2", 32), "sse2": ("sse2", 16)}
"""The vector paths of x86 processors, the widest first: the feature that each needs, and the bytes of its vectors."""
_NATIVE = "native"
"""The path of a processor that has none of these."""


def vector_paths(features: Mapping[str, bool]) -> list[str]:
    """The vector paths of a processor with these features, the widest first."""
    return [path for path, (feature, _) in PATHS.items() if features.get(feature)] or [_NATIVE]


def chosen_path(features: Mapping[str, bool], wish: str) -> str:
    """The path that BP_VECTORS asks for, or the widest. Raises BpError where the processor lacks it."""
    paths = vector_paths(features)
    if wish and wish not in paths:
        what = f'BP_VECTORS is "{wish}", which this processor does not support'
        fail("vectors", what, help=f"set it to {' or '.join(paths)}, or unset it for {paths[0]}")
    return wish or paths[0]


_FEATURES = llvm.get_host_cpu_features()
VECTORS_OF_HOST = vector_paths(_FEATURES)
"""The vector paths of this processor, the widest first."""
VECTOR_PATH = chosen_path(_FEATURES, os.environ.get("BP_VECTORS", ""))
"""The path that kernels of this process take. Results of two paths may differ by rounding."""
WIDE = VECTOR_PATH == "avx512"
"""Whether vectors have 64 bytes, and 32 registers."""
VECTOR_BYTES = PATHS[VECTOR_PATH][1] if VECTOR_PATH in PATHS else 32


def target(path: str = VECTOR_PATH, features: Mapping[str, bool] = _FEATURES) -> tuple[str, str]:
    """The processor and the features that code of a path is compiled for: this processor, without wider vectors."""
    if path == "sse2":
        return "x86-64", "+sse2"  # every processor of this kind, as code for others must be
    without = [f"-{name}" for name in features if path == "avx2" and name.startswith(("avx512", "avx10", "evex"))]
    has = [f"+{name}" for name, there in features.items() if there and f"-{name}" not in without]
    return llvm.get_host_cpu_name(), ",".join([*has, *without, *["-prefer-256-bit"] * (path == "avx512")])


if kernels.compiling:
    from llvmlite import ir
    from numba import types
    from numba.core import cgutils
    from numba.extending import intrinsic

    _INDEX, _NUMBER = ir.IntType(64), ir.IntType(32)

    @intrinsic
    def lanes_of(typingctx, like):  # type: ignore[no-untyped-def]
        """Numbers of an array's dtype in a vector."""
        lanes = VECTOR_BYTES * 8 // like.dtype.bitwidth

        def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
            return context.get_constant(types.intp, lanes)

        return types.intp(like), codegen

    def constant(number):  # type: ignore[no-untyped-def]
        """An index."""
        return ir.Constant(_INDEX, number)

    def vector_of(context, dtype):  # type: ignore[no-untyped-def]
        """The type of a vector of a dtype."""
        return ir.VectorType(context.get_data_type(dtype), VECTOR_BYTES * 8 // dtype.bitwidth)

    def data(context, builder, signature, args, i):  # type: ignore[no-untyped-def]
        """The pointer to the numbers of the array that is argument i of an intrinsic."""
        return context.make_array(signature.args[i])(context, builder, args[i]).data

    def at(builder, pointer, entries):  # type: ignore[no-untyped-def]
        """`pointer + entries`."""
        return builder.gep(pointer, [entries])

    def broadcast(builder, kind, entry):  # type: ignore[no-untyped-def]
        """Broadcast: the vector with `entry` in every lane."""
        one = builder.insert_element(ir.Constant(kind, ir.Undefined), entry, ir.Constant(_NUMBER, 0))
        return builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(_NUMBER, kind.count), [0] * kind.count))

    def first_lanes(builder, lanes, wanted):  # type: ignore[no-untyped-def]
        """The mask of the first `wanted` lanes."""
        kind = ir.VectorType(_INDEX, lanes)
        return builder.icmp_signed("<", ir.Constant(kind, list(range(lanes))), broadcast(builder, kind, wanted))

    def load(builder, kind, place, mask=None):  # type: ignore[no-untyped-def]
        """The vector at a pointer to a number; zeros where `mask` has none."""
        place = builder.bitcast(place, kind.as_pointer())
        if mask is None:
            return builder.load(place, align=4)
        return _masked(builder, "load", kind, kind, [place, ir.Constant(_NUMBER, 4), mask, zeros(kind)])

    def by_columns(builder, columns, lanes, most, emit):  # type: ignore[no-untyped-def]
        """Emit code that branches to `emit(most, None)` where `columns` take all lanes of `most` vectors, so that none
        needs a mask, or else to `emit(vectors, columns)` for the fewest vectors that have so many."""

        def fewest(vectors):  # type: ignore[no-untyped-def]
            if vectors == 1:
                emit(1, columns)
                return
            with builder.if_else(builder.icmp_signed(">", columns, constant((vectors - 1) * lanes))) as (then, less):
                with then:
                    emit(vectors, columns)
                with less:
                    fewest(vectors - 1)

        with builder.if_else(builder.icmp_signed(">=", columns, constant(most * lanes))) as (then, otherwise):
            with then:
                emit(most, None)
            with otherwise:
                fewest(most)

    def rest(builder, columns, v, vectors, lanes):  # type: ignore[no-untyped-def]
        """The lanes of vector v that `columns` take, None for all: of `vectors` the last one alone may have a rest."""
        return builder.sub(columns, constant(v * lanes)) if columns is not None and v == vectors - 1 else None

    def store(builder, vectors, places, wanted, add, addends=None):  # type: ignore[no-untyped-def]
        """Write the first `wanted` lanes, None for all, to pointers to numbers, plus what is at `addends`, or there,
        where `add`."""

        def write(mask):  # type: ignore[no-untyped-def]
            def put(values):  # type: ignore[no-untyped-def]
                for value, place in zip(values, places, strict=True):
                    to = builder.bitcast(place, value.type.as_pointer())
                    if mask is None:
                        builder.store(value, to, align=4)
                    else:
                        arguments = [value, to, ir.Constant(_NUMBER, 4), mask]
                        _masked(builder, "store", value.type, ir.VoidType(), arguments)

            with builder.if_else(add) as (then, otherwise):
                with then:
                    held = [load(builder, vectors[0].type, place, mask) for place in addends or places]
                    put([builder.fadd(h, v) for h, v in zip(held, vectors, strict=True)])
                with otherwise:
                    put(vectors)

        _by_lanes(builder, vectors[0].type.count, wanted, write)

    def scatter_add(builder, vectors, places, apart, wanted):  # type: ignore[no-untyped-def]
        """Gather, add and scatter the first `wanted` lanes, None for all, `apart` numbers from each other; all are read
        before any is written, so places may coincide."""
        kind, lanes = vectors[0].type, vectors[0].type.count
        bits = VECTOR_BYTES * 8 // lanes
        step = broadcast(builder, ir.VectorType(_INDEX, lanes), builder.mul(apart, constant(bits // 8)))
        offsets = builder.mul(step, ir.Constant(ir.VectorType(_INDEX, lanes), list(range(lanes))))
        pointers = ir.VectorType(kind.element.as_pointer(), lanes)
        there = [
            builder.inttoptr(
                builder.add(broadcast(builder, offsets.type, builder.ptrtoint(p, _INDEX)), offsets), pointers
            )
            for p in places
        ]
        align = ir.Constant(_NUMBER, 4)

        def write(mask):  # type: ignore[no-untyped-def]
            on = ir.Constant(ir.VectorType(ir.IntType(1), lanes), [1] * lanes) if mask is None else mask
            held = [_masked(builder, "gather", kind, kind, [p, align, on, zeros(kind)], "v{}p0") for p in there]
            for vector, p, h in zip(vectors, there, held, strict=True):
                _masked(builder, "scatter", kind, ir.VoidType(), [builder.fadd(h, vector), p, align, on], "v{}p0")

        _by_lanes(builder, lanes, wanted, write)

    def _by_lanes(builder, lanes, wanted, write):  # type: ignore[no-untyped-def]
        """Emit `write(mask)`, without a mask where all lanes are wanted: masked stores of AVX2 are slow."""
        if wanted is None:
            write(None)
            return
        with builder.if_else(builder.icmp_signed(">=", wanted, constant(lanes))) as (then, otherwise):
            with then:
                write(None)
            with otherwise:
                write(first_lanes(builder, lanes, wanted))

    def zeros(kind):  # type: ignore[no-untyped-def]
        """The vector of zeros."""
        return ir.Constant(kind, [0.0] * kind.count)

    def multiply_add(builder, a, b, c):  # type: ignore[no-untyped-def]
        """a b + c, rounded once where the processor can."""
        return builder.fadd(builder.fmul(a, b, flags=("contract",)), c, flags=("contract",))

    def horizontal_sums(builder, vectors):  # type: ignore[no-untyped-def]
        """The vector of the horizontal sums of as many vectors as each has lanes."""
        lanes, width = vectors[0].type.count, 1
        while len(vectors) > 1:
            low = [i + j + k for i in range(0, lanes, 2 * width) for j in (0, lanes) for k in range(width)]
            high = [i + width for i in low]
            vectors = [
                builder.fadd(_shuffled(builder, a, b, low), _shuffled(builder, a, b, high))
                for a, b in zip(vectors[::2], vectors[1::2], strict=True)
            ]
            width *= 2
        return vectors[0]

    def _shuffled(builder, a, b, lanes):  # type: ignore[no-untyped-def]
        """A vector of the given lanes of a and b; the lanes of b are counted on from those of a."""
        return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(_NUMBER, len(lanes)), lanes))

    def loop(builder, count, step, sums, body):  # type: ignore[no-untyped-def]
        """Emit a loop that carries `sums` through `body(i, sums)` for i = 0, step, … below `count`; the final sums."""
        before = builder.block
        inside, after = builder.append_basic_block("loop"), builder.append_basic_block("looped")
        builder.cbranch(builder.icmp_signed(">", count, constant(0)), inside, after)
        builder.position_at_end(inside)
        i, held = builder.phi(_INDEX), [builder.phi(s.type) for s in sums]
        new = body(i, held)
        following = builder.add(i, constant(step))
        builder.cbranch(builder.icmp_signed("<", following, count), inside, after)
        last = builder.block
        for phi, start, value in zip([i, *held], [constant(0), *sums], [following, *new], strict=True):
            phi.add_incoming(start, before)
            phi.add_incoming(value, last)
        builder.position_at_end(after)
        found = [builder.phi(s.type) for s in sums]
        for phi, start, value in zip(found, sums, new, strict=True):
            phi.add_incoming(start, before)
            phi.add_incoming(value, last)
        return found

    def _masked(builder, name, kind, result, arguments, places="p0"):  # type: ignore[no-untyped-def]
        bits = 64 if isinstance(kind.element, ir.DoubleType) else 32
        signature = ir.FunctionType(result, [argument.type for argument in arguments])
        name = f"llvm.masked.{name}.v{kind.count}f{bits}.{places.format(kind.count)}"
        return builder.call(cgutils.get_or_insert_function(builder.module, signature, name), arguments)
