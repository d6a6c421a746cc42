"""The compiled kernels: how they are got, the threads that run them, and the message while they are made.

A kernel for one dtype is one object file. LLVM loads it in some milliseconds, without Numba, whose import alone takes
longer than a small check. Numba is imported where there is something to compile, by processes of their own, and where
there is so much to run that the parallel loop pays.
"""

from __future__ import annotations

import ctypes
import functools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import IO

import llvmlite.binding as llvm
import numpy as np
from numpy.typing import NDArray

from bpcli.errors import fail
from bpcli.kernels import mode
from bpcli.kernels.folder import Request, read_object
from bpcli.kernels.symbols import blas_symbols

KERNELS = {
    "forward": "bpcli.kernels.forward:forward_span",
    "reverse": "bpcli.kernels.reverse:reverse_span",
    "products": "bpcli.kernels.products:matrix_product",
    "influence": "bpcli.kernels.influence:influence_span",
}
PARALLEL = "parallel"
"""The loop over jobs, which is compiled beside the kernels."""
ENTRY = "bp_kernel"
"""The function that every object file exports: `void bp_kernel(jobs, count, stride, values)`."""
Jobs = NDArray[np.int64]
_SINGLE, _DOUBLE, _COMPLEX = np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.complex128)
_PATIENCE_S = 0.4
"""So long jobs that could run in parallel run one after another: loading the parallel loop takes about as long."""

announce: Callable[[str], None] = lambda text: None  # noqa: E731 (replaced by whoever has a terminal)
CHECKING: tuple[Request, ...] = (
    *((name, _DOUBLE) for name in ("reverse", "forward", "influence", "products")),
    *((name, _SINGLE) for name in ("reverse", "forward", "products")),
    ("forward", _COMPLEX),
)
"""The kernels that a check in float64 takes: float32 shows what rounding does."""


def missing(requests: Iterable[Request]) -> list[Request]:
    """Those of the requested kernels that this machine has not compiled yet."""
    return [r for r in dict.fromkeys(requests) if read_object(r) is None]


def prepare(requests: Iterable[Request]) -> None:
    """Compile what is missing, by two processes if there are two cores: Numba compiles one function at a time.

    Kernels of one dtype share most of their functions and are compiled together. Raises BpError where this fails.
    """
    todo = [] if mode.plain else missing(requests)
    if not todo:
        return
    announce(f"compiling {len(todo)} kernels, once on this machine; this takes up to half a minute")
    doubles = [r for r in todo if r[1] == _DOUBLE]
    others = [r for r in todo if r[1] != _DOUBLE]
    groups = [doubles, others] if _cores() > 1 else [todo]
    names = [[f"{name}:{dtype}" for name, dtype in group] for group in groups if group]
    names[-1].insert(0, PARALLEL)
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
    """Until all have ended, or one has failed; says how far they are."""
    left = len(todo)
    while any(process.poll() is None for process in running) and not any(process.poll() for process in running):
        time.sleep(0.05)
        if len(missing(todo)) < left:
            left = len(missing(todo))
            announce(f"compiled {len(todo) - left} of {len(todo)}")


def _compiling(names: list[str], said: IO[bytes]) -> subprocess.Popen[bytes]:
    """A process that compiles; what it complains of goes to `said`."""
    package_home = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, (package_home, os.environ.get("PYTHONPATH"))))
    return subprocess.Popen(
        [sys.executable, "-P", "-W", "ignore", "-m", "bpcli.kernels.compiling", *names],  # -P: not what is here
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=said,
    )


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Code:
    """A kernel's machine code in memory, and the engine that owns it."""

    def __init__(self, request: Request) -> None:
        prepare([request])
        for name, address in blas_symbols().items():
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
    """How many kernels (with the parallel loop) this process has compiled or loaded so far, and the seconds it took."""
    return len(_seconds), sum(_seconds)


@functools.cache
def plain(name: str) -> Callable[[NDArray, NDArray], None]:
    """The kernel as it is written, where nothing is compiled."""
    module, function = KERNELS[name].split(":")
    python: Callable[[NDArray, NDArray], None] = getattr(import_module(module), function)
    return python


class _Threads:
    """How many threads run kernels, and the parallel loop once it is loaded."""

    def __init__(self) -> None:
        wish = os.environ.get("NUMBA_NUM_THREADS") or str(_cores())
        if not wish.isdecimal() or int(wish) < 1:
            fail("threads", f'NUMBA_NUM_THREADS must be a number of threads, not "{wish}"')
        self.count = int(wish)
        self.loop: Callable[..., None] | None = None
        self.backwards = False
        self._spent_s = 0.0

    def spend(self, seconds: float) -> None:
        """Count time that the parallel loop would have shortened, and load it when that is worth its time."""
        self._spent_s += seconds
        if self._spent_s > _PATIENCE_S:
            self.load()

    def load(self) -> None:
        """Load the parallel loop, for `count` threads or as many as Numba has."""
        start = time.perf_counter()
        from bpcli.kernels.parallel import run_parallel, use

        self.count = use(self.count)
        self.loop = run_parallel
        _seconds.append(time.perf_counter() - start)


@functools.cache
def pool() -> _Threads:
    """The threads of this process."""
    return _Threads()


def threads() -> int:
    """How many threads run kernels."""
    return pool().count


def set_threads(count: int) -> None:
    """Let kernels run on `count` threads from now on, in parallel from the first job; at most as many as Numba has."""
    pool().count = count
    if count > 1 and not mode.plain:
        pool().load()


@contextmanager
def reordered() -> Iterator[None]:
    """In here one thread takes the jobs, the last one first: what threads that overtake each other may come to.

    Jobs that share nothing, as they should, give the same bits in any order and on any number of threads.
    """
    pool().backwards = True
    try:
        yield
    finally:
        pool().backwards = False
