"""SciPy's BLAS, by address, and its threads.

`scipy.linalg.cython_blas` is SciPy's public C interface to the BLAS that it brings along. Compiled kernels name the
functions that they call, and find them when they are loaded.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import importlib.util
import os
import sys
from collections.abc import Mapping
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader, FileFinder
from pathlib import Path
from types import ModuleType

LETTERS = {"float64": "d", "float32": "s", "complex128": "z"}
# Read when a library is loaded: where it says otherwise, each has to be told.
_SINGLE = os.environ.setdefault("OPENBLAS_NUM_THREADS", "1") == "1"


def symbol(dtype: str, routine: str) -> str:
    """The name by which kernels call a routine (gemm)."""
    return f"bp_{LETTERS[dtype]}{routine}"


@functools.cache
def blas_symbols() -> Mapping[str, int]:
    """The address of every routine that kernels call, by name."""
    interface = _cython_blas().__pyx_capi__
    return {symbol(dtype, "gemm"): _address_of(interface[f"{letter}gemm"]) for dtype, letter in LETTERS.items()}


REST = "bp_rest"
"""The name by which kernels call what lets other threads have the core."""


def rest_symbol() -> int:
    """Its address in the C library, or in what stands for it on Windows."""
    library, name = ("kernel32", "SwitchToThread") if sys.platform == "win32" else (None, "sched_yield")
    return int(ctypes.cast(getattr(ctypes.CDLL(library), name), ctypes.c_void_p).value or 0)


def _cython_blas() -> ModuleType:
    """SciPy's BLAS interface by itself: importing all of `scipy.linalg` takes longer than many a check."""
    name = "scipy.linalg.cython_blas"
    if name in sys.modules:
        return sys.modules[name]
    package = importlib.util.find_spec("scipy")
    folder = str(Path(package.origin if package and package.origin else "").parent / "linalg")
    spec = FileFinder(folder, (ExtensionFileLoader, EXTENSION_SUFFIXES)).find_spec("cython_blas")
    found = importlib.util.spec_from_file_location(name, spec.origin) if spec and spec.origin else None
    if found is None or found.loader is None:
        return importlib.import_module(name)
    try:
        module = importlib.util.module_from_spec(found)
        found.loader.exec_module(module)
    except ImportError:  # where SciPy first has to say where its libraries are
        return importlib.import_module(name)
    return module


def _address_of(capsule: object) -> int:
    """The pointer in a capsule, whatever the capsule's name, which is the function's signature."""
    name_of, pointer_of = ctypes.pythonapi.PyCapsule_GetName, ctypes.pythonapi.PyCapsule_GetPointer
    name_of.restype, name_of.argtypes = ctypes.c_char_p, [ctypes.py_object]
    pointer_of.restype, pointer_of.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    return int(pointer_of(capsule, name_of(capsule)))


def single_threaded() -> None:
    """Hold every BLAS of this process to one thread: the parallelism is the kernels' own."""
    if not _SINGLE:
        from threadpoolctl import threadpool_limits

        threadpool_limits(limits=1, user_api="blas")
