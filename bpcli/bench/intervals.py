"""Statistics of timings: intervals of medians and ratios, tests of a change, and the verdict that they support.

A head is SLOWER when the whole interval of its ratio to the base lies above 1 + margin and the test against that margin
rejects after Holm's correction over all cells; FASTER is the same below 1 / (1 + margin). It is SAME when the interval
lies between these bounds, is not wholly beyond 5%, and the margin is at most 25%. Anything else is INCONCLUSIVE.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

TimeVerdict = Literal["SAME", "FASTER", "SLOWER", "INCONCLUSIVE"]

SIGNIFICANCE = 0.05
MIN_MARGIN = 0.05
MAX_MARGIN = 0.25
"""The widest margin with which a time is called the same."""
UNPAIRED_MARGIN = 0.10
"""The least margin between saved runs: they differ by more than pairs do, and do not show by how much."""
SIGMAS = 3.0
_EXACT = 20  # samples up to which the rank test is exact
_NORMAL_MAD = 1.4826  # standard deviation of a normal sample over its median absolute deviation
_MIN_FOR_SPREAD = 4


def interval(samples: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Distribution-free confidence interval of the median, from order statistics.

    The k-th smallest and k-th largest of n samples miss the median with probability 2 P(Binomial(n, 1/2) < k); k is
    the largest rank that keeps this within 1 - confidence. Fewer than six samples cannot reach 95%: their range is
    returned.
    """
    from scipy.special import bdtr

    ordered = sorted(samples)
    n = len(ordered)
    k = max(1, int(np.count_nonzero(bdtr(np.arange(n, dtype=float), n, 0.5) <= (1.0 - confidence) / 2.0)))
    return ordered[k - 1], ordered[n - k]


def ratio(top: Sequence[float], bottom: Sequence[float]) -> tuple[float, float, float]:
    """exp of the median of ln(top/bottom) over pairs of samples, with its 95% interval."""
    logs = [math.log(a / b) for a, b in zip(top, bottom, strict=True)]
    low, high = interval(logs)
    return math.exp(statistics.median(logs)), math.exp(low), math.exp(high)


@dataclass(frozen=True)
class Evidence:
    """Ratio of head to base time with its 95% interval, and the margin within which times count as the same.

    `p_slower` and `p_faster` are p-values of the samples if the change were within the margin.
    """

    ratio: float
    low: float
    high: float
    margin: float
    p_slower: float
    p_faster: float


@dataclass(frozen=True)
class Pair:
    """Seconds a call of the base, of the head and of a second process of the base, from interleaved blocks."""

    base: float
    head: float
    twin: float

    @property
    def change(self) -> float:
        """ln of the head over the geometric mean of both base processes."""
        return math.log(self.head) - 0.5 * (math.log(self.base) + math.log(self.twin))

    @property
    def noise(self) -> float:
        """ln of the ratio of the two base processes, which run the same code."""
        return math.log(self.twin / self.base)


def paired(rounds: Sequence[Sequence[Pair]], margin: float) -> Evidence:
    """Evidence of interleaved pairs: the median of ln(head/base), its interval, and sign tests."""
    logs = [pair.change for pairs in rounds for pair in pairs]
    low, high = interval(logs)
    edge = math.log1p(margin)
    slower, faster = (sign_tail(sum(sign * x > edge for x in logs), len(logs)) for sign in (1.0, -1.0))
    return Evidence(math.exp(statistics.median(logs)), math.exp(low), math.exp(high), margin, slower, faster)


def unpaired(base: Sequence[float], head: Sequence[float], margin: float) -> Evidence:
    """Evidence of two runs' samples: the ratio of medians, the ratio of intervals, and rank tests."""
    low, high = interval(head)
    bottom, top = interval(base)
    slower = rank_tail(head, [x * (1.0 + margin) for x in base])
    faster = rank_tail(base, [x * (1.0 + margin) for x in head])
    middle = statistics.median(head) / statistics.median(base)
    return Evidence(middle, low / top, high / bottom, margin, slower, faster)


def sign_tail(count: int, n: int) -> float:
    """P(Binomial(n, 1/2) >= count), the p-value of a sign test."""
    from scipy.special import bdtrc

    return 1.0 if count == 0 else float(bdtrc(count - 1, n, 0.5))


def rank_tail(top: Sequence[float], bottom: Sequence[float]) -> float:
    """One-sided p-value of the Mann-Whitney test that `top` exceeds `bottom`, exact for up to 20 samples a side."""
    from scipy.stats import mannwhitneyu

    method = "asymptotic" if max(len(top), len(bottom)) > _EXACT else "exact"
    return float(mannwhitneyu(top, bottom, alternative="greater", method=method).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction of p-values for their number (Holm 1979)."""
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p, kind="stable")
    corrected = np.empty_like(p)
    corrected[order] = np.maximum.accumulate(np.minimum(1.0, (len(p) - np.arange(len(p))) * p[order]))
    return [float(value) for value in corrected]


def verdicts(evidence: Sequence[Evidence]) -> list[TimeVerdict]:
    """The verdict on each cell of a suite, its p-values corrected for the number of cells."""
    slower = holm([e.p_slower for e in evidence])
    faster = holm([e.p_faster for e in evidence])
    return [_verdict(e, s, f) for e, s, f in zip(evidence, slower, faster, strict=True)]


def _verdict(evidence: Evidence, slower: float, faster: float) -> TimeVerdict:
    edge = 1.0 + evidence.margin
    if evidence.low > edge and slower <= SIGNIFICANCE:
        return "SLOWER"
    if evidence.high < 1.0 / edge and faster <= SIGNIFICANCE:
        return "FASTER"
    # A noisy machine widens the margin; an interval that excludes 5% then shows a change all the same.
    near = evidence.low <= 1.0 + MIN_MARGIN and evidence.high >= 1.0 / (1.0 + MIN_MARGIN)
    within = 1.0 / edge <= evidence.low and evidence.high <= edge
    return "SAME" if near and within and evidence.margin <= MAX_MARGIN else "INCONCLUSIVE"


def noise_floor(rounds: Sequence[Sequence[Pair]]) -> float:
    """Standard deviation of ln(ratio) where nothing differs, from two processes of the base.

    Processes differ among themselves, so the scatter of the rounds' medians about zero is used, averaged over rounds.
    """
    medians = [statistics.median(pair.noise for pair in pairs) for pairs in rounds]
    return math.sqrt(statistics.fmean(m * m for m in medians) / len(medians))


def margins(floors: Sequence[float]) -> list[float]:
    """The margin of each cell of a suite: 5%, or three times its noise floor where that is more.

    A floor from a few rounds can come out too small by chance, so the suite's median floor is a lower bound.
    """
    usual = statistics.median(floors) if floors else 0.0
    return [max(MIN_MARGIN, math.expm1(SIGMAS * max(own, usual))) for own in floors]


def unpaired_margin(ratios: Sequence[float]) -> float:
    """The margin for two saved runs: 10%, or three times the scatter of at least four cells' ratios."""
    logs = [math.log(r) for r in ratios]
    if len(logs) < _MIN_FOR_SPREAD:
        return UNPAIRED_MARGIN
    middle = statistics.median(logs)
    spread = _NORMAL_MAD * statistics.median(abs(x - middle) for x in logs)
    return max(UNPAIRED_MARGIN, math.expm1(min(SIGMAS * spread, 10.0)))
