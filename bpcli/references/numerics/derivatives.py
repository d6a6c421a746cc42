"""Derivatives as differences know them, with the parts that their bounds are made of.

Central differences at two steps, one twice the other: four evaluations, and a truncation that is seen.

R(h) = (4 D(h) - D(2h)) / 3 has error O(h⁴) (Richardson), and |D(h) - D(2h)| is three times its distance from D(h).
"""

from __future__ import annotations

from dataclasses import dataclass
from types import EllipsisType

import numpy as np
from numpy.typing import NDArray

from bpcli.references.numerics.probe import FIRST_STEP, PILOT, FloatArray, Indices, Probe, scales

# Beyond six standard deviations: `loss_noise` is two, and a difference over two steps carries one over the step.
NOISE_FACTOR = 3.0
UNIT_ROUNDOFF = 2.0**-53
# An entry this much smaller than the largest of its tensor is judged by the size of the largest.
SMALL = 1e-6
# Steps over the distance of a kink that no side is to be told of; and the noise of a jump over that of a slope.
_PAST, _JUMPY = 4.0, 3.0

Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Derivatives:
    """What is known of the derivatives, as `Estimate` says: `truncation` and `noise` are the two parts of the bound."""

    value: FloatArray
    truncation: FloatArray
    noise: FloatArray
    kink: FloatArray

    @property
    def bound(self) -> FloatArray:
        """Truncation, noise and the rounding of the quotient itself."""
        return self.truncation + self.noise + 8 * UNIT_ROUNDOFF * np.abs(self.value)

    @property
    def parts(self) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
        """What it is made of."""
        return self.value, self.truncation, self.noise, self.kink

    def rows(self, rows: Indices) -> Derivatives:
        """Those of the K numbers alone."""
        return Derivatives(*(part[rows] for part in self.parts))

    def lacks(self, target: float) -> Mask:
        """Where the bound is not within `target`, relative to the entry or to `SMALL` of the largest one."""
        size = np.abs(self.value)
        return np.asarray(~(self.bound <= target * np.maximum(size, SMALL * size.max())))

    def put(self, rows: Indices | EllipsisType, other: Derivatives, mask: Mask | bool = True) -> None:
        """Put `other` in the place of `rows`, where `mask` says so."""
        for kept, new in zip(self.parts, other.parts, strict=True):
            kept[rows] = np.where(mask, new, kept[rows])


def with_known_kinks(smooth: Derivatives, jump: FloatArray, coarse: FloatArray, away: FloatArray) -> Derivatives:
    """Derivatives by steps that go beyond no kink but those `away` steps off, negative where there are none.

    `jump` is that of the slope at these, `coarse` the same by another extrapolation. From a kink at a distance d steps
    of h see 1 - d/h of the jump. Where a step is too short to go past them the value is NaN.
    """
    at_kink = away >= 0
    near = np.where(at_kink, np.abs(jump - coarse) + np.abs(jump) * np.maximum(away, 0.0), np.abs(jump) / 2)
    return Derivatives(
        np.where(at_kink & (_PAST * away > 1), np.nan, smooth.value),
        smooth.truncation + near,
        np.where(at_kink, _JUMPY, 1.0) * smooth.noise,
        np.where(at_kink, np.abs(jump) / 2, 0.0),
    )


def where_finite(known: Derivatives) -> Derivatives:
    """`known` with value 0 and an infinite bound where something is not finite."""
    finite = np.isfinite(known.value) & np.isfinite(known.bound)
    value, noise, kink = (np.where(finite, a, 0.0) for a in (known.value, known.noise, known.kink))
    return Derivatives(value, np.where(finite, known.truncation, np.inf), noise, kink)


SIGNED = np.array([1.0, -1.0, 2.0, -2.0])
"""The steps of a pair, over the smaller one."""
COMPARED = 4
"""Entries of each tensor whose derivatives from elsewhere are compared."""


def pairs(changes: FloatArray, step: float | FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """From changes (4, …) of the loss: R(h), what is taken for its error, and the largest change per step."""
    near, far = (changes[0] - changes[1]) / (2 * step), (changes[2] - changes[3]) / (4 * step)
    return (4 * near - far) / 3, np.abs(near - far), np.abs(changes).max(axis=0) / step


class Comparison:
    """Whether derivatives that come from elsewhere are those of the loss as its numbers are shifted themselves.

    By a pair each, and by one difference with a tiny step, which leaps over nothing: `entries` are shifted by `deltas`.
    """

    def __init__(self, probe: Probe, known: Derivatives, noise: float) -> None:
        """`known` has the probe's rows; `noise` is that of the loss, two standard deviations."""
        self.probe, self.known, self.noise = probe, known, noise
        self.steps = np.exp2(np.round(np.log2(FIRST_STEP / 4 * scales(probe))))
        self.signed = np.outer([*SIGNED, PILOT, -PILOT], self.steps)
        self.rows = np.tile(np.arange(len(self.steps)), len(self.signed))
        self.entries, self.deltas = probe.entries[self.rows], self.signed.reshape(-1)

    def agrees(self, losses: FloatArray, base: FloatArray) -> bool:
        """What the losses `(6 K, batch)` of the shifts say, and those with nothing shifted, `(batch,)`."""
        known, signed, step = self.known, self.signed, self.steps[:, None]
        with np.errstate(all="ignore"):
            found = self.probe.seen(losses - base, self.rows, self.deltas)
            change, shift = (a.reshape(*signed.shape, -1) for a in found)
            value, truncation, size = pairs(change[:4] * (signed[:4, :, None] / shift[:4]), step)
            tiny = (change[4] - change[5]) / (shift[4] - shift[5])
            room = known.bound + truncation + UNIT_ROUNDOFF * NOISE_FACTOR * size
            near = np.abs(value - known.value) <= room + NOISE_FACTOR * self.noise / step
            nearer = np.abs(tiny - known.value) <= room + NOISE_FACTOR * self.noise / (PILOT * step)
            return bool((near & nearer).all())
