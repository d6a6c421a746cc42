"""Atomic operations on int64 arrays that threads share, and the pauses of a spin loop."""

from __future__ import annotations

import platform
import time

from bpcli import kernels
from bpcli.kernels.jit import inner

YIELD_EVERY = 64
"""Pauses after which a waiting thread yields its core, which the thread that it waits for may need."""

if kernels.compiling:
    from llvmlite import ir
    from numba import types
    from numba.core import cgutils
    from numba.extending import intrinsic

    from bpcli.kernels.simd import at, data

    _X86 = platform.machine() in ("x86_64", "AMD64")

    @intrinsic
    def read(typingctx, numbers, place):  # type: ignore[no-untyped-def]
        """Load the number at a place (acquire)."""

        def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
            return builder.load_atomic(at(builder, data(context, builder, signature, args, 0), args[1]), "acquire", 8)

        return types.int64(numbers, types.intp), codegen

    @intrinsic
    def write(typingctx, numbers, place, number):  # type: ignore[no-untyped-def]
        """Store a number at a place (release)."""

        def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
            where = at(builder, data(context, builder, signature, args, 0), args[1])
            builder.store_atomic(args[2], where, "release", 8)
            return context.get_dummy_value()

        return types.void(numbers, types.intp, types.int64), codegen

    @intrinsic
    def advance(typingctx, numbers, place, number):  # type: ignore[no-untyped-def]
        """Add to the number at a place; return its previous value."""

        def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
            where = at(builder, data(context, builder, signature, args, 0), args[1])
            return builder.atomic_rmw("add", where, args[2], "acq_rel")

        return types.int64(numbers, types.intp, types.int64), codegen

    @intrinsic
    def exchange(typingctx, numbers, place, held, number):  # type: ignore[no-untyped-def]
        """Compare and swap: store a number at a place if that holds `held`; return whether it did."""

        def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
            where = at(builder, data(context, builder, signature, args, 0), args[1])
            found = builder.cmpxchg(where, args[2], args[3], "acq_rel", "acquire")
            return builder.extract_value(found, 1)

        return types.boolean(numbers, types.intp, types.int64, types.int64), codegen

    @intrinsic
    def pause(typingctx):  # type: ignore[no-untyped-def]
        """Tell an x86 processor that this is a spin loop; nothing on others."""

        def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
            if _X86:
                kind = ir.FunctionType(ir.VoidType(), [])
                builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.sse2.pause"), [])
            return context.get_dummy_value()

        return types.void(), codegen

    @intrinsic
    def yield_core(typingctx):  # type: ignore[no-untyped-def]
        """Yield the core to the operating system."""

        def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
            kind = ir.FunctionType(ir.IntType(32), [])
            builder.call(cgutils.get_or_insert_function(builder.module, kind, kernels.YIELD), [])
            return context.get_dummy_value()

        return types.void(), codegen

else:

    def read(numbers, place):  # type: ignore[no-untyped-def]
        """As compiled."""
        return int(numbers[place])

    def write(numbers, place, number):  # type: ignore[no-untyped-def]
        """As compiled."""
        numbers[place] = number

    def advance(numbers, place, number):  # type: ignore[no-untyped-def]
        """As compiled, if one thread at a time calls it."""
        numbers[place] += number
        return int(numbers[place]) - number

    def exchange(numbers, place, held, number):  # type: ignore[no-untyped-def]
        """As compiled, if one thread at a time calls it."""
        found = bool(numbers[place] == held)
        if found:
            numbers[place] = number
        return found

    def pause():  # type: ignore[no-untyped-def]
        """Let other threads run."""
        time.sleep(0)

    yield_core = pause


@inner
def wait(waited):
    """Pause for the `waited`th time."""
    if waited % YIELD_EVERY == 0:
        yield_core()
    else:
        pause()
