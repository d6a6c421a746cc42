"""Time and memory of a call: blocks by a clock that ticks when told, bytes allocated, growth of the process."""

from __future__ import annotations

import gc
import math
import sys
from pathlib import Path

import numpy as np
import pytest

from bpcli.bench import profiling
from bpcli.bench.profiling import (
    BLOCK_SECONDS,
    MAX_BLOCKS,
    allocated_bytes,
    blocks_in,
    calibrate,
    peak_growth,
    take,
)
from bpcli.methods import parse
from bpcli.problem.draw import draw
from bpcli.problem.limits import Limits
from bpcli.problem.setup import open_setup

SPECS = Path(__file__).parents[1] / "specs"
SIZE = 50_000_000


class FakeClock:
    """A clock that moves only when something works; each piece of work takes the seconds that it is made with."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def __call__(self) -> float:
        return self.now

    def work(self, seconds: float, name: str = ""):
        def run() -> None:
            self.now += seconds
            self.calls.append(name)

        return run


@pytest.mark.parametrize("seconds", [1e-7, 1e-6, 3.3e-5, 1e-3, 9.9e-3, 0.01, 0.5])
def test_a_block_is_long_enough_and_not_much_longer(seconds):
    """Whatever a call takes, its block lasts 10 ms at least, and calls are not wasted."""
    clock = FakeClock()
    count = calibrate(clock.work(seconds), clock)
    assert count * seconds >= BLOCK_SECONDS * (1 - 1e-9)
    assert count == 1 or count * seconds <= 2.5 * BLOCK_SECONDS


def test_calibration_ends_on_a_clock_that_sees_nothing_at_first():
    """A clock of coarse ticks shows zero for short blocks."""
    clock = FakeClock()
    coarse = 1e-3
    assert calibrate(clock.work(1e-6), lambda: math.floor(clock.now / coarse) * coarse) * 1e-6 >= 0.8 * BLOCK_SECONDS


@pytest.mark.parametrize(
    ("seconds", "each", "blocks"),
    [(0.1, 0.02, 5), (0.1, 3.0, 1), (1e6, BLOCK_SECONDS, MAX_BLOCKS // 7), (0.1, 0.0, MAX_BLOCKS // 7)],
)
def test_seconds_are_filled_with_blocks(seconds, each, blocks):
    """One at least, and a most of them: a budget of hours does not make millions of samples."""
    assert blocks == blocks_in(seconds, each, 7)


def test_samples_are_seconds_a_call():
    """Blocks of three calls after one that warms up; collecting garbage is as it was before."""
    clock = FakeClock()
    assert pytest.approx([0.02] * 4) == take(clock.work(0.02), 3, 4, clock)
    assert 13 == len(clock.calls)
    assert gc.isenabled()


def hold() -> np.ndarray:
    """Fifty megabytes, touched and returned."""
    return np.ones(SIZE, dtype=np.uint8)


def hold_twice() -> int:
    """The same once more after the first is gone."""
    return len(hold()) + len(hold())


@pytest.mark.parametrize("work", [hold, hold_twice])
def test_an_allocation_is_seen_at_its_size(work):
    """Fifty megabytes are seen within 2%, held once or twice in a row."""
    assert allocated_bytes(work) == pytest.approx(SIZE, rel=0.02)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
@pytest.mark.parametrize("work", [hold, hold_twice])
def test_the_resident_set_grows_by_what_is_touched(work):
    """Fifty megabytes are seen within 2%."""
    assert peak_growth(work) == pytest.approx(SIZE, rel=0.02)


def test_a_call_that_does_nothing_needs_nothing():
    """Next to nothing, for the frames of Python."""
    assert allocated_bytes(lambda: None) < 10_000


def test_a_system_without_proc_tells_what_rises_above_all_before(monkeypatch, tmp_path):
    """From getrusage: beyond the largest so far, so that doing it again shows next to nothing."""
    monkeypatch.setattr(profiling, "_STATUS", Path(tmp_path / "status"))
    before = profiling.max_resident()
    work = lambda: np.ones(before or 0, dtype=np.uint8)  # noqa: E731 (as large as everything that was)
    assert peak_growth(work) == pytest.approx(before, rel=0.5)
    assert peak_growth(work) < 0.02 * before


def test_tracing_that_was_on_stays_on():
    """Somebody else's tracemalloc is not stopped."""
    import tracemalloc

    tracemalloc.start()
    try:
        assert allocated_bytes(hold) == pytest.approx(SIZE, rel=0.02)
        assert tracemalloc.is_tracing()
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("method", "T", "within"), [("bptt", 1000, 0.01), ("rtrl", 2, 0.01), ("tbptt:k1=8,k2=16", 200, 0.01)]
)
def test_what_a_method_holds_is_what_was_predicted(method, T, within):
    """Exact methods allocate what is predicted, where some 20 kB of bookkeeping do not show; truncated ones about."""
    setup = open_setup(SPECS / "vanilla_rnn.toml", {"n": 256, "T": T, "batch": 1}, (), Limits())
    problem, call = draw(setup), parse(method)
    call.gradient(problem)  # plans are kept, kernels loaded
    assert allocated_bytes(lambda: call.gradient(problem)) == pytest.approx(call.cost(setup).bytes, rel=within)
