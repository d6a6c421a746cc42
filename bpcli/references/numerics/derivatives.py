"""Numerical derivatives with error bounds, and three tests of derivatives that come from elsewhere.

- `SpotCheck`: Richardson extrapolation R(h) = (4 D(h) - D(2h)) / 3 of two central differences, with error O(h⁴);
  |D(h) - D(2h)| bounds its truncation error.
- `Pilot`: a difference with a tiny step, which spans no oscillation of the loss. Little but its noise is known, so that
  has to be right: where a pilot contradicts larger steps, the noise is measured again at the entry itself, which may
  feel more than the loss does on average.
- `rates`, the Taylor test: |φ(h) - φ(-h) - 2 h g| falls as h³ if g is the derivative, and as h if it is not. It needs
  no other estimate and no model of truncation, so that it can decide between references that disagree.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import EllipsisType

import numpy as np
from numpy.typing import NDArray

from bpcli.references.numerics.noise import POINTS, UNIT_ROUNDOFF, loss_noise, table_noise
from bpcli.references.numerics.probe import FIRST_STEP, PILOT, FloatArray, Indices, Probe, Sampler, scales

# Covers six standard deviations: `loss_noise` is two, and a central difference has the noise of one loss over the step.
NOISE_FACTOR = 3.0
# Relative size below which an entry is judged on the scale of the largest of its tensor.
SMALL = 1e-6
# A loss at the point that is off its neighbours by so many times their range, and such a part of itself, is no noise.
_SPIKE, _NO_NOISE = 8.0, 1e-2
# Least step over the distance of a kink whose side rounding hides; and noise of a jump over the noise of a slope.
_PAST, _JUMPY = 4.0, 3.0

# Steps so many times smaller than the smallest one, at so many entries and so often; how nearly these have to agree,
# and what part of them the smallest step has to miss, before the scale of the loss is taken to be smaller.
_CLOSER, _LOOKED_AT, _TIMES = (2.0**-16, 2.0**-15, 2.0**-13), 4, 3
_ALIKE, _MISSED = 0.25, 0.5

Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Derivatives:
    """Derivatives as in `Estimate`, with the two parts of the bound: `truncation` and `noise`."""

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
        """All arrays."""
        return self.value, self.truncation, self.noise, self.kink

    def rows(self, rows: Indices) -> Derivatives:
        """A subset of the K numbers."""
        return Derivatives(*(part[rows] for part in self.parts))

    def exceeds(self, target: float) -> Mask:
        """Where the bound is not within `target`, relative to the entry or to `SMALL` of the largest one."""
        size = np.abs(self.value)
        return np.asarray(~(self.bound <= target * np.maximum(size, SMALL * size.max())))

    def put(self, rows: Indices | EllipsisType, other: Derivatives, mask: Mask | bool = True) -> None:
        """Replace `rows` by `other` where `mask` is set."""
        for kept, new in zip(self.parts, other.parts, strict=True):
            kept[rows] = np.where(mask, new, kept[rows])


def with_known_kinks(smooth: Derivatives, jump: FloatArray, coarse: FloatArray, away: FloatArray) -> Derivatives:
    """Add known kinks to derivatives from steps that cross no others.

    `away` is the distance of the kinks in steps, negative where there are none; `jump` the jump of the slope, `coarse`
    the same from another extrapolation. A step h sees 1 - d/h of the jump at a kink of distance d. The value is NaN
    where a step is too short to cross the kinks.
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
    """Set value 0 and an infinite bound where anything is not finite."""
    finite = np.isfinite(known.value) & np.isfinite(known.bound)
    value, noise, kink = (np.where(finite, a, 0.0) for a in (known.value, known.noise, known.kink))
    return Derivatives(value, np.where(finite, known.truncation, np.inf), noise, kink)


SIGNED = np.array([1.0, -1.0, 2.0, -2.0])
"""Signed steps of a pair of central differences, in units of the smaller step."""
COMPARED = 4
"""Entries of each tensor in a spot check."""


