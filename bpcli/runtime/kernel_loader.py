"""Compiled kernels: loading them, having missing ones compiled, and the threads that run them.

A kernel for one dtype is one object file. LLVM loads it in some milliseconds, without Numba, whose import alone takes
longer than a small check. Numba is imported only by the processes that compile.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader, FileFinder
from pathlib import Path
from types import ModuleType
from typing import IO, TYPE_CHECKING, Any

import llvmlite.binding as llvm
import numpy as np
from numpy.typing import NDArray

from bpcli import kernels
from bpcli.errors import fail
from bpcli.runtime.kernel_cache import Request, read_object
from bpcli.runtime.machine import cores

if TYPE_CHECKING:
    from bpcli.kernels.thread_pool import ThreadPool


KERNELS = {
    "forward": "bpcli.kernels.forward:forward_span",
    "reverse": "bpcli.kernels.reverse:reverse_span",
    "products": "bpcli.kernels.matrix_gradients:matrix_product",
    "influence": "bpcli.kernels.influence:influence_span",
    "sets": "bpcli.kernels.column_groups:sets_span",
    "groups": "bpcli.kernels.column_groups:groups_span",
    "pack": "bpcli.kernels.tiles:pack_span",
    "thread_pool": "bpcli.kernels.thread_pool:pool_span",
}
ENTRY = "bp_kernel"
"""The function that every object file exports: `void bp_kernel(jobs, count, stride, values)`."""
Jobs = NDArray[np.int64]
_SINGLE, _DOUBLE, _COMPLEX = np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.complex128)
THREAD_POOL: Request = ("thread_pool", _DOUBLE)

announce: Callable[[str], None] = lambda text: None  # noqa: E731 (replaced where there is a terminal)
CHECKING: tuple[Request, ...] = (
    *((name, _DOUBLE) for name in ("reverse", "forward", "influence", "products", "pack")),
    *((name, _SINGLE) for name in ("reverse", "forward", "products", "pack")),
    ("forward", _COMPLEX),
    THREAD_POOL,
)
"""The kernels that a check in float64 takes: float32 shows what rounding does."""


def missing(requests: Iterable[Request]) -> list[Request]:
    """The requested kernels that are not yet compiled on this machine."""
    return [r for r in dict.fromkeys(requests) if read_object(r) is None]


def prepare(requests: Iterable[Request]) -> None:
    """Compile what is missing, by two processes if there are two cores: Numba compiles one function at a time.

    Kernels of one dtype share most of their functions and are compiled together. Raises BpError where this fails.
    """
    todo = [] if kernels.plain else missing(requests)
    if not todo:
        return
    named = "a kernel" if len(todo) == 1 else f"{len(todo)} kernels"
    announce(f"compiling {named}: once per machine, about half a minute")
    doubles = [r for r in todo if r[1] == _DOUBLE]
    others = [r for r in todo if r[1] != _DOUBLE]
    groups = [doubles, others] if cores() > 1 else [todo]
    names = [[f"{name}:{dtype}" for name, dtype in group] for group in groups if group]
    with tempfile.TemporaryFile() as said:
        running = [_compiling(group, said) for group in names]
        try:
            _wait(running, todo)
        finally:
            for process in running:
                process.kill()
                process.wait()
        if any(process.returncode != 0 for process in running):
            said.seek(0)
            last = (said.read().decode(errors="replace").strip().splitlines() or ["it says nothing"])[-1]
            fail("kernels", f"the kernels could not be compiled: {last}", help="bp doctor examines the installation")


def _wait(running: list[subprocess.Popen[bytes]], todo: list[Request]) -> None:
    """Wait until all processes have ended, or one has failed, and announce progress."""
    left = len(todo)
    while any(process.poll() is None for process in running) and not any(process.poll() for process in running):
        time.sleep(0.05)
        if len(missing(todo)) < left:
            left = len(missing(todo))
            announce(f"compiled {len(todo) - left} of {len(todo)}")


def _compiling(names: list[str], said: IO[bytes]) -> subprocess.Popen[bytes]:
    """A process that compiles; its stderr goes to `said`."""
    package_home = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, (package_home, os.environ.get("PYTHONPATH"))))
    return subprocess.Popen(
        [sys.executable, "-P", "-W", "ignore", "-m", "bpcli.runtime.compiling", *names],  # -P: not what is here
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=said,
    )


_SINGLE_THREADED = os.environ.setdefault("OPENBLAS_NUM_THREADS", "1") == "1"
"""OpenBLAS reads this when it is loaded; where it says otherwise, each BLAS has to be told."""


def single_threaded() -> None:
    """Limit every BLAS of this process to one thread: kernels run in parallel, not their products."""
    if not _SINGLE_THREADED:
        from threadpoolctl import threadpool_limits

        threadpool_limits(limits=1, user_api="blas")


@functools.cache
def _outside_functions() -> Mapping[str, int]:
    """Address by symbol of every function that compiled kernels call: SciPy's gemm, and the system's yield."""
    interface = _cython_blas().__pyx_capi__
    library, function = ("kernel32", "SwitchToThread") if sys.platform == "win32" else (None, "sched_yield")
    yields = ctypes.cast(getattr(ctypes.CDLL(library), function), ctypes.c_void_p).value
    gemm = {name: _address_of(interface[name.removeprefix("bp_")]) for name in kernels.GEMM.values()}
    return {**gemm, kernels.YIELD: int(yields or 0)}


def _cython_blas() -> ModuleType:
    """`scipy.linalg.cython_blas`, SciPy's public C interface to its BLAS, without the slow import of `scipy.linalg`."""
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


