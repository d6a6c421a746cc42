"""The compiled kernels: how they are got, and the message while they are made.

Each kernel and dtype has a folder of its own, so that processes that
compile different kernels at the same time do not write to the same index.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numba import cfunc, types
from numpy.typing import NDArray

from bpcli.kernels import jit
from bpcli.kernels.folder import cache_folder

KERNELS = {
    "forward": "bpcli.kernels.forward:forward_span",
    "reverse": "bpcli.kernels.reverse:reverse_span",
    "products": "bpcli.kernels.products:matrix_product",
    "influence": "bpcli.kernels.influence:influence_span",
}
_SINGLE, _DOUBLE, _COMPLEX = np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.complex128)
CHECKING = (
    ("forward", _COMPLEX),
    ("reverse", _DOUBLE),
    ("reverse", _SINGLE),
    ("forward", _DOUBLE),
    ("forward", _SINGLE),
    ("influence", _DOUBLE),
    ("products", _DOUBLE),
    ("products", _SINGLE),
)
"""The kernels that a check in float64 takes, the slowest to compile first: float32 shows what rounding does."""

announce: Callable[[str], None] = lambda text: None  # noqa: E731 (replaced by whoever has a terminal)

Jobs = NDArray[np.int64]
Request = tuple[str, np.dtype]


@contextmanager
def _cached_in(folder: Path) -> Iterator[None]:
    before, numba.config.CACHE_DIR = numba.config.CACHE_DIR, str(folder)
    try:
        yield
    finally:
        numba.config.CACHE_DIR = before


def _marker(request: Request) -> Path:
    return cache_folder() / f"{request[0]}-{request[1]}" / "ready"


_seconds: list[float] = []


def compiled() -> tuple[int, float]:
    """How many kernels this process has compiled or loaded so far, and how many seconds that took."""
    loops = 0 if numba.config.DISABLE_JIT else len(jit.run.signatures) + len(jit.run_parallel.signatures)
    return len(_seconds) + loops, sum(_seconds)


@functools.cache
def _compiled(name: str, dtype: np.dtype) -> Any:
    start = time.perf_counter()
    kernel = _compile(name, dtype)
    _seconds.append(time.perf_counter() - start)
    return kernel


def _compile(name: str, dtype: np.dtype) -> Any:
    module, function = KERNELS[name].split(":")
    python = getattr(import_module(module), function)
    if numba.config.DISABLE_JIT:
        return python
    marker = _marker((name, dtype))
    if not marker.exists():
        announce(f"compiling the {name} kernel for {dtype}, once on this machine")
    signature = types.void(types.CPointer(types.int64), types.CPointer(numba.from_dtype(dtype)))
    with _cached_in(marker.parent):
        kernel = cfunc(signature, cache=True, error_model="numpy")(python)
    if not marker.exists() and marker.parent.is_dir():
        marker.touch()
    return kernel


def run(name: str, jobs: Jobs, values: NDArray, parallel: bool = True) -> None:
    """Run a kernel with every row of `jobs` on `values`, in `parallel` where there are several rows and threads."""
    kernel = _compiled(name, values.dtype)
    if numba.config.DISABLE_JIT:
        for job in jobs:
            kernel(job, values)
        return
    loop = jit.run_parallel if parallel and len(jobs) > 1 and numba.get_num_threads() > 1 else jit.run
    loop(kernel.address, jobs, values.ctypes.data)


def missing(requests: Iterable[Request]) -> list[Request]:
    """Those of the requested kernels that this machine has not compiled yet."""
    return [r for r in dict.fromkeys(requests) if not _marker(r).exists()]


def prepare(requests: Iterable[Request]) -> None:
    """Compile what is missing, several kernels at a time in processes of their own: compiling is serial in Numba."""
    todo = [] if numba.config.DISABLE_JIT else missing(requests)
    if len(todo) < 2 or (os.cpu_count() or 1) < 2:
        return
    announce(f"compiling {len(todo)} kernels, once on this machine; this takes up to a minute")
    queue, running = list(todo), list[subprocess.Popen[bytes]]()
    while queue or running:
        while queue and len(running) < (os.cpu_count() or 1):
            name, dtype = queue.pop(0)
            running.append(_compiling(name, str(dtype)))
        done = next((p for p in running if p.poll() is not None), None)
        if done is None:
            time.sleep(0.05)
            continue
        running.remove(done)
        announce(f"compiled {len(todo) - len(missing(todo))} of {len(todo)}")


def _compiling(name: str, dtype: str) -> subprocess.Popen[bytes]:
    """A process that compiles one kernel. What goes wrong there goes wrong again, and is told, when it is used here."""
    package_home = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, (package_home, os.environ.get("PYTHONPATH"))))
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "bpcli.kernels.library", name, dtype],  # -P: run nothing from the current folder
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


if __name__ == "__main__":
    _compiled(sys.argv[1], np.dtype(sys.argv[2]))
