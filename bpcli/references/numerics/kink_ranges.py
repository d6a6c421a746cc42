"""The range of derivatives at kinks: what programs may make of a loss, whichever slopes they take there.

A derivative is affine in the slope of each kink, so that its range has its ends where all slopes are at one end of
theirs. These are all tried, each by an imaginary step, where they are few; samples do not interact, so that each one's
lowest and highest add up. Of many kinks the slopes are tried that a program takes which treats all alike, and what a
program might do that does not is told by sums of absolute contributions: along any way through the network a slope is
off its mean by half the distance of the two at most.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bpcli.problem.definition import Tensor
from bpcli.references.numerics.derivatives import Derivatives
from bpcli.references.numerics.float_range import magnitude
from bpcli.references.numerics.probe import Along, FloatArray, Indices, Probe, norms
from bpcli.references.numerics.rounding import rounding
from bpcli.references.perturbation.kink_slopes import ALIKE, Shares, Slopes
from bpcli.references.perturbation.kinks import FREE
from bpcli.references.perturbation.perturbed import Perturbed
from bpcli.references.perturbation.tangent import STEP
from bpcli.runtime.reverse_mode import Window

_COMPLEX = np.dtype(np.complex128)


@dataclass(frozen=True, eq=False)
class Range:
    """The lowest and highest derivatives found, how far beyond these any may be, and what rounding may add, all
    `(R, S)`."""

    low: FloatArray
    high: FloatArray
    beyond: FloatArray
    bound: FloatArray


@dataclass(frozen=True, eq=False)
class Choices:
    """The derivatives of what `windows` define under the slopes that a program may choose."""

    slopes: Slopes
    windows: Sequence[Window]

    def entries(self, tensor: Tensor, around: Probe, which: Indices) -> Range:
        """Those by `which` of the probe's numbers, one at a time."""
        around = around.rows(which)
        delta = np.full(len(around.entries), STEP * 1j)
        known, width = (group[tensor.name].reshape(-1)[around.places] for group in (self._bounds, self._widths))
        return self._range(lambda own: own.losses(tensor, around.entries, delta), around.summed, known, width)

    def along(self, tensor: Tensor, rows: FloatArray, which: Indices) -> Range:
        """Those along `which` of the directions `rows (K, size)`."""
        rows = rows[which]
        delta, every = np.full(len(rows), STEP * 1j), np.arange(len(rows))
        known = norms(rows, self._bounds[tensor.name])[:, None]
        width = np.abs(rows) @ self._widths[tensor.name].reshape(-1, 1)
        return self._range(lambda own: Along(own, tensor, rows).losses(every, delta), True, known, width)

    def _range(
        self, losses: Callable[[Perturbed], NDArray[Any]], summed: bool, known: FloatArray, width: FloatArray
    ) -> Range:
        """From `losses` (R, batch) of perturbed copies after imaginary steps."""
        if not self.slopes.patterns:
            found = np.stack([self._slopes(share, losses) for share in ALIKE])
            found = found.sum(axis=2, keepdims=True) if summed else found
            low, high = found.min(axis=0), found.max(axis=0)
            return Range(low, high, np.maximum(found[1] + width - high, low - found[1] + width).clip(0.0), known)
        # By what static kinks take, as all samples share these.
        lows, highs = dict[int, FloatArray](), dict[int, FloatArray]()
        for pattern in self.slopes.patterns:
            found, p = self._slopes(self.slopes.shares(pattern), losses), pattern[0]
            lows[p], highs[p] = np.minimum(lows.get(p, found), found), np.maximum(highs.get(p, found), found)
        ends = (np.stack([*group.values()]) for group in (lows, highs))
        low, high = (end.sum(axis=2, keepdims=True) if summed else end for end in ends)
        return Range(low.min(axis=0), high.max(axis=0), np.zeros(known.shape), known)

    def _slopes(self, shares: Shares, losses: Callable[[Perturbed], NDArray[Any]]) -> FloatArray:
        """`(R, batch)`, of every sample by itself."""
        return np.asarray(losses(Perturbed(self.slopes.chosen(shares), self.windows, _COMPLEX)).imag / STEP)

    @cached_property
    def _bounds(self) -> Mapping[str, FloatArray]:
        return rounding(self.slopes.problem, tuple(self.windows), np.dtype(np.float64)).gradient

    @cached_property
    def _widths(self) -> Mapping[str, FloatArray]:
        """By tensor, how far from those with mean slopes derivatives can be where kinks are too many to try all."""
        mean, most = (magnitude(p, self.windows) for p in (self.slopes.chosen(0.5), self.slopes.steepest))
        return {name: np.abs(most[name] - mean[name]) for name in mean}


def put_ranges(known: Derivatives, kinks: FloatArray | None, ranges: Callable[[Indices], Range]) -> FloatArray:
    """Put the range in the place of what differences show where `kinks` are met; `ranges` takes rows to theirs.

    Returns `(K, S)` how far beyond it derivatives may be.

    Differences see the slopes that a step chooses, on either side: a second witness. Where these are beyond the range
    the interval holds both, with the bound of the differences.
    """
    met, beyond = np.zeros(known.value.shape, np.bool_) if kinks is None else kinks > FREE, np.zeros(known.value.shape)
    rows = np.flatnonzero(met.any(axis=1))
    if not len(rows):
        return beyond
    with np.errstate(all="ignore"):
        found, own = ranges(rows), known.rows(rows)
        sides, seen = (own.value - own.kink, own.value + own.kink), np.isfinite(own.bound)
        outside = np.maximum(found.low - sides[0], sides[1] - found.high)
        apart = seen & (outside > own.bound + found.bound)
        low = np.where(apart, np.minimum(found.low, sides[0]), found.low)
        high = np.where(apart, np.maximum(found.high, sides[1]), found.high)
        # Slopes that make no difference leave rounding alone.
        kink = np.where(high - low <= found.bound, 0.0, (high - low) / 2)
        rest = np.where(apart, own.truncation, found.bound), np.where(apart, own.noise, 0.0)
        new = Derivatives(low + (high - low) / 2, *rest, kink)
        there = met[rows] & np.isfinite(new.value) & np.isfinite(new.bound) & np.isfinite(new.kink)
    known.put(rows, new, there)
    beyond[rows] = np.where(there, np.where(np.isfinite(found.beyond), found.beyond, np.inf), 0.0)
    return beyond