class Code:
    """A kernel's machine code in memory, and the engine that owns it."""

    def __init__(self, request: Request) -> None:
        prepare([request])
        for name, address in _outside_functions().items():
            llvm.add_symbol(name, address)
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        machine = llvm.Target.from_default_triple().create_target_machine()
        self.engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
        self.engine.add_object_file(llvm.ObjectFileRef.from_data(read_object(request)))
        self.engine.finalize_object()
        self.address = self.engine.get_function_address(ENTRY)
        self.call = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 4)(self.address)


_seconds: list[float] = []


@functools.cache
def code(request: Request) -> Code:
    """The kernel of a name and dtype, compiled first if need be."""
    start = time.perf_counter()
    found = Code(request)
    _seconds.append(time.perf_counter() - start)
    return found


def compiled() -> tuple[int, float]:
    """The number of kernels that this process has compiled or loaded so far, and the seconds it took."""
    return len(_seconds), sum(_seconds)


@functools.cache
def plain(name: str) -> Callable[[NDArray[Any], NDArray[Any]], None]:
    """The kernel as it is written, where nothing is compiled."""
    module, function = KERNELS[name].split(":")
    python: Callable[[NDArray[Any], NDArray[Any]], None] = getattr(importlib.import_module(module), function)
    return python


class ThreadSettings:
    """How many threads run kernels, and in which order they take jobs."""

    def __init__(self) -> None:
        wish = os.environ.get("NUMBA_NUM_THREADS") or str(cores())
        if not wish.isdecimal() or int(wish) < 1:
            what = f'NUMBA_NUM_THREADS must be a number of threads, not "{wish}"'
            fail("threads", what, help="set it to 1 or more, or unset it for all cores")
        self.count = int(wish)
        self.backwards = False


@functools.cache
def thread_settings() -> ThreadSettings:
    """The settings of this process."""
    return ThreadSettings()


@functools.cache
def thread_pool() -> ThreadPool:
    """This process's thread pool; a forked process starts without one."""
    from bpcli.kernels.thread_pool import ThreadPool  # a kernel, so imported after kernels.compiling is set

    return ThreadPool(code(THREAD_POOL).call)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=thread_pool.cache_clear)


def threads() -> int:
    """How many threads run kernels."""
    return thread_settings().count


def set_threads(count: int) -> None:
    """Let kernels run on `count` threads from now on."""
    thread_settings().count = count
    if count > 1 and not kernels.plain:
        thread_pool()  # now, not while a clock runs


@contextmanager
def reordered() -> Iterator[None]:
    """Run jobs on one thread, the last one first, as threads that overtake each other might.

    Jobs that share nothing, as they should, give the same bits in any order and on any number of threads.
    """
    thread_settings().backwards = True
    try:
        yield
    finally:
        thread_settings().backwards = False
