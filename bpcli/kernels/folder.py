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
import numpy as np

from bpcli import __version__

SOURCES = (
    *(
        "atomics",
        "binary",
        "blas",
        "codes",
        "compiling",
        "crew",
        "elementwise",
        "elementwise_complex",
        "elementwise_real",
        "forward",
    ),
    *("influence", "jit", "matvec", "mode", "packing", "products", "pull", "pull_reductions", "reductions"),
    *("reverse", "rows", "simd", "slopes", "symbols", "team", "tile", "tiles", "unary"),
    *("../graph/operations", "../graph/tape"),
)
"""What compiled code is made of: the modules that kernels import, directly or not, from this package."""

Request = tuple[str, np.dtype]
"""A kernel by its name, and the dtype that it is compiled for."""


@functools.cache
def cache_folder() -> Path:
    """Where compiled kernels are kept: under NUMBA_CACHE_DIR, else XDG_CACHE_HOME, else ~/.cache, else for this run."""
    package = Path(__file__).resolve().parent
    machine = (sys.platform, llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten())
    settings = [os.environ.get(f"NUMBA_{name}") for name in ("OPT", "CPU_NAME", "CPU_FEATURES")]
    versions = (__version__, version("numba"), version("llvmlite"), sys.version_info[:2])
    digest = hashlib.sha256(repr((versions, machine, settings)).encode())
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


def object_file(request: Request) -> Path:
    """Where a kernel is kept: a digest of its object code, and the code."""
    return cache_folder() / f"{request[0]}-{request[1]}.o"


def write_object(request: Request, code: bytes) -> None:
    """Keep the object code of a kernel; the file appears when it is whole."""
    path = object_file(request)
    passing = path.with_name(f"{path.name}.{os.getpid()}")
    passing.write_bytes(hashlib.sha256(code).digest() + code)
    try:
        passing.replace(path)
    except PermissionError:  # some systems don't replace what another process reads: it has the same code
        passing.unlink()


def read_object(request: Request) -> bytes | None:
    """The object code of a kernel, None where there is none or it is damaged."""
    try:
        content = object_file(request).read_bytes()
    except FileNotFoundError:
        return None
    digest, code = content[:32], content[32:]
    return code if hashlib.sha256(code).digest() == digest else None
