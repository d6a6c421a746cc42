"""Where compiled kernels are kept on disk.

The folder's name carries a hash of what compiled code depends on: the sources, the compiler and the processor.
"""

from __future__ import annotations

import functools
import hashlib
import os
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import llvmlite.binding as llvm

from bpcli import __version__

SOURCES = (
    *("blas", "codes", "compiling", "elementwise", "elementwise_complex", "elementwise_real", "forward", "influence"),
    *("jit", "mode", "parallel", "products", "pull", "pull_reductions", "reductions", "reverse", "rows", "slopes"),
    *("symbols", "unary", "../graph/operations", "../graph/tape"),
)
"""What compiled code is made of: the modules that kernels import, directly or not, from this package."""


@functools.cache
def cache_folder() -> Path:
    """Where compiled kernels are kept: under NUMBA_CACHE_DIR, else XDG_CACHE_HOME, else ~/.cache, else for this run."""
    package = Path(__file__).resolve().parent
    machine = f"{llvm.get_host_cpu_name()} {llvm.get_host_cpu_features().flatten()}"
    digest = hashlib.sha256(f"{__version__} {version('numba')} {sys.version_info[:2]} {machine}".encode())
    for source in SOURCES:
        digest.update((package / f"{source}.py").read_bytes())
    name = f"bp/{digest.hexdigest()[:16]}"
    for root in (os.environ.get("NUMBA_CACHE_DIR"), os.environ.get("XDG_CACHE_HOME"), "~/.cache"):
        folder = Path(root or "").expanduser() / name
        try:
            if root and folder.is_absolute():
                folder.mkdir(parents=True, exist_ok=True)
                if os.access(folder, os.W_OK):
                    return folder
        except OSError:
            continue
    os.environ["NUMBA_CACHE_DIR"] = tempfile.mkdtemp(prefix="bp-kernels-")  # for processes that compile for this one
    folder = Path(os.environ["NUMBA_CACHE_DIR"]) / name
    folder.mkdir(parents=True)
    return folder
