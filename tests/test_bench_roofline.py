"""Which of the machine's rates a time is bound by, and what a gradient is predicted to move."""

from __future__ import annotations

from pathlib import Path

import pytest

from bpcli.bench.profiling import Rates, copy_rate, limit, usual_shares
from bpcli.methods import parse
from bpcli.problem.limits import Limits
from bpcli.problem.setup import open_setup

SPECS = Path(__file__).parents[1] / "specs"
RATES = Rates(gemm=1e10, copy=1e9)


@pytest.mark.parametrize(
    ("seconds", "flops", "moved", "expected"),
    [
        (1.0, 8e9, 1e8, "gemm"),
        (1.0, 8e9, 9e8, "memory"),  # the same flops, and more bytes
        (1.0, 1e8, 9e8, "memory"),
        (1.0, 5e9, 0.0, "gemm"),
        (1.0, 4.9e9, 4.9e8, "overhead"),  # together they would explain it, but they overlap
        (2.0, 8e9, 1e8, "overhead"),  # as the first, in twice the time
        (1.0, 0.0, 2e9, "memory"),  # from a cache, quicker than a copy
    ],
)
def test_the_limit_is_the_largest_share_that_explains_half(seconds, flops, moved, expected):
    """Made-up counts at made-up rates."""
    assert expected == limit(RATES.shares(seconds, flops, moved))


def test_shares_are_parts_of_the_time():
    """Three of ten seconds for the flops, two for the bytes."""
    assert {"gemm": 0.3, "memory": 0.2} == pytest.approx(RATES.shares(10.0, 3e10, 2e9))


def test_shares_are_of_the_rates_of_their_round():
    """A machine that is three times slower in some rounds: shares stay, those of one rate do not."""
    samples = [[1.0, 1.0, 9.0], [3.0], [], [3.0, 2.9, 3.1]]
    rates = [Rates(RATES.gemm / slower, RATES.copy / slower) for slower in (1, 3, 1, 3)]
    assert {"gemm": 0.3, "memory": 0.2} == pytest.approx(usual_shares(rates, samples, 3e9, 2e8))
    assert {"gemm": 0.1, "memory": 0.2 / 3} == pytest.approx(usual_shares([RATES] * 4, samples, 3e9, 2e8))


def moved(method, spec="vanilla_rnn", **sizes):
    """Predicted bytes read and written, n=64 and T=200 unless told."""
    setup = open_setup(SPECS / f"{spec}.toml", {"n": 64, "T": 200, "batch": 1, **sizes}, (), Limits())
    return parse(method).cost(setup).moved


def test_every_step_reads_its_matrix_forwards_and_backwards():
    """n² numbers of eight bytes, 2 T times; what else moves grows with n alone: the n² part of three sizes says so."""
    small, middle, large = (moved("bptt", n=n) for n in (64, 128, 256))
    squares = ((large - middle) - 2.0 * (middle - small)) / (256**2 - 128**2 - 2.0 * (128**2 - 64**2))
    assert pytest.approx(8 * 2 * 200, rel=0.05) == squares


@pytest.mark.parametrize(
    ("method", "less", "more", "factor"),
    [
        ("bptt", {"T": 200}, {"T": 400}, 2.0),
        ("bptt", {"batch": 16}, {"batch": 32}, 2.0),  # a shard more
        ("rtrl", {"T": 160}, {"T": 320}, 2.0),
    ],
)
def test_what_moves_grows_with_steps_and_shards(method, less, more, factor):
    """In proportion, but for the parameters themselves and the chunks that steps are cut into."""
    assert pytest.approx(factor, rel=0.15) == moved(method, **more) / moved(method, **less)


def test_windows_side_by_side_share_the_matrix():
    """Sixteen windows of 16 steps read it 16 times, one after another 256 times."""
    assert moved("tbptt:k1=1,k2=16", n=256) < 2.0 * moved("bptt", n=256)
    assert moved("tbptt:k1=1,k2=16", n=256) > 0.5 * moved("bptt", n=256)


def test_copies_have_a_rate_on_any_number_of_threads():
    """Between a megabyte and a terabyte a second."""
    assert all(1e6 < copy_rate(threads) < 1e12 for threads in (1, 2))
