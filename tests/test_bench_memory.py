"""What a call allocates and by how much the process grows."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from bpcli.bench import memory_probe as memory
from bpcli.bench.memory_probe import allocated_bytes, peak_growth
from bpcli.methods import parse
from bpcli.problem.draw import draw
from bpcli.problem.limits import Limits
from bpcli.problem.setup import open_setup

SPECS = Path(__file__).parents[1] / "specs"
SIZE = 50_000_000


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
    monkeypatch.setattr(memory, "_STATUS", Path(tmp_path / "status"))
    before = memory.most_resident()
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
