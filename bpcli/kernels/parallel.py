"""The parallel loop over a kernel's jobs: Numba's `prange`, which its threading layer runs."""

from __future__ import annotations

import numba
from llvmlite import ir
from numba import njit, prange, types
from numba.core import cgutils
from numba.extending import intrinsic

from bpcli.kernels.folder import cache_folder

numba.config.CACHE_DIR = str(cache_folder())  # before the loop is decorated


@intrinsic
def _call(typingctx, address, jobs, count, stride, values):  # type: ignore[no-untyped-def]
    """Call the machine code at `address`."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        pointer, integer = cgutils.voidptr_t, ir.IntType(64)
        kind = ir.FunctionType(ir.VoidType(), [pointer, integer, integer, pointer])
        function = builder.inttoptr(args[0], kind.as_pointer())
        at, values = (builder.inttoptr(args[k], pointer) for k in (1, 4))
        builder.call(function, [at, args[2], args[3], values])
        return context.get_dummy_value()

    return types.void(*[types.intp] * 5), codegen


@njit([types.void(*[types.intp] * 5)], cache=True, parallel=True)
def run_parallel(address, jobs, count, stride, values):
    """Run the kernel at `address` with `count` jobs, `stride` bytes apart, in parallel: they share nothing."""
    for j in prange(count):
        _call(address, jobs + j * stride, 1, stride, values)


def use(count: int) -> None:
    """Let the loop run on `count` threads, or as many as there are."""
    numba.set_num_threads(min(count, numba.config.NUMBA_NUM_THREADS))
