"""A diagonal LSTM beside hand-written C++: are the gradients equal, and what does each take?

    python tests/diagonal_lstm.py [ROUNDS]

Compiles tests/diagonal_lstm.cpp with `g++ -O3 -march=native`, and times it and `bptt` in turn, on one thread.
"""

from __future__ import annotations

import ctypes
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bpcli.methods import parse
from bpcli.methods.base import Gradient
from bpcli.problem.definition import Problem
from bpcli.problem.draw import draw
from bpcli.problem.limits import Limits
from bpcli.problem.setup import open_setup

HERE = Path(__file__).parent
SPEC = HERE / "diagonal_lstm.toml"
PARAMS = [f"{kind}{gate}{layer}" for layer in (1, 2) for kind in "wub" for gate in "ifog"]
CLOSE = 1e-10
"""How far the gradients may be apart, relative to the largest entry."""


def compiled(folder: Path) -> ctypes.CDLL:
    """The C++ side as a library in `folder`. Raises FileNotFoundError without g++."""
    target = folder / "diagonal_lstm.so"
    flags = ["-O3", "-march=native", "-shared", "-fPIC"]
    subprocess.run(["g++", *flags, "-o", str(target), str(HERE / "diagonal_lstm.cpp")], check=True)
    library = ctypes.CDLL(str(target))
    library.diagonal_lstm.restype = ctypes.c_double
    return library


def by_hand(library: ctypes.CDLL, problem: Problem) -> Callable[[], Gradient]:
    """The C++ gradient of a problem of one sample."""
    T, _, n = problem.inputs["x"].shape
    params = np.concatenate([problem.params[name] for name in PARAMS])
    state = np.concatenate([problem.state[name].reshape(-1) for name in ("h1", "c1", "h2", "c2")])
    arrays = [np.ascontiguousarray(a) for a in (params, state, problem.inputs["x"], problem.inputs["y_star"])]
    grad = np.empty((len(PARAMS), n))
    pointers = [ctypes.c_void_p(a.ctypes.data) for a in (*arrays, grad)]

    def run() -> Gradient:
        assert len(arrays) == len(pointers) - 1  # held as long as their addresses are
        loss = library.diagonal_lstm(T, n, *pointers)
        return Gradient(loss, dict(zip(PARAMS, grad.copy(), strict=True)))

    return run


def apart(one: Gradient, other: Gradient) -> float:
    """The largest difference of an entry, or of the losses, relative to the largest entry, or to the loss."""
    size = max(float(np.abs(other.arrays[name]).max()) for name in PARAMS)
    entries = max(float(np.abs(one.arrays[name] - other.arrays[name]).max()) for name in PARAMS)
    return max(entries / size, abs(one.loss - other.loss) / abs(other.loss))


def opened(T: int) -> Problem:
    """The spec at `T` steps."""
    return draw(open_setup(SPEC, {"T": T}, (), Limits()))


def seconds(work: Callable[[], object]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main(rounds: int) -> int:
    """Print both times; 1 where the gradients differ."""
    problem, call = opened(1023), parse("bptt")
    with tempfile.TemporaryDirectory() as folder:
        hand, ours = by_hand(compiled(Path(folder)), problem), lambda: call.gradient(problem)
        difference = apart(ours(), hand())
        times = [(seconds(ours), seconds(hand)) for _ in range(rounds)]
    bp, cpp = (statistics.median(column) for column in zip(*times, strict=True))
    print(f"bptt {bp * 1e3:.2f} ms, C++ {cpp * 1e3:.2f} ms, ratio {cpp / bp:.2f}, gradients apart by {difference:.1e}")
    return int(difference > CLOSE)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 101))
