"""Compiled code: functions over flat arrays that any tape runs through.

Only the process that compiles has Numba decorate them. Everywhere else their modules are plain Python, read for their
constants: what runs is machine code from disk or, under NUMBA_DISABLE_JIT, the plain Python itself. `compiling` is set
before any of them is imported.
"""

import os

plain = os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0")
"""Kernels run as plain Python; nothing is compiled, nothing is kept on disk."""

compiling = False
"""Set by the process that compiles, before it imports a kernel."""

GEMM = {"float64": "bp_dgemm", "float32": "bp_sgemm", "complex128": "bp_zgemm"}
"""By dtype the symbol by which compiled kernels call SciPy's gemm; the loader resolves it."""
YIELD = "bp_yield"
"""The symbol by which a waiting thread gives up its core."""
