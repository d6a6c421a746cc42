"""The compiled kernels: where they are kept on disk, how they are got, and the message while they are made.

The folder's name carries a hash of the sources of this package and of what they are generated from, because Numba itself
only sees that a function's own file has changed. Each kernel and dtype has a folder of its own, so that processes that
compile different kernels at the same time do not write to the same index.
"""

from __future__ import annotations

import functools
import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numba import cfunc, types
from numpy.typing import NDArray

from bpcli import __version__

KERNELS = {
    "forward": "bpcli.kernels.forward:forward_span",
    "reverse": "bpcli.kernels.reverse:reverse_span",
    "products": "bpcli.kernels.products:matrix_product",
    "influence": "bpcli.kernels.influence:influence_span",
}
announce: Callable[[str], None] = lambda text: None  # noqa: E731 (replaced by whoever has a terminal)

Jobs = NDArray[np.int64]
Request = tuple[str, np.dtype]


@functools.cache
def cache_folder() -> Path:
    """Where compiled kernels are kept: under NUMBA_CACHE_DIR, else XDG_CACHE_HOME, else ~/.cache."""
    package = Path(__file__).resolve().parent
    sources = sorted([*package.glob("*.py"), *(package.parent / "graph").glob("*.py")])
    digest = hashlib.sha256(f"{__version__} {numba.__version__} {np.__version__} {sys.version_info[:2]}".encode())
    for source in sources:
        digest.update(source.read_bytes())
    root = os.environ.get("NUMBA_CACHE_DIR") or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "bp" / digest.hexdigest()[:16]


@contextmanager
def _cached_in(folder: Path) -> Iterator[None]:
    before, numba.config.CACHE_DIR = numba.config.CACHE_DIR, str(folder)
    try:
        yield
    finally:
        numba.config.CACHE_DIR = before


def _marker(request: Request) -> Path:
    return cache_folder() / f"{request[0]}-{request[1]}" / "ready"


@functools.cache
def _compiled(name: str, dtype: np.dtype) -> Any:
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


def run(name: str, jobs: Jobs, values: NDArray) -> None:
    """Run a kernel with every row of `jobs` on `values`, in parallel where there are several rows and threads."""
    kernel = _compiled(name, values.dtype)
    if numba.config.DISABLE_JIT:
        for job in jobs:
            kernel(job, values)
        return
    loop = _loop(parallel=len(jobs) > 1 and numba.get_num_threads() > 1)
    loop(kernel.address, jobs, values.ctypes.data)


@functools.cache
def _loop(parallel: bool) -> Any:
    with _cached_in(cache_folder() / "loops"):
        from bpcli.kernels import jit

        return jit.run_parallel if parallel else jit.run


def missing(requests: Iterable[Request]) -> list[Request]:
    """Those of the requested kernels that this machine has not compiled yet."""
    return [r for r in dict.fromkeys(requests) if not _marker(r).exists()]


def prepare(requests: Iterable[Request]) -> None:
    """Compile what is missing, several kernels at a time in processes of their own: compiling is serial in Numba."""
    todo = [] if numba.config.DISABLE_JIT else missing(requests)
    if len(todo) < 2 or (os.cpu_count() or 1) < 2:
        return
    names = ", ".join(f"{name} ({dtype})" for name, dtype in todo)
    announce(f"compiling kernels, once on this machine: {names}")
    queue, running = list(todo), list[subprocess.Popen[bytes]]()
    while queue or running:
        while queue and len(running) < (os.cpu_count() or 1):
            name, dtype = queue.pop(0)
            command = [sys.executable, "-m", "bpcli.kernels.library", name, str(dtype)]
            running.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        running.pop(0).wait()


if __name__ == "__main__":
    _compiled(sys.argv[1], np.dtype(sys.argv[2]))