def pairs(changes: FloatArray, step: float | FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """From changes (4, …) of the loss: R(h), its truncation error, and the largest change per step."""
    near, far = (changes[0] - changes[1]) / (2 * step), (changes[2] - changes[3]) / (4 * step)
    return (4 * near - far) / 3, np.abs(near - far), np.abs(changes).max(axis=0) / step


class SpotCheck:
    """Compare derivatives from elsewhere with differences of the loss: a pair and a tiny step for each entry.

    The losses to evaluate are those of `entries` shifted by `deltas`.
    """

    def __init__(self, probe: Probe, known: Derivatives, noise: float) -> None:
        """`known` has the rows of the probe; `noise` is two standard deviations of the loss."""
        self.probe, self.known, self.noise = probe, known, noise
        self.steps = np.exp2(np.round(np.log2(FIRST_STEP / 4 * scales(probe))))
        self.signed = np.outer([*SIGNED, PILOT, -PILOT], self.steps)
        self.rows = np.tile(np.arange(len(self.steps)), len(self.signed))
        self.entries, self.deltas = probe.entries[self.rows], self.signed.reshape(-1)

    def agrees(self, losses: FloatArray, base: FloatArray) -> bool:
        """Whether all agree, given the losses `(6 K, batch)` after the shifts and `base (batch,)` without."""
        known, signed, step = self.known, self.signed, self.steps[:, None]
        with np.errstate(all="ignore"):
            found = self.probe.changes(losses - base, self.rows, self.deltas)
            change, shift = (a.reshape(*signed.shape, -1) for a in found)
            value, truncation, size = pairs(change[:4] * (signed[:4, :, None] / shift[:4]), step)
            tiny = (change[4] - change[5]) / (shift[4] - shift[5])
            room = known.bound + truncation + UNIT_ROUNDOFF * NOISE_FACTOR * size
            # Of many steps the total is rounded by more than the noise of single steps amounts to.
            noise = NOISE_FACTOR * (self.noise + UNIT_ROUNDOFF * np.abs(base).sum())
            near = np.abs(value - known.value) <= room + noise / step
            nearer = np.abs(tiny - known.value) <= room + noise / (PILOT * step)
            return bool((near & nearer).all())


def scales_of_loss(sampler: Sampler) -> FloatArray:
    """`scales`, reduced for entries of zero where the loss saturates within less than the steps that follow from them.

    The size of such an entry says nothing on its scale, which a network that grows from zero may make as small as it
    likes. A few entries stand for all of a tensor. Of a black box the rounding is unknown.
    """
    found = scales(sampler.probe)
    zero = np.flatnonzero(~sampler.probe.points.any(axis=1))
    if not len(zero) or sampler.kinks is None:
        return found
    rows = zero[np.linspace(0, len(zero) - 1, min(_LOOKED_AT, len(zero))).astype(np.int64)]
    for _ in range(_TIMES):
        smallest = FIRST_STEP * PILOT * found[rows]
        steps = np.concatenate([smallest, *(smallest * closer for closer in _CLOSER)])
        own, *closer = differences(sampler, np.tile(rows, 4), steps)[0].reshape(4, len(rows), -1)
        nearer = np.abs(closer[0])
        noise = 4 * NOISE_FACTOR * UNIT_ROUNDOFF * sampler.level / (_CLOSER[0] * smallest[:, None])
        alike = np.max([np.abs(slope - closer[0]) for slope in closer], axis=0) <= _ALIKE * nearer
        steep = alike & (nearer > noise) & (np.abs(own - closer[0]) > _MISSED * nearer)
        if not steep.any():
            break
        found[zero] *= _CLOSER[0]
    return found


class Pilot:
    """Pilot differences with tiny `steps (K,)`; `noise (K, S)` of the loss, `jump (K, S)` of the slope.

    `unresolved (K, S)` marks where the loss bends within less than a tiny step, so that no step tells its derivative.
    """

    def __init__(self, sampler: Sampler, steps: FloatArray, noise: FloatArray) -> None:
        self.sampler, self.steps, self._of_loss = sampler, steps.copy(), noise
        self.noise = np.tile(noise, (len(steps), 1))
        self.slope, self.jump, self.size = (np.zeros_like(self.noise) for _ in range(3))
        self.unresolved = np.zeros(self.noise.shape, dtype=np.bool_)
        self._measured = np.zeros(len(steps), dtype=np.bool_)
        self.take(np.arange(len(steps)), steps)

    def take(self, rows: Indices, steps: FloatArray) -> None:
        """Evaluate the differences of `rows` with `steps (R,)`."""
        self.steps[rows] = steps
        self.unresolved[rows] = self._measured[rows] = False
        if self.sampler.sided:  # what was measured at larger steps may have been the edge of a domain
            self.noise[rows] = self._of_loss
        slope, even, self.size[rows] = differences(self.sampler, rows, steps)
        self.jump[rows] = even / steps[:, None]
        if self.sampler.kinks is not None:
            # At a kink, or very near one, a tiny step may see one side only.
            slope = np.where(self.sampler.kinks[rows] >= 0, np.nan, slope)
        self.slope[rows] = slope

    def derivatives(self, rows: Indices) -> Derivatives:
        """The pilot's own derivatives."""
        steps = self.steps[rows, None]
        noise = NOISE_FACTOR * (self.noise[rows] / steps + UNIT_ROUNDOFF * self.size[rows])
        slope = self.slope[rows]
        truncation = np.where(self.unresolved[rows], np.inf, np.abs(self.jump[rows]) / 2)
        return where_finite(Derivatives(slope, truncation, noise, np.zeros_like(slope)))

    def doubt(self, rows: Indices) -> FloatArray:
        """The part of `jump` that may be noise."""
        return np.asarray(4.0 * self.noise[rows] / self.steps[rows, None])

    def contradicts(self, rows: Indices, other: Derivatives) -> Mask:
        """Where `other` differs from the pilot by more than both bounds."""
        own = self.derivatives(rows)
        return np.asarray(np.abs(other.value - own.value) > other.bound + own.bound)

    def suspicious(self, rows: Indices, other: Derivatives) -> Mask:
        """Where the noise may be wrong: it is a large part of the loss, or the pilot contradicts `other`, or sees a
        jump that `other` does not."""
        jumps = (np.abs(self.jump[rows]) > self.doubt(rows)) & (other.kink == 0)
        return np.asarray(self.contradicts(rows, other) | jumps | (self.noise[rows] > _NO_NOISE * self.sampler.level))

    def remeasure_noise(self, rows: Indices) -> Indices:
        """Measure the noise at `rows` themselves, once each; returns the rows of which more is known now.

        A loss that differs from its neighbours, which are alike, is no noise: it is unresolved.
        """
        rows = rows[~self._measured[rows]]
        if not len(rows):
            return rows
        self._measured[rows] = True
        middle = 0 if self.sampler.sided else POINTS // 2
        offsets = np.arange(POINTS) - middle
        change, _ = self.sampler.shift(np.repeat(rows, POINTS), np.outer(self.steps[rows], offsets).ravel())
        values = change.reshape(len(rows), POINTS, -1).transpose(0, 2, 1)
        own = 2.0 * table_noise(values)
        louder = own > self.noise[rows]
        around = np.delete(values, middle, axis=2)
        apart = np.abs(around.mean(axis=2) - values[:, :, middle])
        spread = around.max(axis=2) - around.min(axis=2)
        level = self.sampler.level
        self.unresolved[rows] = (apart > _SPIKE * spread) & (apart > _NO_NOISE * level) & (level > 0)
        self.noise[rows] = np.where(louder, own, self.noise[rows])
        return rows[(louder | self.unresolved[rows]).any(axis=1)]


def differences(sampler: Sampler, rows: Indices, steps: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Central difference, even part E and largest change per step, `(R, S)` each, for the shifts after rounding."""
    count = len(rows)
    change, shift = sampler.shift(np.tile(rows, 2), np.concatenate([steps, -steps]))
    slope = (change[:count] - change[count:]) / (shift[:count] - shift[count:])
    even = change[:count] + change[count:] - slope * (shift[:count] + shift[count:])
    size = np.maximum(np.abs(change[:count]), np.abs(change[count:])) / steps[:, None]
    return slope, even, size


RUNGS = 20
_LARGEST = 2.0
# Halvings of the step over which a rate must hold, and the rates; anything in between is undecided.
_SPAN = 3
_CUBIC, _LINEAR = 2.5, 1.15
# Residuals this many times above the noise have a rate.
_CLEAR = 8.0


def rates(sampler: Sampler, gradient: FloatArray, tolerance: FloatArray) -> tuple[Mask, Mask]:
    """Masks of the entries of `gradient (K, S)` that are right and that are wrong; others are undecided.

    Right: the residual falls as h³ down to the noise, or is noise throughout, and there bounds the error by
    `tolerance (K, S)`. Wrong: over the last halvings above the noise, it falls as h.
    """
    with np.errstate(all="ignore"):
        steps = np.exp2(np.round(np.log2(_LARGEST * scales(sampler.probe)))) * 0.5 ** np.arange(RUNGS)[:, None]
        residual, floor = _residuals(sampler, steps, gradient)
        clear = residual > _CLEAR * floor
        last = np.where(clear.any(axis=0), RUNGS - 1 - clear[::-1].argmax(axis=0), 0)
        room = (residual + floor) / (2 * steps[:, :, None])
        at_last = np.take_along_axis(room, last[None], axis=0)[0]
        falling = np.stack([_rate(residual, clear, last - i) for i in range(_SPAN)])
        noise_alone = ~clear.any(axis=0) & (np.fmin.reduce(room, axis=0) <= tolerance)
        right = (falling >= _CUBIC).all(axis=0) & (at_last <= tolerance)
        wrong = (np.abs(falling - 1) <= _LINEAR - 1).all(axis=0)
        return np.asarray(right | noise_alone), np.asarray(wrong)


def _residuals(sampler: Sampler, steps: FloatArray, gradient: FloatArray) -> tuple[FloatArray, FloatArray]:
    """|φ(h) - φ(-h) - 2 h g| and its noise level, `(RUNGS, K, S)` each."""
    count = steps.size
    rows = np.tile(np.arange(steps.shape[1]), len(steps))
    change, shift = sampler.shift(np.tile(rows, 2), np.concatenate([steps.ravel(), -steps.ravel()]))
    linear = (shift[:count] - shift[count:]) * gradient[rows]
    residual = np.abs(change[:count] - change[count:] - linear)
    size = np.maximum(np.abs(change[:count]), np.abs(change[count:])) + np.abs(linear)
    floor = NOISE_FACTOR * (loss_noise(sampler, steps[0]) + 4 * UNIT_ROUNDOFF * size)
    shape = (*steps.shape, -1)
    return residual.reshape(shape), np.broadcast_to(floor, residual.shape).reshape(shape)


def _rate(residual: FloatArray, clear: Mask, rung: NDArray[np.int64]) -> FloatArray:
    """log2 of the ratio of residuals at the rung before and at this one, NaN where either is noise."""
    before = np.maximum(rung - 1, 0)[None]
    here = np.maximum(rung, 0)[None]
    larger, smaller = (np.take_along_axis(residual, k, axis=0)[0] for k in (before, here))
    both = np.take_along_axis(clear, before, axis=0)[0] & np.take_along_axis(clear, here, axis=0)[0]
    return np.asarray(np.where(both & (rung > 0), np.log2(larger / smaller), np.nan))
