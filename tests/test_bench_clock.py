"""Blocks, medians and intervals, with a clock that ticks when told."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bpcli.benching.clock import BLOCK_SECONDS, LEAST_BLOCKS, MOST_BLOCKS, calibrate, interval, measure, ratio


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
    ("seconds", "budget", "blocks"), [(0.02, 0.5, 25), (0.02, 0.01, LEAST_BLOCKS), (2.0, 0.5, LEAST_BLOCKS)]
)
def test_the_budget_sets_the_number_of_blocks(seconds, budget, blocks):
    """At least seven, then until the budget is spent."""
    clock = FakeClock()
    (timing,) = measure([clock.work(seconds)], budget, clock)
    assert blocks == pytest.approx(len(timing.samples), abs=1)
    assert pytest.approx([seconds] * 4) == [timing.median, timing.low, timing.high, timing.minimum]


def test_there_is_a_most_of_blocks():
    """A budget of hours does not make millions of samples."""
    clock = FakeClock()
    (timing,) = measure([clock.work(BLOCK_SECONDS)], 1e6, clock)
    assert MOST_BLOCKS == len(timing.samples)


def test_several_are_timed_in_turn():
    """A B A B, each with calls of its own."""
    clock = FakeClock()
    first, second = measure([clock.work(0.02, "a"), clock.work(0.05, "b")], 0.1, clock)
    after_calibration = clock.calls[2:]
    assert ["a", "b"] * len(first.samples) == after_calibration
    assert pytest.approx([0.02, 0.05]) == [first.median, second.median]
    assert pytest.approx((2.5, 2.5, 2.5)) == ratio(second.samples, first.samples)


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
