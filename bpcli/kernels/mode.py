"""Whether this process compiles kernels.

Only a process that compiles them imports Numba. In every other the modules of kernels are plain Python, read for their
constants: what runs is machine code from the disk, or, under NUMBA_DISABLE_JIT, the plain Python itself.
"""

import os

plain = os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0")
"""Kernels run as plain Python; nothing is compiled, nothing is kept on disk."""

compiling = False
"""Set, before any other module of this room is imported, by the process that compiles."""
