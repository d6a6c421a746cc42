"""What the machine could do at best: which of its rates a time is bound by (Williams, Waterman & Patterson 2009)."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

GEMM, MEMORY, OVERHEAD = "gemm", "memory", "overhead"
EXPLAINS = 0.5
"""The share of a time that a limit explains at least."""


@dataclass(frozen=True)
class Rates:
    """What the machine does in a second: operations of matrix products, bytes that copies read and write."""

    gemm: float
    copy: float

    def shares(self, seconds: float, flops: float, moved: float) -> dict[str, float]:
        """What `flops` alone, and `moved` bytes alone, would take at these rates, as parts of `seconds`.

        The bytes may come to more than 1: what a cache holds is quicker than a copy in memory.
        """
        return {GEMM: flops / self.gemm / seconds, MEMORY: moved / self.copy / seconds}


def usual_shares(
    rates: Sequence[Rates], samples: Sequence[Sequence[float]], flops: float, moved: float
) -> dict[str, float]:
    """The medians of the shares in each round: a machine may be fast or slow for minutes, in its rates as in a time."""
    rounds = [r.shares(statistics.median(s), flops, moved) for r, s in zip(rates, samples, strict=True) if s]
    return {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}


def limit(shares: Mapping[str, float]) -> str:
    """The largest of the shares, or `OVERHEAD` where that explains too little: what is left is not counted."""
    largest = max(shares, key=lambda name: shares[name])
    return largest if shares[largest] >= EXPLAINS else OVERHEAD
