"""BPTT with s snapshots by the optimal binomial schedule (Griewank & Walther, "Algorithm 799: revolve", TOMS 26, 2000).

With s snapshots, the initial state among them, and r repetitions, C(s + r, s) steps can be taken back. For the least r
that is enough for n steps, the fewest advances are

    t(n, s) = r n - C(s + r, s + 1),        t(n, s) = min over m of  m + t(n - m, s - 1) + t(m, s),

without the recording of each step just before it is taken back. Here n counts segments of `steps` steps, which are
recorded and taken back together: many short ones take time, few long ones memory. By default a segment has s steps, and
takes about as much memory as the snapshots, or more where r would exceed 3; `steps=1` is the method of the paper.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import comb

from bpcli.methods._checkpointed import Action, Checkpointed, Counts

# Repetitions, at most, with segments of the default length.
_MOST = 3


@dataclass(frozen=True)
class Options:
    """`s` >= 1 snapshots, the initial state among them, and segments of `steps` steps; 0 stands for the default."""

    s: int
    steps: int = 0

    def __post_init__(self) -> None:
        if self.s < 1:
            raise ValueError(f"s must be at least 1, not {self.s}")
        if self.steps < 0:
            raise ValueError(f"steps must be at least 1, or 0 for the default, not {self.steps}")


def repetitions(n: int, s: int) -> int:
    """The least r with C(s + r, s) >= n."""
    r = 0
    while comb(s + r, s) < n:
        r += 1
    return r


def advances(n: int, s: int) -> int:
    """t(n, s)."""
    r = repetitions(n, s)
    return r * n - comb(s + r, s + 1)


def split(n: int, s: int) -> int:
    """The m steps before the next snapshot that minimise m + t(n - m, s - 1) + t(m, s), for n >= 2."""
    if s == 1:
        return n - 1
    r = repetitions(n, s)
    return max(1, min(comb(s + r - 1, s), n - comb(s + r - 2, s - 1)))


def counts(segments: int, options: Options) -> Counts:
    """Of the schedule: it goes forwards from the first segment once for each of the steps there are to split."""
    sweeps, left = 0, segments
    while left > 1:
        sweeps, left = sweeps + 1, split(left, options.s)
    return Counts(advances(segments, options.s), sweeps, min(options.s, segments - 1))


def schedule(segments: int, options: Options) -> Iterator[Action]:
    """All segments, from the first."""
    yield from _back(0, segments, options.s)


def _back(first: int, count: int, s: int) -> Iterator[Action]:
    """Take `count` segments back; the run stands before `first`, and may have s snapshots."""
    if count > 1:
        yield "save", first
    while count > 1:
        m = split(count, s)
        yield from (("advance", k) for k in range(first, first + m))
        yield from _back(first + m, count - m, s - 1)
        yield "restore", first
        count = m
    yield "record", first


PER_STEP = ("(3 + advances / T) F", "s N + steps V")
METHOD = Checkpointed(
    name="revolve",
    summary="bptt with s snapshots by the optimal binomial schedule: any memory, for a few more forward passes",
    Options=Options,
    schedule=schedule,
    counts=counts,
    steps=lambda T, options: options.steps or max(options.s, -(-T // comb(options.s + _MOST, _MOST))),
)
