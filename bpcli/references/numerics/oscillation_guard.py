"""A difference with a tiny step: it leaps over nothing, and denies what larger steps found beyond an oscillation.

Of a difference over tiny steps little more is known than its noise, so that this has to be right. The noise of the loss
is that of some entries of a tensor; another one may feel more, as the only entry that lets some value round anew. Where
pilot and larger steps contradict each other it is therefore measured as the entry itself feels it.
"""

from __future__ import annotations

import numpy as np

from bpcli.references.numerics.derivatives import NOISE_FACTOR, UNIT_ROUNDOFF, Derivatives, Mask, where_finite
from bpcli.references.numerics.noise import POINTS, table_noise
from bpcli.references.numerics.probe import FloatArray, Indices, Sampler


class Pilot:
    """Differences with `steps (K,)`; `noise (K, S)` is that of the loss, `jump (K, S)` that of the slope."""

    def __init__(self, sampler: Sampler, steps: FloatArray, noise: FloatArray) -> None:
        self.sampler, self.steps = sampler, steps.copy()
        self.noise = np.tile(noise, (len(steps), 1))
        self.slope, self.jump, self.size = (np.zeros_like(self.noise) for _ in range(3))
        self._measured = np.zeros(len(steps), dtype=np.bool_)
        self.take(np.arange(len(steps)), steps)

    def take(self, rows: Indices, steps: FloatArray) -> None:
        """Take the differences of `rows` with `steps (R,)`."""
        self.steps[rows] = steps
        slope, even, self.size[rows] = differences(self.sampler, rows, steps)
        self.jump[rows] = even / steps[:, None]
        if self.sampler.kinks is not None:
            # Where a kink is known to be at the point, or hardly off it, a tiny step may see one side alone.
            slope = np.where(self.sampler.kinks[rows] >= 0, np.nan, slope)
        self.slope[rows] = slope

    def found(self, rows: Indices) -> Derivatives:
        """What it says of the derivatives."""
        steps = self.steps[rows, None]
        noise = NOISE_FACTOR * (self.noise[rows] / steps + UNIT_ROUNDOFF * self.size[rows])
        slope = self.slope[rows]
        return where_finite(Derivatives(slope, np.abs(self.jump[rows]) / 2, noise, np.zeros_like(slope)))

    def doubt(self, rows: Indices) -> FloatArray:
        """What of `jump` may be noise."""
        return np.asarray(4.0 * self.noise[rows] / self.steps[rows, None])

    def denies(self, rows: Indices, other: Derivatives) -> Mask:
        """Where `other` differs from it by more than both bounds."""
        own = self.found(rows)
        return np.asarray(np.abs(other.value - own.value) > other.bound + own.bound)

    def odd(self, rows: Indices, other: Derivatives) -> Mask:
        """Where it `denies` another, or sees a jump that the other does not: there may be more noise than is known."""
        jumps = (np.abs(self.jump[rows]) > self.doubt(rows)) & (other.kink == 0)
        return np.asarray(self.denies(rows, other) | jumps)

    def listen(self, rows: Indices) -> Indices:
        """Measure the noise as `rows` feel it; returns those of which it is more than was thought."""
        rows = rows[~self._measured[rows]]
        if not len(rows):
            return rows
        self._measured[rows] = True
        offsets = np.arange(POINTS) - POINTS // 2
        change, _ = self.sampler.shift(np.repeat(rows, POINTS), np.outer(self.steps[rows], offsets).ravel())
        values = change.reshape(len(rows), POINTS, -1).transpose(0, 2, 1)
        own = 2.0 * table_noise(values)
        louder = own > self.noise[rows]
        self.noise[rows] = np.where(louder, own, self.noise[rows])
        return rows[louder.any(axis=1)]


def differences(sampler: Sampler, rows: Indices, steps: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Central difference, even part E, largest change per step, `(R, S)` each, at the points that really are."""
    count = len(rows)
    change, shift = sampler.shift(np.tile(rows, 2), np.concatenate([steps, -steps]))
    slope = (change[:count] - change[count:]) / (shift[:count] - shift[count:])
    even = change[:count] + change[count:] - slope * (shift[:count] + shift[count:])
    size = np.maximum(np.abs(change[:count]), np.abs(change[count:])) / steps[:, None]
    return slope, even, size
