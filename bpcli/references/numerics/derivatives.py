"""Derivatives as differences know them, with the parts that their bounds are made of."""

from __future__ import annotations

from dataclasses import dataclass
from types import EllipsisType

import numpy as np
from numpy.typing import NDArray

from bpcli.references.numerics.probe import FloatArray, Indices

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
