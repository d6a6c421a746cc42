"""What samples of time say: a ratio with its interval, and a verdict that claims no more than they show.

A head is SLOWER when the whole interval of its ratio to the base lies above 1 + margin, and the test of "no slower
than that" still rejects after Holm's correction over all cells; FASTER when it lies below 1 / (1 + margin) in the
same way; SAME when it lies between the two, not wholly beyond 5%, and these are not so far apart that being between
them says nothing. Everything else is INCONCLUSIVE.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from bpcli.bench.clock import interval

TimeVerdict = Literal["SAME", "FASTER", "SLOWER", "INCONCLUSIVE"]

SIGNIFICANCE = 0.05
LEAST_MARGIN = 0.05
# Runs that were saved apart from each other differ by more than pairs do, and nothing in them says by how much.
UNPAIRED_MARGIN = 0.10
MOST_MARGIN = 0.25
"""With a wider margin than that nothing is called the same: a fourth more time would not be seen."""
SIGMAS = 3.0
_EXACT = 20
_SPREAD_OF_NORMAL = 1.4826  # a median absolute deviation times this is the standard deviation of a normal sample
_LEAST_FOR_SPREAD = 4


@dataclass(frozen=True)
class Evidence:
    """Time of the head over time of the base, the interval that holds it with 95%, and the margin that counts as same.

    `p_slower` and `p_faster` are how likely samples like these are where the head is within the margin.
    """

    ratio: float
    low: float
    high: float
    margin: float
    p_slower: float
    p_faster: float


@dataclass(frozen=True)
class Pair:
    """Seconds a call of the base, of the head and of the base's twin, from blocks run in turn."""

    base: float
    head: float
    twin: float

    @property
    def change(self) -> float:
        """ln of head over base, both processes of the base counted."""
        return math.log(self.head) - 0.5 * (math.log(self.base) + math.log(self.twin))

    @property
    def noise(self) -> float:
        """ln of the twin over the base, which run the same code."""
        return math.log(self.twin / self.base)


def paired(rounds: Sequence[Sequence[Pair]], margin: float) -> Evidence:
    """What interleaved pairs say: exp of the median of ln(head/base), its order-statistic interval, sign tests."""
    logs = [pair.change for pairs in rounds for pair in pairs]
    low, high = interval(logs)
    edge = math.log1p(margin)
    above, below = sum(x > edge for x in logs), sum(x < -edge for x in logs)
    return Evidence(
        math.exp(statistics.median(logs)),
        math.exp(low),
        math.exp(high),
        margin,
        sign_tail(above, len(logs)),
        sign_tail(below, len(logs)),
    )


def unpaired(base: Sequence[float], head: Sequence[float], margin: float) -> Evidence:
    """What samples of two runs say: the ratio of medians, from interval to interval, and Mann and Whitney's test."""
    low, high = interval(head)
    bottom, top = interval(base)
    return Evidence(
        statistics.median(head) / statistics.median(base),
        low / top,
        high / bottom,
        margin,
        rank_tail(head, [x * (1.0 + margin) for x in base]),
        rank_tail(base, [x * (1.0 + margin) for x in head]),
    )


def verdicts(evidence: Sequence[Evidence]) -> list[TimeVerdict]:
    """The verdict on each cell of a suite; claims of a change are corrected for how many cells there are."""
    slower = holm([e.p_slower for e in evidence])
    faster = holm([e.p_faster for e in evidence])
    return [_verdict(e, s, f) for e, s, f in zip(evidence, slower, faster, strict=True)]


def _verdict(evidence: Evidence, slower: float, faster: float) -> TimeVerdict:
    edge = 1.0 + evidence.margin
    if evidence.low > edge and slower <= SIGNIFICANCE:
        return "SLOWER"
    if evidence.high < 1.0 / edge and faster <= SIGNIFICANCE:
        return "FASTER"
    # On a machine so loud that the margin is wide, a change that would count elsewhere is not called none.
    near = evidence.low <= 1.0 + LEAST_MARGIN and evidence.high >= 1.0 / (1.0 + LEAST_MARGIN)
    told = near and evidence.margin <= MOST_MARGIN
    return "SAME" if told and 1.0 / edge <= evidence.low and evidence.high <= edge else "INCONCLUSIVE"


