"""The process that compiles: `python -m bpcli.runtime.compiling forward:float64 reverse:float64 …`.

Numba makes LLVM code of a kernel; LLVM makes an object file of it, which any process loads without Numba (see
`bpcli.runtime.kernel_loader`). Kernels that are compiled together share the functions they call. The object file
exports one function, `void bp_kernel(jobs, count, stride, values)`, which calls the kernel with each of `count` jobs,
`stride` bytes apart.

By default Numba optimises and translates every function on its own, with all that it calls, at every level of calls,
which takes a good part of its time. Here a function is left alone until the kernel that it becomes part of is
optimised, once, and passes over constructs that no kernel has are skipped.
"""

from __future__ import annotations

import gc
import os
import sys
from importlib import import_module
from typing import Any

import llvmlite.binding as llvm
import numba
import numpy as np
from numba import types
from numba.core.codegen import CPUCodeLibrary
from numba.core.compiler_lock import global_compiler_lock
from numba.core.compiler_machinery import PassManager
from numba.core.cpu import CPUContext
from numba.core.runtime.context import NRTContext

from bpcli import kernels
from bpcli.runtime.kernel_cache import write_object
from bpcli.runtime.kernel_loader import ENTRY, KERNELS

kernels.compiling = True

_OPTIMISED = 2
"""LLVM's level of optimisation: level 3 takes a tenth longer, for kernels that are no faster."""
_NEEDLESS = {  # by name, as Numba may move them; tests/test_kernels_library.py says when one is gone
    "WithLifting",
    "InlineClosureLikes",
    "RewriteDynamicRaises",
    "MakeFunctionToJitFunction",
    "InlineInlinables",
    "FindLiterallyCalls",
    "LiteralUnroll",
    "LiteralPropagationSubPipelinePass",
    "NopythonRewrites",
    "IRLegalization",
    "DumpParforDiagnostics",
}
"""Numba's passes for closures, computed messages of exceptions, expressions of whole arrays, `literally` and the like,
which are not in kernels; and `IRLegalization`, which marks where variables end: references are not counted (see
`_postpone_code`)."""

_LOOP = """
define void @{entry}(i8* %jobs, i64 %count, i64 %stride, i8* %values) {{
start:
  %result = alloca i8*
  %problem = alloca i8*
  %any = icmp sgt i64 %count, 0
  br i1 %any, label %each, label %end
each:
  %j = phi i64 [0, %start], [%next, %each]
  %offset = mul i64 %j, %stride
  %job = getelementptr i8, i8* %jobs, i64 %offset
  %status = call i32 @{kernel}(i8** %result, i8** %problem, i8* %job, i8* %values)
  %next = add i64 %j, 1
  %more = icmp slt i64 %next, %count
  br i1 %more, label %each, label %end
end:
  ret void
}}
declare i32 @{kernel}(i8**, i8**, i8*, i8*)
"""


def _postpone_code() -> None:
    """Leave what kernels call unoptimised and untranslated: it is linked into the kernels, and done there."""
    link = CPUCodeLibrary.add_linking_library

    def add_linking_library(self: CPUCodeLibrary, library: CPUCodeLibrary) -> None:
        if not library._finalized:
            library._optimize_final_module = lambda: None
        link(self, library)

    CPUCodeLibrary.add_linking_library = add_linking_library
    CPUCodeLibrary._optimize_functions = lambda self, module: None
    CPUCodeLibrary._finalize_final_module = lambda self: setattr(self, "_finalized", True)  # nothing is run here
    # Kernels allocate nothing: their arrays are views of their arguments, whose references are not counted.
    NRTContext._call_incref_decref = lambda self, builder, kind, value, name: None
    CPUContext.get_executable = lambda self, library, fndesc, env: [].append  # a key that Numba knows the code by


def _skip_passes() -> None:
    """Leave out the passes over a function that kernels do without, a tenth of Numba's time."""
    add = PassManager.add_pass

    def add_pass(self: PassManager, pss: type, description: str = "") -> None:
        if pss.__name__ not in _NEEDLESS:
            add(self, pss, description)

    PassManager.add_pass = add_pass


@global_compiler_lock
def _object_code(python: Any, dtype: np.dtype) -> bytes:
    """The object file of one kernel for one dtype."""
    from bpcli.kernels.jit import OPTIONS

    signature = types.void(types.CPointer(types.int64), types.CPointer(numba.from_dtype(dtype)))
    compiled = numba.njit([signature], **OPTIONS)(getattr(python, "py_func", python)).overloads[signature.args]
    library, name = compiled.library, compiled.fndesc.mangled_name
    optimise = library._optimize_final_module

    def enclose() -> None:
        """Show one function to the outside: the compiler may take apart what all others are called with."""
        library._final_module.link_in(llvm.parse_assembly(_LOOP.format(entry=ENTRY, kernel=f'"{name}"')))
        for function in library._final_module.functions:
            if not function.is_declaration and function.name != ENTRY:
                function.linkage = llvm.Linkage.internal
        optimise()

    library._optimize_final_module = enclose
    library.finalize()
    return bytes(library.codegen._tm.emit_object(library._final_module))


def main(requests: list[str]) -> None:
    """Compile what is asked for, in order, each into a file of its own, which appears when it is whole."""

    from bpcli.kernels.simd import WIDE, target

    if not os.environ.get("NUMBA_OPT"):
        numba.config.OPT = type(numba.config.OPT)(_OPTIMISED)
    if WIDE:
        # The rest of a row is a vector with some lanes off, not entry after entry; two vectors hide each other's
        # latency, more would leave short rows with lanes off alone; and by itself the compiler takes half the width.
        llvm.set_option("bp", "-prefer-predicate-over-epilogue=predicate-else-scalar-epilogue")
        llvm.set_option("bp", "-force-vector-interleave=2")
    if not numba.config.CPU_FEATURES and not numba.config.CPU_NAME:
        numba.config.CPU_NAME, numba.config.CPU_FEATURES = target()
    gc.disable()  # what a compiler makes it keeps
    _postpone_code()
    _skip_passes()
    for request in requests:
        name, dtype = request.split(":")
        module, function = KERNELS[name].split(":")
        code = _object_code(getattr(import_module(module), function), np.dtype(dtype))
        write_object((name, np.dtype(dtype)), code)


if __name__ == "__main__":
    main(sys.argv[1:])
