"""Numbers that several threads read and write: what one of them has written before, another that reads it can see."""

from __future__ import annotations

import platform
import time

from bpcli.kernels import mode
from bpcli.kernels.jit import inner

RESTLESS = 64
"""Pauses after which whoever waits lets others have its core: they may be those it waits for."""

if mode.compiling:
    from llvmlite import ir
    from numba import types
    from numba.core import cgutils
    from numba.extending import intrinsic

    from bpcli.kernels.simd import at, data
    from bpcli.kernels.symbols import REST

    _X86 = platform.machine() in ("x86_64", "AMD64")

    @intrinsic
    def read(typingctx, numbers, place):  # type: ignore[no-untyped-def]
        """The number at a place; all that was written before it can be read after it."""

        def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
            return builder.load_atomic(at(builder, data(context, builder, signature, args, 0), args[1]), "acquire", 8)

        return types.int64(numbers, types.intp), codegen

    @intrinsic
    def write(typingctx, numbers, place, number):  # type: ignore[no-untyped-def]
        """Put a number at a place: who reads it can read all that was written before it."""

        def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
            where = at(builder, data(context, builder, signature, args, 0), args[1])
            builder.store_atomic(args[2], where, "release", 8)
            return context.get_dummy_value()

        return types.void(numbers, types.intp, types.int64), codegen

    @intrinsic
    def advance(typingctx, numbers, place, number):  # type: ignore[no-untyped-def]
        """Add to the number at a place; what it was before."""

        def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
            where = at(builder, data(context, builder, signature, args, 0), args[1])
            return builder.atomic_rmw("add", where, args[2], "acq_rel")

        return types.int64(numbers, types.intp, types.int64), codegen

    @intrinsic
    def exchange(typingctx, numbers, place, held, number):  # type: ignore[no-untyped-def]
        """Put a number at a place if that holds `held`; whether it did."""

        def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
            where = at(builder, data(context, builder, signature, args, 0), args[1])
            found = builder.cmpxchg(where, args[2], args[3], "acq_rel", "acquire")
            return builder.extract_value(found, 1)

        return types.boolean(numbers, types.intp, types.int64, types.int64), codegen

    @intrinsic
    def pause(typingctx):  # type: ignore[no-untyped-def]
        """Tell the processor that this is a loop that waits; where it is none that can be told, nothing."""

        def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
            if _X86:
                kind = ir.FunctionType(ir.VoidType(), [])
                builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.sse2.pause"), [])
            return context.get_dummy_value()

        return types.void(), codegen

    @intrinsic
    def rest(typingctx):  # type: ignore[no-untyped-def]
        """Tell the system that others may have this core."""

        def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
            kind = ir.FunctionType(ir.IntType(32), [])
            builder.call(cgutils.get_or_insert_function(builder.module, kind, REST), [])
            return context.get_dummy_value()

        return types.void(), codegen

else:

    def read(numbers, place):  # type: ignore[no-untyped-def]
        """The same where nothing is compiled."""
        return int(numbers[place])

    def write(numbers, place, number):  # type: ignore[no-untyped-def]
        """The same where nothing is compiled."""
        numbers[place] = number

    def advance(numbers, place, number):  # type: ignore[no-untyped-def]
        """The same where nothing is compiled, as long as one thread at a time does it."""
        numbers[place] += number
        return int(numbers[place]) - number

    def exchange(numbers, place, held, number):  # type: ignore[no-untyped-def]
        """The same where nothing is compiled, as long as one thread at a time does it."""
        found = bool(numbers[place] == held)
        if found:
            numbers[place] = number
        return found

    def pause():  # type: ignore[no-untyped-def]
        """Let other threads run."""
        time.sleep(0)

    rest = pause


@inner
def wait(waited):
    """Pause for the `waited`th time."""
    if waited % RESTLESS == 0:
        rest()
    else:
        pause()