def floor(rounds: Sequence[Sequence[Pair]]) -> float:
    """The standard deviation of the logarithm of a ratio where nothing differs, from a base and its twin.

    Every round is run in fresh processes, which differ among themselves; the scatter of the medians of the rounds
    about zero shows by how much, and as many rounds as there are average over it.
    """
    medians = [statistics.median(pair.noise for pair in pairs) for pairs in rounds]
    return math.sqrt(statistics.fmean(m * m for m in medians) / len(medians))


def margins(floors: Sequence[float]) -> list[float]:
    """The margin of each cell of a suite: 5%, or three times the floor where that is more.

    A floor from a few rounds can come out too small by chance; it counts as no less than what is usual in the suite.
    """
    usual = statistics.median(floors) if floors else 0.0
    return [max(LEAST_MARGIN, math.expm1(SIGMAS * max(own, usual))) for own in floors]


def unpaired_margin(ratios: Sequence[float]) -> float:
    """The margin for two saved runs: 10%, or three times the scatter of the cells' ratios about their median.

    Fewer than four cells do not show how they scatter.
    """
    logs = [math.log(r) for r in ratios]
    if len(logs) < _LEAST_FOR_SPREAD:
        return UNPAIRED_MARGIN
    middle = statistics.median(logs)
    spread = _SPREAD_OF_NORMAL * statistics.median(abs(x - middle) for x in logs)
    return max(UNPAIRED_MARGIN, math.expm1(min(SIGMAS * spread, 10.0)))


def holm(chances: Sequence[float]) -> list[float]:
    """Holm's step-down correction: what each p-value is worth among so many (Holm 1979)."""
    order = sorted(range(len(chances)), key=chances.__getitem__)
    corrected, worst = [1.0] * len(chances), 0.0
    for rank, index in enumerate(order):
        worst = max(worst, min(1.0, (len(chances) - rank) * chances[index]))
        corrected[index] = worst
    return corrected


def sign_tail(count: int, n: int) -> float:
    """P(Binomial(n, 1/2) >= count): the chance of so many on one side of the median."""
    return math.fsum(math.exp(_log_choose(n, k) - n * math.log(2.0)) for k in range(count, n + 1))


def rank_tail(top: Sequence[float], bottom: Sequence[float]) -> float:
    """The chance that `top` exceeds `bottom` in as many pairs as it does, where both come from one distribution.

    Mann and Whitney's U; ties count half, and against the claim where the exact distribution is used.
    """
    n, m = len(top), len(bottom)
    u = sum((a > b) + 0.5 * (a == b) for a in top for b in bottom)
    if max(n, m) > _EXACT:
        deviation = math.sqrt(n * m * (n + m + 1) / 12.0)
        return 0.5 * math.erfc((u - 0.5 - n * m / 2.0) / deviation / math.sqrt(2.0))
    return sum(_orders(n, m)[math.floor(u) :]) / math.comb(n + m, n)


@functools.cache
def _orders(n: int, m: int) -> tuple[int, ...]:
    """How many orders of n and m distinct numbers have U = 0, 1, …, n m: coefficients of a Gaussian binomial."""
    if n == 0 or m == 0:
        return (1,)
    # The largest of all is one of the n, which adds m to U, or one of the m, which adds nothing.
    with_first, with_second = _orders(n - 1, m), _orders(n, m - 1)
    counts = [0] * (n * m + 1)
    for u, count in enumerate(with_first):
        counts[u + m] += count
    for u, count in enumerate(with_second):
        counts[u] += count
    return tuple(counts)


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
