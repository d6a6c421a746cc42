"""Blocks, medians and intervals, with a clock that ticks when told."""

from __future__ import annotations

import gc
import math

import numpy as np
import pytest

from bpcli.bench.clock import BLOCK_SECONDS, MOST_BLOCKS, blocks_in, calibrate, interval, ratio, take


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
    [(0.1, 0.02, 5), (0.1, 3.0, 1), (1e6, BLOCK_SECONDS, MOST_BLOCKS // 7), (0.1, 0.0, MOST_BLOCKS // 7)],
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


def test_a_ratio_is_that_of_pairs():
    """The median of their logarithms, and its interval."""
    assert pytest.approx((2.5, 2.5, 2.5)) == ratio([0.05, 0.1, 0.2], [0.02, 0.04, 0.08])


@pytest.mark.parametrize(
    ("n", "k"), [(1, 1), (5, 1), (6, 1), (8, 1), (9, 2), (12, 3), (20, 6), (100, 40), (5000, 2431)]
)
def test_the_interval_is_that_of_the_order_statistics(n, k):
    """Ranks as in tables of the sign test; the range where there are too few samples."""
    assert (k, n - k + 1) == interval(range(1, n + 1))


def test_the_interval_covers_the_median_as_often_as_it_says():
    """Skewed samples, 2000 times: 95% and not much less cover ln 2, the median of an exponential."""
    rng = np.random.default_rng(3)
    hits = 0
    for sample in rng.exponential(size=(2000, 15)):
        low, high = interval(sample.tolist())
        hits += low <= math.log(2.0) <= high
    assert 0.95 - 0.01 <= hits / 2000 <= 0.98
